"""Coding: a box as four offsets from an anchor, and back.

    tx = (x - xa) / wa    ty = (y - ya) / ha    tw = log(w / wa)    th = log(h / ha)

with centres (x, y) and sides (w, h); each offset is multiplied by its weight.
"""

import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rpn_jax.ops._checks import as_boxes

MAX_LOG_SCALE = math.log(1000 / 16)
LARGEST = 80.0  # exp of it is 5e34, finite in float32 and beyond any image


def _check_weights(weights):
    if len(weights) != 4:
        raise ValueError(f"weights must be (dx, dy, dw, dh), got {weights}")


def _centre_and_size(boxes):
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


def encode_boxes(
    boxes: ArrayLike,
    anchors: ArrayLike,
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*n 4"]:
    """Encode boxes as offsets from anchors.

    Args:
        boxes: `[..., 4]` xyxy, pixels, of positive width and height.
        anchors: `[..., 4]` xyxy, pixels, likewise; shapes must be equal.
        weights: factors of (dx, dy, dw, dh).

    Returns:
        `[..., 4]` float32 deltas (dx, dy, dw, dh). A box without area gives -inf,
        an anchor without area NaN or inf, and so do ratios of sides that float32 does
        not hold: mask such rows first.

    Raises:
        ValueError: the last dimension is not 4 or the shapes differ.

    Reference:
        Girshick et al., R-CNN, CVPR 2014, appendix C.

    Example:
        >>> anchor = jnp.array([0.0, 0.0, 10.0, 10.0])
        >>> encode_boxes(jnp.array([5.0, 0.0, 15.0, 10.0]), anchor)
        Array([0.5, 0. , 0. , 0. ], dtype=float32)
    """
    boxes, anchors = as_boxes(boxes, "boxes"), as_boxes(anchors, "anchors")
    if boxes.shape != anchors.shape:
        raise ValueError(
            f"boxes and anchors must have one shape, got {boxes.shape}, {anchors.shape}"
        )
    _check_weights(weights)
    x, y, w, h = _centre_and_size(boxes)
    xa, ya, wa, ha = _centre_and_size(anchors)
    deltas = (x - xa) / wa, (y - ya) / ha, jnp.log(w / wa), jnp.log(h / ha)
    return jnp.stack([f * d for f, d in zip(weights, deltas, strict=True)], axis=-1)


def decode_boxes(
    deltas: ArrayLike,
    anchors: ArrayLike,
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    max_log_scale: float = MAX_LOG_SCALE,
) -> Float[Array, "*n 4"]:
    """Decode offsets from anchors into boxes; the inverse of `encode_boxes`.

    Args:
        deltas: `[..., 4]` (dx, dy, dw, dh).
        anchors: `[..., 4]` xyxy, pixels, of the same shape.
        weights: factors of (dx, dy, dw, dh), divided out here.
        max_log_scale: dw and dh are clamped to it from above (not from below), so
            that exp stays finite; the default is log(1000 / 16) as in torchvision and
            detectron2, `math.inf` is as good as no clamp: 80, beyond any image.

    Returns:
        `[..., 4]` float32 xyxy boxes, not clipped to any image. A box that lies beyond
        what float32 holds is infinite or NaN.

    Raises:
        ValueError: the last dimension is not 4 or the shapes differ.

    Reference:
        Girshick et al., R-CNN, CVPR 2014, appendix C.

    Example:
        >>> anchor = jnp.array([0.0, 0.0, 10.0, 10.0])
        >>> decode_boxes(jnp.array([0.5, 0.0, 0.0, 0.0]), anchor)
        Array([ 5.,  0., 15., 10.], dtype=float32)
    """
    deltas, anchors = as_boxes(deltas, "deltas"), as_boxes(anchors, "anchors")
    if deltas.shape != anchors.shape:
        raise ValueError(
            f"deltas and anchors must have one shape, got {deltas.shape}, "
            f"{anchors.shape}"
        )
    _check_weights(weights)
    dx, dy, dw, dh = (deltas[..., i] / weights[i] for i in range(4))
    xa, ya, wa, ha = _centre_and_size(anchors)
    x, y = dx * wa + xa, dy * ha + ya
    most = min(max_log_scale, LARGEST)
    w = jnp.exp(jnp.minimum(dw, most)) * wa
    h = jnp.exp(jnp.minimum(dh, most)) * ha
    return jnp.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], axis=-1)
