"""What a detector's second stage must learn: RoIs drawn, labelled and coded."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from rpn_jax.batch import Batch
from rpn_jax.conventions import Convention
from rpn_jax.ops._batching import map_images
from rpn_jax.ops._checks import as_boxes, as_mask, check_shape
from rpn_jax.ops.boxes import is_proper
from rpn_jax.ops.coding import encode_boxes
from rpn_jax.ops.matching import match_anchors
from rpn_jax.ops.sampling import sample_positions


class RoITargets(NamedTuple):
    """RoIs to train on and what they are.

    Attributes:
        boxes: `[S, 4]` float32 xyxy; zeros where not valid.
        labels: `[S]` int32, class of the object; -1 for background and padding.
        deltas: `[S, 4]` float32, the object coded against the RoI; zeros without one.
        valid: `[S]` bool.
    """

    boxes: Float[Array, "S 4"]
    labels: Int[Array, " S"]
    deltas: Float[Array, "S 4"]
    valid: Bool[Array, " S"]


def roi_targets(
    key: jax.Array,
    boxes: ArrayLike,
    valid: ArrayLike | None,
    gt_boxes: ArrayLike,
    gt_labels: ArrayLike,
    gt_valid: ArrayLike | None,
    gt_ignore: ArrayLike | None = None,
    *,
    iou_threshold: ArrayLike = 0.5,
    ignore_threshold: ArrayLike = 0.5,
    sample_size: int = 512,
    positive_fraction: float = 0.25,
    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
) -> RoITargets:
    """Draw RoIs of one image from its proposals and its objects.

    The objects are added to the proposals, so that there are good RoIs from the first
    step on. A RoI whose best IoU with an object reaches `iou_threshold` is of that
    object's class, any other is background.

    Args:
        key: a random key, for the sample.
        boxes: `[K, 4]` xyxy proposals, pixels, padded. Those that are not finite count
            as not valid, and so do objects without area.
        valid: `[K]` bool, which proposals exist; None: all.
        gt_boxes: `[G, 4]` xyxy, pixels, padded.
        gt_labels: `[G]` integers, classes from 0.
        gt_valid: `[G]` bool, which objects exist; None: all.
        gt_ignore: `[G]` bool, crowd or ignore regions among them: no RoIs themselves.
        iou_threshold: see above.
        ignore_threshold: RoIs on no object that lie in an ignore region by this share
            of their area are not drawn.
        sample_size: RoIs drawn at most; static.
        positive_fraction: the most that RoIs on objects may take of them; static.
        weights: factors of (dx, dy, dw, dh).

    Returns:
        `RoITargets`, S the smaller of `sample_size` and K + G: RoIs on objects first,
        then background, then padding. Ties and padding are as in `match_anchors`.

    Raises:
        ValueError: a shape, dtype or option is wrong, or K + G is 0.

    Reference:
        Ren et al., Faster R-CNN, NeurIPS 2015; torchvision `select_training_samples`.

    Example:
        >>> proposals = jnp.array([[0.0, 0, 10, 9], [50, 50, 60, 60]])
        >>> targets = roi_targets(
        ...     jax.random.key(0), proposals, None, jnp.array([[0.0, 0, 10, 10]]),
        ...     jnp.array([3]), None, positive_fraction=1.0)
        >>> targets.labels  # a proposal and the object itself, and background
        Array([ 3,  3, -1], dtype=int32)
    """
    boxes = as_boxes(boxes, "boxes", rank=2)
    gt_boxes = as_boxes(gt_boxes, "gt_boxes", rank=2)
    valid = as_mask(valid, boxes.shape[:1], "valid")
    gt_valid = as_mask(gt_valid, gt_boxes.shape[:1], "gt_valid")
    ignore = as_mask(
        jnp.zeros_like(gt_valid) if gt_ignore is None else gt_ignore,
        gt_boxes.shape[:1],
        "gt_ignore",
    )
    gt_labels = check_shape(jnp.asarray(gt_labels), gt_valid.shape, "gt_labels")
    boxes = jnp.concatenate([jax.lax.stop_gradient(boxes), gt_boxes])
    gt_valid &= is_proper(gt_boxes)
    valid = jnp.concatenate([valid, gt_valid & ~ignore])
    valid &= jnp.isfinite(boxes).all(axis=-1)
    matches = match_anchors(
        boxes,
        gt_boxes,
        gt_valid,
        high_threshold=iou_threshold,
        low_threshold=iou_threshold,
        low_quality="off",
        gt_ignore=ignore,
        ignore_threshold=ignore_threshold,
        anchor_valid=valid,
    )
    count = boxes.shape[0]
    if count == 0:
        raise ValueError("boxes and gt_boxes must hold one row at least, got none")
    size = min(sample_size, count)
    drawn = jnp.concatenate(
        sample_positions(
            key, matches.labels, size=sample_size, positive_fraction=positive_fraction
        )
    )
    # What is absent lies outside, and goes to the end.
    absent = drawn >= count
    index = drawn[jnp.argsort(absent, stable=True)][:size]
    valid, index = index < count, jnp.minimum(index, count - 1)

    rois = jnp.where(valid[:, None], boxes[index], 0.0)
    positive = valid & (matches.labels[index] == 1)
    if gt_boxes.shape[0] == 0:
        nothing = jnp.where(valid, -1, -1).astype(jnp.int32)
        return RoITargets(rois, nothing, jnp.zeros_like(rois), valid)
    of = jnp.maximum(matches.gt_index[index], 0)
    objects = jnp.where(positive[:, None], gt_boxes[of], 0.0)
    deltas = encode_boxes(objects, rois, weights=weights)
    # A RoI without area can be no object's unless the threshold is 0.
    positive &= jnp.isfinite(deltas).all(axis=1)
    return RoITargets(
        rois,
        jnp.where(positive, gt_labels[of], -1).astype(jnp.int32),
        jnp.where(positive[:, None], deltas, 0.0),
        valid,
    )


def batch_roi_targets(
    key: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    batch: Batch,
    convention: Convention,
) -> RoITargets:
    """Draw the RoIs of every image of a batch; fields get a leading B.

    Image i draws from fold_in(key, i). Nothing is drawn from an image of id -1, which
    only fills the batch.

    Args:
        key: for the samples.
        boxes: `[B, K, 4]` xyxy proposals.
        valid: `[B, K]` bool.
        batch: images and objects.
        convention: how.
    """
    rules = convention.roi

    def one(key, index, boxes, valid, gt_boxes, gt_labels, gt_valid, gt_ignore):
        return roi_targets(
            jax.random.fold_in(key, index),
            boxes,
            valid,
            gt_boxes,
            gt_labels,
            gt_valid,
            gt_ignore,
            iou_threshold=rules.iou_threshold,
            ignore_threshold=convention.targets.ignore_threshold,
            sample_size=rules.sample_size,
            positive_fraction=rules.positive_fraction,
            weights=rules.weights,
        )

    real = jnp.asarray(batch.image_ids)[:, None] >= 0
    objects = (batch.boxes, batch.labels, real & batch.valid, batch.ignore)
    objects = [jnp.asarray(x) for x in objects]
    index = jnp.arange(len(boxes))
    return map_images(one, key, index, boxes, valid & real, *objects)
