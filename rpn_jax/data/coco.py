"""COCO json files."""

import json as json_module
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from rpn_jax.data.images import header_size
from rpn_jax.data.records import (
    FAULTS,
    DataError,
    OnBad,
    Record,
    clip_boxes,
    count_moved,
    find_faults,
    report,
)


class CocoSource:
    """Records of a COCO detection json, in the order of its `images`.

    `iscrowd` becomes `ignore`; `bbox` (x, y, width, height) becomes xyxy; categories
    become contiguous indices in the order of their ids; `area` is the json's (that of
    the mask in COCO itself), or the box's where the json has none.

    Everything is checked at once, here. COCO's own boxes overshoot their images by
    fractions of a pixel: up to one pixel is clipped, and the number is logged.

    Args:
        json: The annotation file.
        images: The folder that the json's `file_name`s start from.
        on_bad: "raise" a `DataError` at the first fault, or "skip" faulty boxes and
            records without a file and log how many there were.

    Attributes:
        classes: Category names.
        category_ids: Category ids of the json, one for each class.
        sizes: [n, 2] int32, (height, width) of every record.
    """

    def __init__(self, json: str | Path, images: str | Path, on_bad: OnBad = "raise"):
        self.json, self.images = Path(json), Path(images)
        data = _read_json(self.json)
        categories = sorted(data["categories"], key=lambda c: c["id"])
        self.classes = tuple(c["name"] for c in categories)
        self.category_ids = tuple(c["id"] for c in categories)
        counts: Counter[str] = Counter()
        try:
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

    def _read_images(self, images: list, on_bad: OnBad, counts: Counter[str]) -> None:
        self._names, ids, sizes, self._missing = [], [], [], set()
        for image in images:
            name, key = image["file_name"], image["id"]
            where = f"{self.json}: image {name} (id {key})"
            if type(key) is not int or not 0 <= key < 2**31:
                raise DataError(f"{where}: the id must be an integer in 0 .. 2^31 - 1")
            if not (self.images / name).is_file():
                if on_bad == "raise":
                    raise DataError(f"{where}: there is no file {self.images / name}")
                counts["image without a file"] += 1
                self._missing.add(key)
                continue
            size = image.get("height"), image.get("width")
            if not all(size):
                size = header_size(self.images / name, name)
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
                        f"{a['image_id']}, which the file does not list"
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
        areas = [a.get("area", b[2] * b[3]) for a, b in zip(kept, xywh, strict=True)]
        self._areas = np.array(areas, np.float32)[order]
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
            'pass on_bad="skip" to leave such boxes out and count them'
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json_module.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such annotation file") from error
    except json_module.JSONDecodeError as error:
        raise DataError(f"{path}: not a json file ({error})") from error
    missing = {"images", "annotations", "categories"} - set(data)
    if missing:
        raise DataError(f"{path}: a COCO json has {', '.join(sorted(missing))}")
    return data
