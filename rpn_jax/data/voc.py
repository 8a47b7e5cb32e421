"""Folders in the layout of PASCAL VOC."""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rpn_jax.data.images import header_size
from rpn_jax.data.records import (
    SKIP,
    DataError,
    OnBad,
    Record,
    check_record,
    class_index,
    report,
)

VOC_CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor".split()
)


class VocSource:
    """Records of one split of a VOC folder, in the order of its split file.

    VOC counts pixels from 1 and includes the last one: a box is
    (xmin - 1, ymin - 1, xmax, ymax). `difficult` becomes `ignore`. Every annotation is
    read and checked at once, here; what sticks out by at most one pixel is clipped
    (tools that count from 0 write xmin = 0), and the number is logged.

    Args:
        root: Folder with `JPEGImages`, `Annotations` and `ImageSets/Main`.
        split: Name of a file in `ImageSets/Main`, as "train".
        classes: Class names. Default: VOC's twenty if they suffice, else the sorted
            names of this split; give a second split `classes=first.classes`.
        on_bad: "raise" a `DataError` at the first fault, or "skip" faulty boxes and
            records without files and log how many there were.

    Attributes:
        classes: Class names.
        sizes: [n, 2] int32, (height, width) of every record.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: Sequence[str] | None = None,
        on_bad: OnBad = "raise",
    ):
        self.root, self.split = Path(root), split
        counts: Counter[str] = Counter()
        parsed = []
        for stem in _read_split(self.root, split):
            try:
                parsed.append(_parse(self.root, stem))
            except DataError as error:
                if on_bad == "raise":
                    raise DataError(
                        f"{error}; mend it, or skip such records with {SKIP}"
                    ) from error
                counts["record with a missing or broken file"] += 1
        names = {name for *_, names in parsed for name in names}
        if classes is None:
            classes = VOC_CLASSES if names <= set(VOC_CLASSES) else sorted(names)
        self.classes = tuple(classes)
        self._records = []
        for image_id, (record, labels) in enumerate(parsed):
            record = record._replace(
                image_id=image_id, labels=class_index(labels, self.classes)
            )
            record, mended = check_record(record, len(self.classes), on_bad=on_bad)
            self._records.append(record)
            counts += mended
        self.sizes = np.array([r.size for r in self._records], np.int32).reshape(-1, 2)
        report(self.root / split, counts)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """Return one record; its image is a path."""
        return self._records[index]


def _read_split(root: Path, split: str) -> list[str]:
    folder = root / "ImageSets" / "Main"
    path = folder / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
        raise DataError(f"{path}: there is no such split; splits found: {there}")
    lines = path.read_text().splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def _parse(root: Path, stem: str) -> tuple[Record, list[str]]:
    """Read one annotation; labels stay names until all are known."""
    path = root / "Annotations" / f"{stem}.xml"
    try:
        tree = ElementTree.parse(path).getroot()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such annotation file") from error
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: the annotation is broken: {error}") from error
    image = _find_image(root, stem, tree.findtext("filename"), path)
    boxes, names, ignore = [], [], []
    for number, item in enumerate(tree.findall("object")):
        try:
            corners = [
                float(item.findtext(f"bndbox/{k}") or "missing")
                for k in ("xmin", "ymin", "xmax", "ymax")
            ]
        except ValueError as error:
            raise DataError(
                f"{path}: object {number} needs a bndbox with xmin, ymin, xmax, ymax"
            ) from error
        boxes.append(corners)
        names.append((item.findtext("name") or "").strip())
        ignore.append((item.findtext("difficult") or "0").strip() == "1")
    xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    xyxy[:, :2] -= 1
    height, width = (
        int(float(tree.findtext(f"size/{k}") or 0)) for k in ("height", "width")
    )
    # Some labelling tools leave the size at 0.
    size = (height, width) if height and width else header_size(image, image.name)
    areas = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])
    record = Record(
        image,
        -1,
        image.name,
        size,
        xyxy,
        np.zeros(len(names), np.int32),
        np.array(ignore, bool),
        areas,
    )
    return record, names


def _find_image(root: Path, stem: str, filename: str | None, annotation: Path) -> Path:
    folder = root / "JPEGImages"
    for name in (f"{stem}.jpg", filename, f"{stem}.jpeg", f"{stem}.png"):
        if name and (folder / name).is_file():
            return folder / name
    raise DataError(f"{annotation}: there is no image file {folder / stem}.jpg")
