"""What every source delivers, and the checks that it passes on entry.

Boxes here are `x1, y1, x2, y2` in pixels of the image as annotated, continuous
(`width = x2 - x1`); sizes are (height, width).
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from rpn_jax.data.faults import DataError, Faults, OnFault

# Annotators round outwards and COCO's own boxes overshoot by fractions of a pixel.
TOLERANCE = 1.0


class Record(NamedTuple):
    """One image and its annotated objects.

    Attributes:
        image: Encoded bytes, the path of an image file, or pixels [H, W, 3] uint8.
        image_id: Non-negative integer, unique in its source.
        name: File name, for messages.
        size: (height, width) as annotated, None where the annotation does not say.
        boxes: [n, 4] float32 xyxy, pixels of the original image.
        labels: [n] int32, 0-based index into the source's `classes`.
        ignore: [n] bool, crowd or difficult: neither object nor background.
        areas: [n] float32, square pixels, as the annotation counts them.
    """

    image: bytes | Path | np.ndarray
    image_id: int
    name: str
    size: tuple[int, int] | None
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray


class Source(Protocol):
    """Random access to records; picklable, so that worker processes can hold it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; `Record.labels` are indices into them."""
        ...

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    def __getitem__(self, index: int) -> Record:
        """Return one record."""
        ...


FAULTS = (
    "",
    "is not finite",
    "has x2 < x1 or y2 < y1: it looks like x, y, width, height where x1, y1, x2, y2 "
    "is meant",
    "has no area",
    "lies outside the image",
    "has an unknown category",
)


def find_faults(
    boxes: np.ndarray,
    sizes: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    tolerance: float = TOLERANCE,
) -> np.ndarray:
    """Return for every box the index into `FAULTS` of what is wrong with it.

    Args:
        boxes: [n, 4] xyxy in pixels.
        sizes: [n, 2] or [2], (height, width) of the box's image.
        labels: [n] class indices.
        num_classes: Labels must lie in 0 .. num_classes - 1.
        tolerance: Pixels by which a box may stick out of its image.

    Returns:
        [n] int8, 0 where the box is good.
    """
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    height, width = np.asarray(sizes).reshape(-1, 2).T
    with np.errstate(invalid="ignore", over="ignore"):
        inside_w = np.minimum(x2, width) - np.maximum(x1, 0)
        inside_h = np.minimum(y2, height) - np.maximum(y1, 0)
        out = np.minimum(x1, y1) < -tolerance
        out |= (x2 > width + tolerance) | (y2 > height + tolerance)
        conditions = (
            ~np.isfinite(x1 + y1 + x2 + y2),
            (x2 < x1) | (y2 < y1),
            (x2 == x1) | (y2 == y1),
            out | (inside_w <= 0) | (inside_h <= 0),
            (labels < 0) | (labels >= num_classes),
        )
    return np.select(conditions, range(1, 6), 0).astype(np.int8)


def clip_boxes(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Clip boxes [n, 4] xyxy to images of `sizes` [n, 2] or [2] (height, width)."""
    height, width = np.asarray(sizes).reshape(-1, 2).T
    high = np.stack([width, height, width, height], axis=1)
    return np.clip(boxes, 0, high).astype(np.float32)


def count_moved(boxes: np.ndarray, before: np.ndarray) -> int:
    """Count the boxes [n, 4] that clipping moved by more than a rounding error."""
    return int((np.abs(boxes - before) > 1e-2).any(axis=1).sum())


CLIPPED = "box clipped to the image"
AREA_TAKEN = "area missing or impossible, the box's taken"


def mend_areas(areas: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, int]:
    """Put the box's area where the annotated one is NaN, negative or beyond float32.

    Args:
        areas: [n] square pixels, NaN where there is none.
        boxes: [n, 4] xyxy in pixels.

    Returns:
        Areas [n] float32 and the number of those that the box gave.
    """
    bad = ~((areas >= 0) & (areas <= np.finfo(np.float32).max))
    own = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.where(bad, own, areas).astype(np.float32), int(bad.sum())


def check_record(
    record: Record,
    num_classes: int,
    *,
    on_bad: OnFault = "raise",
    tolerance: float = TOLERANCE,
) -> tuple[Record, Counter[str]]:
    """Check one record of known size; return it clipped, and what was mended.

    A box that sticks out of the image by at most `tolerance` pixels is clipped; one
    that sticks out further, is empty or not finite, or has an unknown category is a
    fault. An area that is missing, not finite or negative becomes the box's.

    Args:
        record: The record; its `size` must be known.
        num_classes: Labels must lie in 0 .. num_classes - 1.
        on_bad: "raise" a `DataError` for the first fault, or "skip" the box, or what
            is told of all.
        tolerance: Pixels.

    Returns:
        The record with good boxes only, and counts by what happened.

    Raises:
        DataError: A box is faulty and `on_bad` is "raise".
    """
    if record.size is None:
        raise DataError(f"{record.name}: the image size is not known")
    faults, size = Faults(on_bad), np.asarray(record.size)
    codes = find_faults(
        record.boxes, size, record.labels, num_classes, tolerance=tolerance
    )
    for bad in np.flatnonzero(codes).tolist():
        faults.add(_box_error(record, bad, codes[bad]), "boxes")
    good = codes == 0
    boxes = clip_boxes(record.boxes[good], size)
    faults.mended(CLIPPED, count_moved(boxes, record.boxes[good]))
    areas, taken = mend_areas(record.areas[good], boxes)
    faults.mended(AREA_TAKEN, taken)
    record = record._replace(
        boxes=boxes,
        labels=record.labels[good],
        ignore=record.ignore[good],
        areas=areas,
    )
    return record, faults.counts


def box_kind(code: int) -> str:
    """Say what faults of this code of `find_faults` are counted as."""
    return f"box {FAULTS[code].split(':')[0]}"


def _box_error(record: Record, index: int, code: int) -> DataError:
    box = [round(float(v), 2) for v in record.boxes[index]]
    return DataError(
        f"{record.name} (image id {record.image_id}, (height, width) = {record.size}): "
        f"box {index} x1, y1, x2, y2 = {box} {FAULTS[code]}",
        box_kind(code),
    )


def class_index(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return the index of each name in `classes`, -1 for an unknown one, [n] int32."""
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index.get(name, -1) for name in names], np.int32)
