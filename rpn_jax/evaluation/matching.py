"""Which proposal finds which object: greedy matching as COCO does it.

Shape legend: `N` proposals and `G` objects of an image, `R` area ranges, `T` IoU
thresholds. Boxes are xyxy, proposals and objects in one frame.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from rpn_jax.ops._checks import as_boxes, as_mask, check_shape
from rpn_jax.ops.boxes import corners, iou_of_corners, pairs_of_corners

# As pycocotools makes them: its 0.9 is a bit less than 0.9, so that an IoU of exactly
# 9/10 is a match.
IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""COCO's thresholds, 0.5 to 0.95 in steps of 0.05."""

AREA_RANGES = (
    (0.0, 1e10),
    (0.0, 32.0**2),
    (32.0**2, 96.0**2),
    (96.0**2, 1e10),
)
"""COCO's ranges of an object's area in square pixels, both ends included."""

AREA_NAMES = ("all", "small", "medium", "large")
"""What COCO calls them."""


def match_objects(
    boxes: ArrayLike,
    valid: ArrayLike,
    gt_boxes: ArrayLike,
    gt_valid: ArrayLike,
    gt_ignore: ArrayLike | None = None,
    gt_areas: ArrayLike | None = None,
    *,
    iou_thresholds: ArrayLike | Sequence[float] = IOU_THRESHOLDS,
    area_ranges: ArrayLike | Sequence[tuple[float, float]] = AREA_RANGES,
) -> Int[Array, "R T G"]:
    """Match the proposals of one image to its objects greedily, as pycocotools does.

    At each threshold the proposals, best first, each take the object of highest IoU
    among those that none has taken, if that IoU is at least the threshold; of equal
    IoUs the later object. Objects to ignore and objects outside the area range take no
    part: in pycocotools a proposal turns to them only when it matches no other object,
    which changes precision but never recall.

    IoU and comparison are float32, or float64 where the boxes are (with x64 enabled).
    An IoU that equals a threshold exactly, such as 11/20, is a match in both, as in
    pycocotools; a pair closer to a threshold than float32 can tell may differ from
    its float64. A box that is not finite matches nothing.

    Args:
        boxes: `[N, 4]` xyxy proposals, best first.
        valid: `[N]` bool; rows that are False may stand anywhere and do not count.
        gt_boxes: `[G, 4]` xyxy objects.
        gt_valid: `[G]` bool.
        gt_ignore: `[G]` bool, crowd regions and the like; None: none.
        gt_areas: `[G]` area of each object for the ranges, such as COCO's `area`,
            which is the segment's; None: the box's.
        iou_thresholds: `[T]`.
        area_ranges: `[R, 2]` least and greatest area, both included.

    Returns:
        `[R, T, G]` int32, the rank of the proposal that takes each object (0: the best
        of the valid), -1 where none does or the object does not count.

    Raises:
        ValueError: a shape or dtype is wrong.

    Example:
        >>> box = jnp.array([[0.0, 0.0, 10.0, 10.0]])
        >>> yes = jnp.array([True])
        >>> match_objects(box, yes, box, yes, iou_thresholds=[0.5]).shape
        (4, 1, 1)
    """
    boxes, gt_boxes = as_real_boxes(boxes, "boxes"), as_real_boxes(gt_boxes, "gt_boxes")
    valid = as_mask(valid, boxes.shape[:1], "valid")
    counted = counted_objects(gt_boxes, gt_valid, gt_ignore, gt_areas, area_ranges)[
        :, None
    ]
    iou = iou_of_corners(*pairs_of_corners(boxes, gt_boxes))
    cut = as_thresholds(iou_thresholds, boxes.dtype)[:, None]
    # Carries derive from the inputs: a constant would not do inside shard_map.
    nobody = jnp.where(counted & (cut == cut), -1, -1).astype(jnp.int32)
    if 0 in iou.shape or 0 in nobody.shape:
        return nobody

    # Most proposals overlap no object enough for any threshold and can be passed over.
    candidates = valid & jnp.any(iou >= jnp.min(cut), axis=1)
    order = jnp.argsort(~candidates, stable=True)
    rank = jnp.cumsum(valid, dtype=jnp.int32) - 1
    index = jnp.arange(gt_boxes.shape[0], dtype=jnp.int32)

    def take(n: jax.Array, taken_by: jax.Array) -> jax.Array:
        overlap = iou[order[n]]
        free = counted & (taken_by < 0) & (overlap >= cut)
        best = jnp.max(jnp.where(free, overlap, -1), axis=-1, keepdims=True)
        last = jnp.where(free & (overlap == best), index, -1)
        taken = index == jnp.max(last, axis=-1, keepdims=True)
        return jnp.where(taken, rank[order[n]], taken_by)

    return lax.fori_loop(0, jnp.sum(candidates), take, nobody)


def as_real_boxes(boxes: ArrayLike, name: str) -> jax.Array:
    """Check boxes as the ops do, but leave float64 be."""
    given, checked = jnp.asarray(boxes), as_boxes(boxes, name, rank=2)
    return given if given.dtype == jnp.float64 else checked


def as_thresholds(iou_thresholds, dtype) -> jax.Array:
    """Check thresholds `[T]`; they are compared in the dtype of the IoU."""
    cut = jnp.asarray(iou_thresholds, dtype)
    if cut.ndim != 1:
        raise ValueError(f"iou_thresholds must be [T], got shape {cut.shape}")
    return cut


def counted_objects(gt_boxes, gt_valid, gt_ignore, gt_areas, area_ranges) -> jax.Array:
    """Which objects count in which area range, `[R, G]`."""
    shape = gt_boxes.shape[:1]
    counted = as_mask(gt_valid, shape, "gt_valid")
    if gt_ignore is not None:
        counted &= ~as_mask(gt_ignore, shape, "gt_ignore")
    areas = corners(gt_boxes).area if gt_areas is None else jnp.asarray(gt_areas)
    check_shape(areas, shape, "gt_areas")
    ranges = jnp.asarray(area_ranges, gt_boxes.dtype)
    if ranges.ndim != 2 or ranges.shape[1] != 2:
        raise ValueError(f"area_ranges must be [R, 2], got shape {ranges.shape}")
    return counted & (areas >= ranges[:, :1]) & (areas <= ranges[:, 1:])
