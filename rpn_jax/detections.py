"""Detections: class scores and boxes of RoIs, without duplicates."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from rpn_jax.conventions import RoIConvention
from rpn_jax.ops._batching import map_images
from rpn_jax.ops._checks import (
    ImageSize,
    as_boxes,
    as_float,
    as_image_size,
    as_mask,
    check_option,
)
from rpn_jax.ops.boxes import clip_decoded
from rpn_jax.ops.coding import MAX_LOG_SCALE, decode_boxes
from rpn_jax.ops.multiclass_nms import multiclass_nms


class Detections(NamedTuple):
    """Objects found, best first.

    Attributes:
        boxes: `[D, 4]` float32 xyxy, pixels of the network input, within the image;
            zeros where not valid.
        scores: `[D]` float32 probabilities; 0 where not valid.
        labels: `[D]` int32, classes from 0; -1 where not valid.
        valid: `[D]` bool.
    """

    boxes: Float[Array, "*b D 4"]
    scores: Float[Array, "*b D"]
    labels: Int[Array, "*b D"]
    valid: Bool[Array, "*b D"]


def generate_detections(
    boxes: ArrayLike,
    valid: ArrayLike | None,
    logits: ArrayLike,
    deltas: ArrayLike,
    image_size: ImageSize,
    *,
    background: str = "first",
    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
    max_log_scale: float = MAX_LOG_SCALE,
    score_threshold: ArrayLike = 0.05,
    inclusive: bool = False,
    min_size: ArrayLike = 0.0,
    nms_threshold: ArrayLike = 0.5,
    max_detections: int = 100,
) -> Detections:
    """Turn the second stage's outputs for one image into detections.

    Each RoI gives a box for each class: the class's deltas applied, clipped to the
    image. Boxes of too low a score or too small are dropped; NMS runs within each
    class; the best of all classes are kept.

    Args:
        boxes: `[K, 4]` xyxy RoIs, pixels of the network input.
        valid: `[K]` bool, which RoIs exist; None: all.
        logits: `[K, C + 1]`, of C classes and the background.
        deltas: `[K, C or C + 1, 4]`; with C + 1 the background's are not used.
        image_size: `[2]` (height, width) of the image within its padding.
        background: "first" or "last" among the classes.
        weights: factors of (dx, dy, dw, dh).
        max_log_scale: see `decode_boxes`.
        score_threshold: a probability (softmax) must exceed it.
        inclusive: decoded x2, y2 are the last pixel inside and are clipped to W - 1,
            H - 1 (py-faster-rcnn); 1 is added to make them continuous.
        min_size: least width and height after clipping, pixels.
        nms_threshold: IoU above which NMS suppresses.
        max_detections: D; static.

    Returns:
        `Detections`, by descending score, ties to the lower RoI, then the lower class.
        Dropped are RoIs that are not finite, whose greatest logit is not, or of which a
        logit is NaN; and boxes whose deltas are not finite, or they themselves before
        they are clipped.
        Boxes and scores are differentiable, the choice is not; the gradient of what is
        dropped is 0.

    Raises:
        ValueError: a shape, dtype or option is wrong.

    Reference:
        Girshick, Fast R-CNN, ICCV 2015; torchvision `postprocess_detections`,
        detectron2 `fast_rcnn_inference`.

    Example:
        >>> rois = jnp.array([[0.0, 0, 10, 10], [1, 0, 11, 10]])
        >>> logits = jnp.array([[0.0, 3, 0], [0, 2, 0]])  # background, two classes
        >>> found = generate_detections(
        ...     rois, None, logits, jnp.zeros((2, 2, 4)), (20, 20), max_detections=2)
        >>> found.labels, found.boxes[0]
        (Array([0, 1], dtype=int32), Array([ 0.,  0., 10., 10.], dtype=float32))
    """
    check_option(background, ("first", "last"), "background")
    boxes = as_boxes(boxes, "boxes", rank=2)
    valid = as_mask(valid, boxes.shape[:1], "valid")
    logits, deltas = as_float(logits, "logits"), as_boxes(deltas, "deltas", rank=3)
    count = boxes.shape[0]
    if logits.ndim != 2 or logits.shape[0] != count or logits.shape[1] < 2:
        raise ValueError(
            f"logits must be [{count}, classes + 1], got shape {logits.shape}"
        )
    classes = logits.shape[1] - 1
    if deltas.shape[:2] not in ((count, classes), (count, classes + 1)):
        raise ValueError(
            f"deltas must be [{count}, {classes} or {classes + 1}, 4], got shape "
            f"{deltas.shape}"
        )
    if count == 0:
        zeros = jnp.zeros((max_detections, 4)), jnp.zeros(max_detections)
        none = jnp.full(max_detections, -1, jnp.int32)
        return Detections(*zeros, none, none >= 0)
    without = slice(1, None) if background == "first" else slice(classes)
    valid &= jnp.isfinite(logits.max(axis=-1)) & jnp.isfinite(boxes).all(axis=-1)
    # What takes no part becomes zeros, here and below: the slope at NaN is NaN.
    boxes = jnp.where(valid[:, None], boxes, 0.0)
    scores = jax.nn.softmax(jnp.where(valid[:, None], logits, 0.0))[:, without]
    if deltas.shape[1] != classes:
        deltas = deltas[:, without]
    known = jnp.isfinite(deltas).all(axis=-1)
    boxes = decode_boxes(
        jnp.where(known[..., None], deltas, 0.0),
        jnp.broadcast_to(boxes[:, None], deltas.shape),
        weights=weights,
        max_log_scale=max_log_scale,
    )
    known &= jnp.isfinite(boxes).all(axis=-1)
    boxes = clip_decoded(boxes, as_image_size(image_size), inclusive)
    large = (boxes[..., 2:] - boxes[..., :2] >= min_size).all(axis=-1) & known
    kept = multiclass_nms(
        boxes,
        jnp.where(large, scores, -math.inf),
        iou_threshold=nms_threshold,
        max_outputs=max_detections,
        score_threshold=score_threshold,
        valid=valid,
    )
    of, label = jnp.maximum(kept.indices, 0), jnp.maximum(kept.classes, 0)
    return Detections(
        jnp.where(kept.valid[:, None], boxes[of, label], 0.0),
        jnp.where(kept.valid, scores[of, label], 0.0),
        kept.classes,
        kept.valid,
    )


def batch_detections(
    boxes: jax.Array,
    valid: jax.Array,
    logits: jax.Array,
    deltas: jax.Array,
    image_sizes: ArrayLike,
    rules: RoIConvention,
) -> Detections:
    """Make the detections of every image of a batch; fields get a leading B.

    Args:
        boxes: `[B, K, 4]` xyxy RoIs.
        valid: `[B, K]` bool.
        logits: `[B, K, C + 1]`.
        deltas: `[B, K, C or C + 1, 4]`.
        image_sizes: `[B, 2]` (height, width) of the images' content.
        rules: how.
    """

    def one(_, *arrays):
        return generate_detections(
            *arrays,
            background=rules.background,
            weights=rules.weights,
            max_log_scale=rules.max_log_scale,
            score_threshold=rules.score_threshold,
            inclusive=rules.inclusive,
            min_size=rules.min_size,
            nms_threshold=rules.nms_threshold,
            max_detections=rules.max_detections,
        )

    sizes = jnp.asarray(image_sizes)
    return map_images(one, None, boxes, valid, logits, deltas, sizes)
