"""COCO json files."""

import json as json_module
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from rpn_jax.data.images import header_size
from rpn_jax.data.records import (
    AREA_TAKEN,
    FAULTS,
    SKIP,
    DataError,
    OnBad,
    Record,
    clip_boxes,
    count_moved,
    find_faults,
    mend_areas,
    report,
)


class CocoSource:
    """Records of a COCO detection json, in the order of its `images`.

    `iscrowd` becomes `ignore`; `bbox` (x, y, width, height) becomes xyxy; categories
    become contiguous indices in the order of their ids; `area` is the json's (that of
    the mask in COCO itself), or the box's where the json has none that makes sense.

    Everything is checked at once, here. COCO's own boxes overshoot their images by
    fractions of a pixel: up to one pixel is clipped, and the number is logged.

    Args:
        json: The annotation file.
        images: The folder that the json's `file_name`s start from; None where only the
            boxes are wanted, and the files need not be there.
        on_bad: "raise" a `DataError` at the first fault, or "skip" faulty boxes and
            records without a readable file and log how many there were.

    Attributes:
        classes: Category names.
        category_ids: Category ids of the json, one for each class.
        sizes: [n, 2] int32, (height, width) of every record.
    """

    def __init__(
        self, json: str | Path, images: str | Path | None, on_bad: OnBad = "raise"
    ):
        self.json, self.images = Path(json), Path(images or "")
        self._files_wanted = images is not None
        data = _read_json(self.json)
        counts: Counter[str] = Counter()
        try:
            categories = sorted(data["categories"], key=lambda c: c["id"])
            self.classes = tuple(c["name"] for c in categories)
            self.category_ids = tuple(c["id"] for c in categories)
            self._check_categories()
            self._read_images(data["images"], on_bad, counts)
            self._read_boxes(data["annotations"], on_bad, counts)
        except KeyError as error:
            raise DataError(f"{self.json}: an entry lacks the field {error}") from error
        report(self.json, counts)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        """Return one record; its image is a path."""
        index = range(len(self))[index]
        rows = slice(self._starts[index], self._starts[index + 1])
        height, width = self.sizes[index]
        return Record(
            self.images / self._names[index],
            int(self._ids[index]),
            self._names[index],
            (int(height), int(width)),
            self._boxes[rows],
            self._labels[rows],
            self._ignore[rows],
            self._areas[rows],
        )

    def _check_categories(self) -> None:
        for key, number in Counter(self.category_ids).most_common(1):
            if number > 1:
                raise DataError(f"{self.json}: {number} categories have the id {key}")

    def _read_images(self, images: list, on_bad: OnBad, counts: Counter[str]) -> None:
        self._names, ids, sizes, self._missing = [], [], [], set()
        for image in images:
            name, key = image["file_name"], image["id"]
            where = f"{self.json}: image {name} (id {key})"
            if type(key) is not int or not 0 <= key < 2**31:
                raise DataError(f"{where}: the id must be an integer in 0 .. 2^31 - 1")
            if self._files_wanted and not (self.images / name).is_file():
                if on_bad == "raise":
                    raise DataError(
                        f"{where}: there is no file {self.images / name}; mend it, or "
                        f"skip such records with {SKIP}"
                    )
                counts["image without a file"] += 1
                self._missing.add(key)
                continue
            size = image.get("height"), image.get("width")
            if not all(size):
                try:
                    size = header_size(self.images / name, name)
                except DataError as error:
                    if on_bad == "raise":
                        raise DataError(
                            f"{error}; mend it, or skip such records with {SKIP}"
                        ) from error
                    counts["image that cannot be read"] += 1
                    self._missing.add(key)
                    continue
            self._names.append(name)
            ids.append(key)
            sizes.append(size)
        self._ids = np.array(ids, np.int64)
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)
        if len(np.unique(self._ids)) != len(ids):
            raise DataError(f"{self.json}: two images have the same id")

    def _read_boxes(
        self, annotations: list, on_bad: OnBad, counts: Counter[str]
    ) -> None:
        row_of = {key: row for row, key in enumerate(self._ids.tolist())}
        class_of = {key: index for index, key in enumerate(self.category_ids)}
        kept, rows = [], []
        for a in annotations:
            row = row_of.get(a["image_id"])
            if row is not None:
                kept.append(a)
                rows.append(row)
            elif a["image_id"] not in self._missing:
                if on_bad == "raise":
                    raise DataError(
                        f"{self.json}: annotation {a.get('id')} belongs to image "
                        f"{a['image_id']}, which the file does not list; mend it, or "
                        f"skip such boxes with {SKIP}"
                    )
                counts["annotation of an unknown image"] += 1
        del self._missing
        image_row = np.array(rows, np.int64)
        try:
            xywh = np.array([a["bbox"] for a in kept], np.float64).reshape(-1, 4)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{self.json}: every annotation needs a bbox of four numbers ({error})"
            ) from error
        try:  # NumPy makes NaN of None
            areas = np.array([a.get("area") for a in kept], np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.json}: every area is a number ({error})") from error
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        labels = np.array([class_of.get(a["category_id"], -1) for a in kept], np.int32)
        sizes = self.sizes[image_row]
        codes = find_faults(boxes, sizes, labels, len(self.classes))
        if codes.any() and on_bad == "raise":
            bad = int(np.flatnonzero(codes)[0])
            raise DataError(
                self._describe(kept[bad], int(image_row[bad]), FAULTS[codes[bad]])
            )
        counts.update(f"box {FAULTS[c].split(':')[0]}" for c in codes[codes > 0])

        good = np.flatnonzero(codes == 0)
        order = good[np.argsort(image_row[good], kind="stable")]
        self._boxes = clip_boxes(boxes[order], sizes[order])
        if clipped := count_moved(self._boxes, boxes[order]):
            counts["box clipped to the image"] = clipped
        self._areas, taken = mend_areas(areas[order], self._boxes)
        if taken:
            counts[AREA_TAKEN] = taken
        crowd = [bool(a.get("iscrowd", 0)) for a in kept]
        self._ignore = np.array(crowd, bool)[order]
        self._labels = labels[order]
        self._starts = np.searchsorted(image_row[order], np.arange(len(self) + 1))

    def _describe(self, annotation: dict[str, Any], row: int, fault: str) -> str:
        height, width = self.sizes[row]
        x, y, w, h = annotation["bbox"]
        if "outside" in fault and x < w <= width and y < h <= height:
            fault += ": it looks like x1, y1, x2, y2 where x, y, width, height is meant"
        elif "looks like" in fault:
            fault = "has a negative width or height"
        elif "category" in fault:
            fault += f" {annotation['category_id']}"
        return (
            f"{self.json}: annotation {annotation.get('id')} of {self._names[row]} "
            f"({height} x {width} pixels, height x width): "
            f"bbox {annotation['bbox']} {fault}; "
            f"mend it, or skip such boxes with {SKIP}"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json_module.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such annotation file") from error
    except ValueError as error:  # not json, or not UTF-8
        raise DataError(f"{path}: not a json file ({error})") from error
    missing = {"images", "annotations", "categories"} - set(data)
    if missing:
        raise DataError(f"{path}: a COCO json has {', '.join(sorted(missing))}")
    return data
