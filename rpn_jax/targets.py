"""Targets: matching, sampling and coding make what the head must learn."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from rpn_jax.batch import Batch
from rpn_jax.conventions import Convention, options
from rpn_jax.ops._batching import map_images
from rpn_jax.ops._checks import ImageSize, as_boxes, as_image_size, as_mask
from rpn_jax.ops.coding import encode_boxes
from rpn_jax.ops.matching import match_anchors
from rpn_jax.ops.sampling import sample_positions


class AnchorTargets(NamedTuple):
    """What the head must learn from one image.

    Attributes:
        labels: `[A]` int32: 1 positive, 0 negative, -1 not used; before sampling.
        sampled: `[A]` bool, the positives and negatives that enter the loss.
        boxes: `[A, 4]` float32 xyxy, the object of each positive that was sampled;
            else zeros.
        deltas: `[A, 4]` float32, that object coded against the anchor; else zeros.
        gt_iou: `[G]` float32, best IoU of each object with any anchor.
    """

    labels: Int[Array, " A"]
    sampled: Bool[Array, " A"]
    boxes: Float[Array, "A 4"]
    deltas: Float[Array, "A 4"]
    gt_iou: Float[Array, " G"]


def anchor_targets(
    key: jax.Array,
    anchors: ArrayLike,
    gt_boxes: ArrayLike,
    gt_valid: ArrayLike | None,
    image_size: ImageSize,
    *,
    gt_ignore: ArrayLike | None = None,
    high_threshold: float = 0.7,
    low_threshold: float = 0.3,
    low_quality: str = "label",
    low_quality_above: float = 0.0,
    ignore_threshold: float = 0.5,
    boundary: float = math.inf,
    boundary_first: bool = False,
    sample_size: int = 256,
    positive_fraction: float = 0.5,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> AnchorTargets:
    """Match anchors to objects, draw a balanced sample, code the offsets to learn.

    Args:
        key: a random key, for the sample.
        anchors: `[A, 4]` xyxy, pixels.
        gt_boxes: `[G, 4]` xyxy, pixels, padded.
        gt_valid: `[G]` bool, which boxes exist; None: all.
        image_size: `[2]` (height, width) of the image within its padding.
        gt_ignore: `[G]` bool, crowd or ignore regions among them.
        high_threshold: see `match_anchors`.
        low_threshold: see `match_anchors`.
        low_quality: see `match_anchors`.
        low_quality_above: see `match_anchors`.
        ignore_threshold: see `match_anchors`.
        boundary: anchors that leave the image by more pixels than this are not used.
            Infinite: all are used.
        boundary_first: they are left out before matching and so are no object's best,
            and a right or bottom edge may lie exactly on the boundary
            (py-faster-rcnn); else after matching, and it may not (detectron2).
        sample_size: anchors drawn; static.
        positive_fraction: the most that positives may take of them; static.
        weights: factors of (dx, dy, dw, dh).

    Returns:
        `AnchorTargets`, all finite. Ties, padding and ignore regions are as in
        `match_anchors`. A positive whose offsets are not finite, because its anchor
        has no area, is not sampled.

    Raises:
        ValueError: a shape, dtype or option is wrong.

    Reference:
        Ren et al., Faster R-CNN, NeurIPS 2015, sections 3.1.2 and 3.1.3.

    Example:
        >>> anchors = jnp.array([[0.0, 0, 10, 10], [50, 50, 60, 60]])
        >>> targets = anchor_targets(
        ...     jax.random.key(0), anchors, jnp.array([[1.0, 0, 11, 10]]), None,
        ...     (64, 64))
        >>> targets.labels, targets.deltas[0]
        (Array([1, 0], dtype=int32), Array([0.1, 0. , 0. , 0. ], dtype=float32))
    """
    anchors = as_boxes(anchors, "anchors", rank=2)
    gt_boxes = as_boxes(gt_boxes, "gt_boxes", rank=2)
    gt_valid = as_mask(gt_valid, gt_boxes.shape[:1], "gt_valid")
    usable = anchors_inside(anchors, image_size, boundary, touching=boundary_first)
    matches = match_anchors(
        anchors,
        gt_boxes,
        gt_valid,
        high_threshold=high_threshold,
        low_threshold=low_threshold,
        low_quality=low_quality,
        low_quality_above=low_quality_above,
        gt_ignore=gt_ignore,
        ignore_threshold=ignore_threshold,
        anchor_valid=usable if boundary_first else None,
    )
    labels = jnp.where(usable, matches.labels, -1)
    positive, negative = sample_positions(
        key, labels, size=sample_size, positive_fraction=positive_fraction
    )
    count, zeros = anchors.shape[0], jnp.zeros_like(anchors)

    def chosen(*places):
        """Mark the places; what lies outside is dropped."""
        drawn = jnp.concatenate(places)
        return jnp.zeros_like(usable).at[drawn].set(True, mode="drop")

    if gt_boxes.shape[0] == 0 or count == 0:
        sampled = chosen(positive, negative)
        return AnchorTargets(labels, sampled, zeros, zeros, matches.gt_iou)
    # Only the few positives that were drawn are coded; what stands for the others is
    # put nowhere.
    at = jnp.minimum(positive, count - 1)
    objects = gt_boxes[jnp.maximum(matches.gt_index[at], 0)]
    deltas = encode_boxes(objects, anchors[at], weights=weights)
    place = jnp.where(jnp.isfinite(deltas).all(axis=1), positive, count)
    return AnchorTargets(
        labels,
        chosen(place, negative),
        zeros.at[place].set(objects, mode="drop"),
        zeros.at[place].set(deltas, mode="drop"),
        matches.gt_iou,
    )


def anchors_inside(
    anchors, image_size, boundary: float, *, touching: bool
) -> jax.Array:
    """Tell which anchors stay within the image and `boundary` pixels around it."""
    if math.isinf(boundary):
        return anchors[:, 0] == anchors[:, 0]
    height, width = as_image_size(image_size)
    x1, y1, x2, y2 = (anchors[:, i] for i in range(4))
    short_of = jnp.less_equal if touching else jnp.less
    near = (x1 >= -boundary) & (y1 >= -boundary)
    return near & short_of(x2, width + boundary) & short_of(y2, height + boundary)


def batch_targets(
    key: jax.Array, anchors: jax.Array, batch: Batch, convention: Convention
) -> AnchorTargets:
    """Make the targets of every image of a batch; fields get a leading B.

    Image i draws its sample from fold_in(key, i), so that the draw does not depend on
    how the batch lies on devices. Nothing is sampled from an image of id -1, which
    only fills the batch.
    """

    def one(shared, index, size, boxes, valid, ignore):
        key, anchors = shared
        return anchor_targets(
            jax.random.fold_in(key, index),
            anchors,
            boxes,
            valid,
            size,
            gt_ignore=ignore,
            weights=convention.coding.weights,
            **options(convention.targets),
        )

    arrays = (batch.image_sizes, batch.boxes, batch.valid, batch.ignore)
    index, *rest = (jnp.arange(len(batch.boxes)), *(jnp.asarray(x) for x in arrays))
    targets = map_images(one, (key, anchors), index, *rest)
    real = jnp.asarray(batch.image_ids)[:, None] >= 0
    return targets._replace(sampled=targets.sampled & real)
