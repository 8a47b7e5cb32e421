"""Folders in the layout of PASCAL VOC."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rpn_jax.data.faults import DataError, Faults, OnFault, check_size, shown
from rpn_jax.data.folder import Folder
from rpn_jax.data.images import header_size
from rpn_jax.data.records import Record, check_record, class_index

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

    Entities are not expanded: an annotation with a DOCTYPE is a fault. So is a file
    name that leads out of `JPEGImages` or `Annotations`; these may be links themselves.

    Args:
        root: Folder with `JPEGImages`, `Annotations` and `ImageSets/Main`.
        split: Name of a file in `ImageSets/Main`, as "train".
        classes: Class names. Default: VOC's twenty if they suffice, else the sorted
            names of this split; give a second split `classes=first.classes`.
        on_bad: "raise" a `DataError` at the first fault, or "skip" faulty boxes and
            records without files and log how many there were, or what is told of all.

    Attributes:
        classes: Class names.
        sizes: [n, 2] int32, (height, width) of every record.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: Sequence[str] | None = None,
        on_bad: OnFault = "raise",
    ):
        self.root, self.split = Path(root), split
        self._images = Folder(self.root / "JPEGImages")
        self._annotations = Folder(self.root / "Annotations")
        faults = Faults(on_bad)
        parsed = {}
        for stem in self._read_split():
            try:
                if stem in parsed:
                    raise DataError(
                        f"{self._list}: {stem} is listed twice",
                        "record that is listed twice",
                    )
                parsed[stem], broken = self._parse(stem)
            except DataError as error:
                faults.add(error)
                continue
            for error in broken:
                faults.add(error, "boxes")
        names = {name for _, names in parsed.values() for name in names}
        if classes is None:
            classes = VOC_CLASSES if names <= set(VOC_CLASSES) else sorted(names)
        self.classes = tuple(classes)
        self._records = []
        for image_id, (stem, (record, labels)) in enumerate(parsed.items()):
            image, annotation = record.name, self._annotations.root / f"{stem}.xml"
            record = record._replace(
                image_id=image_id,
                labels=class_index(labels, self.classes),
                name=str(annotation),  # which errors name
            )
            record, counts = check_record(record, len(self.classes), on_bad=on_bad)
            self._records.append(record._replace(name=image))
            faults.counts += counts
        self.sizes = np.array([r.size for r in self._records], np.int32).reshape(-1, 2)
        faults.report(self.root / split)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """Return one record; its image is a path."""
        return self._records[index]

    def _read_split(self) -> list[str]:
        folder = self.root / "ImageSets" / "Main"
        self._list = folder / f"{self.split}.txt"
        if not self._list.is_file():
            there = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
            raise DataError(
                f"{self._list}: there is no such split; splits found: {there}"
            )
        try:
            lines = self._list.read_text("utf-8").splitlines()
        except ValueError as error:
            raise DataError(f"{self._list}: not a text in UTF-8 ({error})") from error
        return [line.split()[0] for line in lines if line.strip()]

    def _parse(self, stem: str) -> tuple[tuple[Record, list[str]], list[DataError]]:
        """Read one annotation, and what is wrong with single objects.

        Labels stay names until all are known.
        """
        path = self._annotations.find(f"{stem}.xml", f"{self._list}: record {stem}")
        if path is None:
            file = self._annotations.root / f"{stem}.xml"
            raise DataError(
                f"{file}: there is no such annotation file",
                "image without an annotation",
            )
        tree = _read_xml(path)
        image = self._find_image(stem, tree.findtext("filename"), path)
        objects, broken = [], []
        for number, item in enumerate(tree.findall("object")):
            try:
                objects.append(_object(item, f"{path}: object {number}"))
            except DataError as error:
                broken.append(error)
        corners = np.array([corners for corners, *_ in objects]).reshape(-1, 4)
        xyxy = corners - [1, 1, 0, 0]
        height, width = (
            _number(tree.findtext(f"size/{k}") or "0") for k in ("height", "width")
        )
        if 0 in (height, width):  # some labelling tools leave it so
            size = header_size(image, str(image))
        else:
            size = check_size(height, width, str(path))
        with np.errstate(all="ignore"):  # checked later
            areas = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])
        record = Record(
            image,
            -1,
            image.name,
            size,
            xyxy,
            np.zeros(len(objects), np.int32),
            np.array([ignore for *_, ignore in objects], bool),
            areas,
        )
        return (record, [name for _, name, _ in objects]), broken

    def _find_image(self, stem: str, filename: str | None, annotation: Path) -> Path:
        for name in (f"{stem}.jpg", filename, f"{stem}.jpeg", f"{stem}.png"):
            path = self._images.find(name, str(annotation)) if name else None
            if path:
                return path
        raise DataError(
            f"{annotation}: there is no image file {self._images.root / stem}.jpg",
            "annotation without an image",
        )


class _NoEntities(ElementTree.TreeBuilder):
    """Refuses the place where entities are declared, before any is read."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(
            "it has a DOCTYPE, which can make a small file fill all memory; remove it"
        )


def _read_xml(path: Path) -> ElementTree.Element:
    try:
        content = path.read_bytes()
        tree = ElementTree.XML(content, ElementTree.XMLParser(target=_NoEntities()))
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        # The last two: an encoding that Python or expat does not know.
        raise DataError(
            f"{path}: the annotation is broken: {error}", "annotation that is broken"
        ) from error
    if tree.tag != "annotation":
        raise DataError(
            f"{path}: an <annotation> is wanted, the file holds <{shown(tree.tag)}>",
            "annotation that is broken",
        )
    return tree


def _object(item: ElementTree.Element, where: str) -> tuple[list[float], str, bool]:
    """Read the corners, the name and whether it is difficult."""
    texts = [item.findtext(f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax")]
    corners = [x for x in (_number(text or "") for text in texts) if x is not None]
    name = (item.findtext("name") or "").strip()
    if len(corners) < 4 or not name:
        raise DataError(
            f"{where} needs a name and a bndbox with the numbers xmin, ymin, xmax, "
            f"ymax; it has {shown(name)} and {shown(texts)}",
            "object that lacks a field",
        )
    return corners, name, (item.findtext("difficult") or "0").strip() == "1"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
