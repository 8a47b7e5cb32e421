"""COCO json files."""

import json as json_module
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rpn_jax.data.faults import DataError, Faults, OnFault, check_size, shown
from rpn_jax.data.folder import Folder
from rpn_jax.data.images import header_size
from rpn_jax.data.records import (
    AREA_TAKEN,
    CLIPPED,
    FAULTS,
    Record,
    box_kind,
    clip_boxes,
    count_moved,
    find_faults,
    mend_areas,
)

# What a fault of `classes` is counted as.
OTHER_CLASSES = "category that is none of the classes"


class CocoSource:
    """Records of a COCO detection json, in the order of its `images`.

    `iscrowd` becomes `ignore`; `bbox` (x, y, width, height) becomes xyxy; categories
    become contiguous indices in the order of their ids, or of `classes`; `area` is the
    json's (that of the mask in COCO itself), or the box's where the json has none that
    makes sense.

    Everything is checked at once, here. COCO's own boxes overshoot their images by
    fractions of a pixel: up to one pixel is clipped, and the number is logged.

    Args:
        json: The annotation file.
        images: The folder that the json's `file_name`s start from and may not lead out
            of; None where only the boxes are wanted, and the files need not be there.
        on_bad: "raise" a `DataError` at the first fault, or "skip" faulty boxes and
            records without a readable file and log how many there were, or what is
            told of all.
        classes: Names in the order of a network's labels, the json's among them;
            None: the json's.

    Attributes:
        classes: Category names.
        category_ids: Category ids of the json, one for each class; -1 for a class that
            the json does not have.
        sizes: [n, 2] int32, (height, width) of every record.
    """

    def __init__(
        self,
        json: str | Path,
        images: str | Path | None,
        on_bad: OnFault = "raise",
        *,
        classes: Sequence[str] | None = None,
    ):
        self.json = Path(json)
        self._folder = None if images is None else Folder(Path(images))
        self.images = Path(images or "")
        data = _read_json(self.json)
        faults = Faults(on_bad)
        self._read_categories(data["categories"], classes)
        self._read_images(data["images"], faults)
        self._read_boxes(data["annotations"], faults)
        faults.report(self.json)

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

    def _read_categories(self, entries: list, classes: Sequence[str] | None) -> None:
        ids = Counter()
        for number, entry in enumerate(entries):
            where = f"{self.json}: category {number} of the list"
            _check_fields(entry, ("id", "name"), where)
            if type(entry["id"]) is not int or type(entry["name"]) is not str:
                raise DataError(
                    f"{where} needs an integer as id and a string as name, got "
                    f"{shown(entry)}"
                )
            ids[entry["id"]] += 1
        for key, number in ids.most_common(1):
            if number > 1:
                raise DataError(f"{self.json}: {number} categories have the id {key}")
        entries = sorted(entries, key=lambda entry: entry["id"])
        ids = [entry["id"] for entry in entries]
        names = [entry["name"] for entry in entries]
        self.classes, indices = tuple(names), range(len(names))
        if classes is not None:
            self.classes, indices = tuple(classes), self._places(names, list(classes))
        self._class_of = dict(zip(ids, indices, strict=True))
        id_of = dict(zip(indices, ids, strict=True))
        self.category_ids = tuple(id_of.get(i, -1) for i in range(len(self.classes)))

    def _places(self, names: list[str], classes: list[str]) -> list[int]:
        """Find each name among the classes."""
        unknown = [name for name in names if name not in classes]
        if unknown or len(set(names)) < len(names):
            raise DataError(
                f"{self.json}: its categories must each be another of the classes "
                f"{', '.join(classes)}; it has {', '.join(unknown or names)}",
                OTHER_CLASSES,
            )
        return [classes.index(name) for name in names]

    def _read_images(self, entries: list, faults: Faults) -> None:
        self._names, sizes = [], []
        # By id; None: left out, and its boxes with it.
        self._row_of: dict[Any, int | None] = {}
        for number, entry in enumerate(entries):
            try:
                name, size = self._check_image(entry, number)
            except DataError as error:
                faults.add(error)
                if isinstance(entry, dict):
                    self._row_of.setdefault(_key(entry.get("id")), None)
                continue
            self._row_of[entry["id"]] = len(sizes)
            self._names.append(name)
            sizes.append(size)
        rows = self._row_of.items()
        self._ids = np.array([key for key, row in rows if row is not None], np.int64)
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)

    def _check_image(self, entry: Any, number: int) -> tuple[str, tuple[int, int]]:
        """Return the file name and the (height, width) of an image."""
        where = f"{self.json}: image {number} of the list"
        _check_fields(entry, ("id", "file_name"), where)
        key, name = entry["id"], entry["file_name"]
        where = f"{self.json}: image {shown(name)} (id {shown(key)})"
        if type(key) is not int or not 0 <= key < 2**31:
            raise DataError(
                f"{where}: the id must be an integer in 0 .. 2^31 - 1", WRONG_FIELD
            )
        if type(name) is not str:
            raise DataError(f"{where}: the file_name must be a string", WRONG_FIELD)
        if key in self._row_of:
            raise DataError(f"{where}: two images have this id", "image id used twice")
        path = self._folder.find(name, where) if self._folder else None
        if self._folder and path is None:
            raise DataError(
                f"{where}: there is no file {shown(str(self.images / name))}",
                "image without a file",
            )
        height, width = entry.get("height"), entry.get("width")
        if height and width:
            return name, check_size(height, width, where)
        if path is None:
            raise DataError(
                f"{where} has no height and width; without the folder of the images "
                "they cannot be found",
                WRONG_FIELD,
            )
        return name, header_size(path, where)

    def _read_boxes(self, entries: list, faults: Faults) -> None:
        kept, rows, seen = [], [], set()
        for number, entry in enumerate(entries):
            try:
                row = self._check_annotation(entry, number, seen)
            except DataError as error:
                faults.add(error, "boxes")
                continue
            if row is not None:
                kept.append(entry)
                rows.append(row)
        image_row = np.array(rows, np.int64)
        sizes = self.sizes[image_row]
        xywh = np.array([a["bbox"] for a in kept], np.float64).reshape(-1, 4)
        # NumPy makes NaN of None.
        areas = np.array([a.get("area") for a in kept], np.float64)
        labels = [self._class_of.get(_key(a["category_id"]), -1) for a in kept]
        labels = np.array(labels, np.int32)
        with np.errstate(over="ignore"):
            boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        codes = find_faults(boxes, sizes, labels, len(self.classes))
        for bad in np.flatnonzero(codes).tolist():
            sentence = self._describe(kept[bad], rows[bad], FAULTS[codes[bad]])
            faults.add(DataError(sentence, box_kind(codes[bad])), "boxes")

        good = np.flatnonzero(codes == 0)
        order = good[np.argsort(image_row[good], kind="stable")]
        self._boxes = clip_boxes(boxes[order], sizes[order])
        faults.mended(CLIPPED, count_moved(self._boxes, boxes[order]))
        self._areas, taken = mend_areas(areas[order], self._boxes)
        faults.mended(AREA_TAKEN, taken)
        crowd = [bool(a.get("iscrowd")) for a in kept]
        self._ignore = np.array(crowd, bool)[order]
        self._labels = labels[order]
        self._starts = np.searchsorted(image_row[order], np.arange(len(self) + 1))
        del self._row_of

    def _check_annotation(self, entry: Any, number: int, seen: set) -> int | None:
        """Return the row of an annotation's image, None if that is left out."""
        key = entry.get("id") if isinstance(entry, dict) else None
        name = f"number {number} of the list" if key is None else shown(key)
        where = f"{self.json}: annotation {name}"
        _check_fields(entry, ("image_id", "category_id", "bbox"), where)
        if key is not None and _key(key) in seen:
            raise DataError(
                f"{where}: two annotations have this id", "annotation id used twice"
            )
        seen.add(_key(key))
        image = _key(entry["image_id"])
        if image not in self._row_of:
            raise DataError(
                f"{where} belongs to image {shown(image)}, which the file does not "
                "list",
                "annotation of an unknown image",
            )
        bbox, area, crowd = entry["bbox"], entry.get("area"), entry.get("iscrowd")
        if type(bbox) is not list or len(bbox) != 4 or not all(map(_is_number, bbox)):
            wrong = f"needs a bbox of four numbers, got {shown(bbox)}"
        elif not (area is None or _is_number(area)):
            wrong = f"needs a number as area, got {shown(area)}"
        elif crowd not in (None, 0, 1):
            wrong = f"needs 0 or 1 as iscrowd, got {shown(crowd)}"
        else:
            return self._row_of[image]
        raise DataError(f"{where} {wrong}", WRONG_FIELD)

    def _describe(self, annotation: dict[str, Any], row: int, fault: str) -> str:
        height, width = self.sizes[row]
        x, y, w, h = annotation["bbox"]
        if "outside" in fault and x < w <= width and y < h <= height:
            fault += ": it looks like x1, y1, x2, y2 where x, y, width, height is meant"
        elif "looks like" in fault:
            fault = "has a negative width or height"
        elif "category" in fault:
            fault += f" {shown(annotation['category_id'])}"
        return (
            f"{self.json}: annotation {annotation.get('id')} of "
            f"{shown(self._names[row])} ({height} x {width} pixels, height x width): "
            f"bbox {shown(annotation['bbox'])} {fault}"
        )


WRONG_FIELD = "entry with a missing or wrong field"


def _check_fields(entry: Any, fields: tuple[str, ...], where: str) -> None:
    if not isinstance(entry, dict):
        raise DataError(
            f"{where} is no object with fields: {shown(entry)}", WRONG_FIELD
        )
    for field in fields:
        if field not in entry:
            raise DataError(f"{where} lacks the field '{field}'", WRONG_FIELD)


def _key(value: Any) -> Any:
    """What json can hold, as something that a dict can look up."""
    return repr(value) if isinstance(value, list | dict) else value


def _is_number(value: Any) -> bool:
    # Python's integers go on where floats end.
    kind = type(value)
    return kind is float or (kind is int and abs(value) < 2**1000)


def _read_json(path: Path) -> dict[str, list]:
    try:
        data = json_module.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such annotation file") from error
    except (OSError, ValueError, RecursionError) as error:  # not json, or not UTF-8
        raise DataError(f"{path}: not a json file ({error})") from error
    lists = ("annotations", "categories", "images")
    found = data if isinstance(data, dict) else {}
    missing = [key for key in lists if not isinstance(found.get(key), list)]
    if missing:
        raise DataError(f"{path}: a COCO json has lists of {', '.join(missing)}")
    return found
