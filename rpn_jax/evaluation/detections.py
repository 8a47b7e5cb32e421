"""Which detections are right: matching within each class, as COCO does it.

Shape legend: `N` detections and `G` objects of an image, `R` area ranges, `T` IoU
thresholds. Boxes are xyxy, continuous, detections and objects in one frame.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from rpn_jax.evaluation.matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    as_real_boxes,
    as_thresholds,
    counted_objects,
)
from rpn_jax.ops._checks import as_groups, as_mask, as_real, check_shape
from rpn_jax.ops.boxes import (
    corners,
    ioa_of_corners,
    iou_of_corners,
    pairs_of_corners,
)


class DetectionMatches(NamedTuple):
    """All that average precision needs of an image, or of a batch of images.

    A detection that is neither a hit nor ignored is a false positive.

    Attributes:
        hit: `[..., R, T, N]` bool, detections that find an object.
        ignored: `[..., R, T, N]` bool, detections that are neither right nor wrong.
        scores: `[..., N]` float32 or float64, 0 where padded.
        labels: `[..., N]` int32, classes of the detections, -1 where padded.
        ranks: `[..., N]` int32, place among the image's detections of that class, 0
            the best; -1 where padded.
        objects: `[..., R, G]` int32, classes of the objects to find, -1 for those that
            do not count in the range.
    """

    hit: Bool[Array, "*images R T N"]
    ignored: Bool[Array, "*images R T N"]
    scores: Float[Array, "*images N"]
    labels: Int[Array, "*images N"]
    ranks: Int[Array, "*images N"]
    objects: Int[Array, "*images R G"]


def match_detections(
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    valid: ArrayLike,
    gt_boxes: ArrayLike,
    gt_labels: ArrayLike,
    gt_valid: ArrayLike,
    gt_ignore: ArrayLike | None = None,
    gt_areas: ArrayLike | None = None,
    *,
    iou_thresholds: ArrayLike | Sequence[float] = IOU_THRESHOLDS,
    area_ranges: ArrayLike | Sequence[tuple[float, float]] = AREA_RANGES,
) -> DetectionMatches:
    """Match the detections of one image to its objects as pycocotools does.

    At each threshold the detections, best score first and of equal scores the lower
    row, each take the object of their class with the highest IoU among those that none
    has taken, if that IoU is at least the threshold; of equal IoUs the later object.

    A detection that finds no such object turns in the same way to what does not count:
    crowd regions, which any number of detections may share and whose overlap is the
    part of the detection that lies inside, and objects outside the area range. Where it
    finds one it is ignored, and also where it finds nothing and its own area is
    outside the range.

    Precision is that of `match_objects`: float32, or float64 where the boxes are. An
    IoU that equals a threshold exactly is a match; what lies closer to a threshold than
    float32 can tell may differ from pycocotools' float64.

    Args:
        boxes: `[N, 4]` xyxy, pixels.
        scores: `[N]`, in any order.
        labels: `[N]` integers, 0-based classes; a negative one counts as padding. To
            match without classes, give zeros here and for the objects.
        valid: `[N]` bool; an image that only fills a batch has no valid detection.
        gt_boxes: `[G, 4]` xyxy objects.
        gt_labels: `[G]` integers, classes of the objects.
        gt_valid: `[G]` bool.
        gt_ignore: `[G]` bool, crowd regions; None: none.
        gt_areas: `[G]` area of each object for the ranges, such as COCO's `area`,
            which is the segment's; None: the box's.
        iou_thresholds: `[T]`.
        area_ranges: `[R, 2]` least and greatest area in square pixels, both included.

    Returns:
        `DetectionMatches`, detections in the order given.

    Raises:
        ValueError: a shape or dtype is wrong.

    Example:
        >>> box = jnp.array([[0.0, 0.0, 10.0, 10.0]])
        >>> one, yes = jnp.array([1]), jnp.array([True])
        >>> found = match_detections(box, one, one, yes, box, one, yes)
        >>> found.hit[:, 0, 0]  # all, small, medium, large
        Array([ True,  True, False, False], dtype=bool)

    References:
        Lin et al., Microsoft COCO (2014); `evaluateImg` of pycocotools.
    """
    boxes, gt_boxes = as_real_boxes(boxes, "boxes"), as_real_boxes(gt_boxes, "gt_boxes")
    scores, labels, valid = as_detections(boxes, scores, labels, valid)
    shape = gt_boxes.shape[:1]
    gt_labels = as_labels(gt_labels, shape, "gt_labels")
    crowd = False if gt_ignore is None else as_mask(gt_ignore, shape, "gt_ignore")
    counted = counted_objects(gt_boxes, gt_valid, gt_ignore, gt_areas, area_ranges)
    cut = as_thresholds(iou_thresholds, boxes.dtype)[:, None]

    found, objects = pairs_of_corners(boxes, gt_boxes)
    overlaps = jnp.where(
        crowd, ioa_of_corners(objects, found), iou_of_corners(found, objects)
    )
    same = same_class(labels, gt_labels, as_mask(gt_valid, shape, "gt_valid"))
    overlaps = jnp.where(same, overlaps, -1)
    index = jnp.arange(gt_boxes.shape[0], dtype=jnp.int32)
    counted = counted[:, None]  # [R, 1, G]

    def take(taken: jax.Array, overlap: jax.Array):
        near = (overlap >= cut) & (~taken | crowd)
        real = near & counted
        near = jnp.where(jnp.any(real, axis=-1, keepdims=True), real, near)
        best = jnp.max(jnp.where(near, overlap, -1), axis=-1, keepdims=True, initial=-1)
        last = jnp.where(near & (overlap == best), index, -1)
        match = index == jnp.max(last, axis=-1, keepdims=True, initial=-1)
        outcome = jnp.any(match & counted, axis=-1), jnp.any(match & ~counted, axis=-1)
        return taken | match, outcome

    # The carry derives from the inputs: a constant would not do inside shard_map.
    nothing = counted & (cut != cut)
    place = places(scores, valid)
    _, outcomes = lax.scan(take, nothing, overlaps[jnp.argsort(place)])
    hit, ignored = (jnp.moveaxis(x[place], 0, -1) for x in outcomes)
    area, ranges = corners(boxes).area, jnp.asarray(area_ranges, boxes.dtype)
    outside = (area < ranges[:, :1]) | (area > ranges[:, 1:])
    return DetectionMatches(
        hit,
        valid & (ignored | (~hit & outside[:, None])),
        scores,
        labels,
        class_ranks(place, labels, valid),
        jnp.where(counted[:, 0], gt_labels, -1),
    )


def as_detections(boxes, scores, labels, valid):
    """Check scores, labels and mask of N boxes; padded ones get 0 and -1."""
    shape = boxes.shape[:1]
    valid = as_mask(valid, shape, "valid")
    scores = check_shape(as_real(scores, "scores"), shape, "scores")
    labels = as_labels(labels, shape, "labels")
    return jnp.where(valid, scores, 0), jnp.where(valid, labels, -1), valid


def as_labels(labels, shape, name) -> jax.Array:
    """Check classes."""
    return as_groups(labels, shape, name).astype(jnp.int32)


def same_class(labels, gt_labels, gt_valid) -> jax.Array:
    """Which detections and objects may meet, `[N, G]`; padded labels are -1."""
    return (labels[:, None] == gt_labels) & (labels >= 0)[:, None] & gt_valid


def places(scores, valid) -> jax.Array:
    """Place of each detection in the order of scores, padded ones behind, `[N]`."""
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    return jnp.argsort(order)


def class_ranks(place, labels, valid) -> jax.Array:
    """Place of each detection among the valid ones of its class, `[N]`."""
    better = (place < place[:, None]) & (labels == labels[:, None]) & valid
    return jnp.where(valid, jnp.sum(better, axis=1, dtype=jnp.int32), -1)
