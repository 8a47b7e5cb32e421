"""Losses of the proposal network: objectness, box regression, and their normalisers.

Shape legend: `B` images, `A` anchors. Everything is float32, or float64 where the
network's outputs are, which needs `jax_enable_x64`. Losses and gradients are finite for
numbers up to 1e30, and for boxes, empty and inverted ones too, up to 1e18; beyond, what
overflows is infinite or NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rpn_jax.ops._checks import as_boxes, as_real, check_option, check_shape
from rpn_jax.ops.boxes import (
    Corners,
    _aspect_term,
    _centre_distance2,
    _enclosing,
    corners,
    intersection_of_corners,
)

NORMALIZERS = ("sampled", "batch_size")


class RPNLosses(NamedTuple):
    """The two parts of the loss, each a float32 scalar.

    Attributes:
        objectness: classification of the sampled anchors.
        box: regression of the sampled positives; exactly 0 without any.
    """

    objectness: Float[Array, ""]
    box: Float[Array, ""]


def sigmoid_objectness_loss(
    logits: ArrayLike, labels: ArrayLike
) -> Float[Array, "..."]:
    """Compute binary cross-entropy, one logit an anchor, elementwise.

    -log p where the label is 1 and -log(1 - p) elsewhere, p = sigmoid(logit).

    Args:
        logits: `[...]` real numbers.
        labels: `[...]` integers; 1 is foreground, all else background.

    Returns:
        `[...]` float32, not reduced.

    Example:
        >>> sigmoid_objectness_loss(jnp.array([0.0]), jnp.array([1]))
        Array([0.6931472], dtype=float32)
    """
    logits, labels = as_real(logits, "logits"), jnp.asarray(labels)
    check_shape(labels, logits.shape, "labels")
    signed = jnp.where(labels == 1, logits, -logits)
    return jax.nn.softplus(-signed)


def softmax_objectness_loss(
    logits: ArrayLike, labels: ArrayLike
) -> Float[Array, "..."]:
    """Compute cross-entropy with two logits an anchor, elementwise.

    Args:
        logits: `[..., 2]` (background, foreground).
        labels: `[...]` integers; 1 is foreground, all else background.

    Returns:
        `[...]` float32, not reduced.

    Example:
        >>> softmax_objectness_loss(jnp.array([[0.0, 0.0]]), jnp.array([1]))
        Array([0.6931472], dtype=float32)
    """
    return sigmoid_objectness_loss(foreground_logit(logits), labels)


def foreground_logit(logits: ArrayLike) -> jax.Array:
    """Turn (background, foreground) logits [..., 2] into the one of a sigmoid [...].

    softmax(bg, fg)_fg = sigmoid(fg - bg): one form serves both heads.
    """
    logits = as_real(logits, "logits")
    if logits.ndim == 0 or logits.shape[-1] != 2:
        raise ValueError(f"logits must be [..., 2], got shape {logits.shape}")
    return logits[..., 1] - logits[..., 0]


def smooth_l1_loss(
    predictions: ArrayLike, targets: ArrayLike, *, beta: float = 1 / 9
) -> Float[Array, "..."]:
    """Compute smooth-L1: d^2 / (2 beta) below beta and |d| - beta / 2 above.

    Args:
        predictions: `[...]` real numbers.
        targets: `[...]` of the same shape.
        beta: where the square becomes a line; 0 is plain L1. Static.

    Returns:
        `[...]` float32, not reduced.

    Raises:
        ValueError: the shapes differ or beta is negative.

    Reference:
        Girshick, Fast R-CNN, ICCV 2015 (there sigma^2 = 1 / beta).

    Example:
        >>> smooth_l1_loss(jnp.array([0.1, 3.0]), jnp.zeros(2), beta=1.0)
        Array([0.005, 2.5  ], dtype=float32)
    """
    if beta < 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    predictions = as_real(predictions, "predictions")
    targets = check_shape(as_real(targets, "targets"), predictions.shape, "targets")
    size = jnp.abs(predictions - targets)
    if beta == 0:
        # The slope of |x| at 0 is 1 in JAX; at the target it has to be 0.
        return jnp.where(size == 0, jnp.zeros_like(size), size)
    return jnp.where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta)


def _paired(boxes, targets) -> tuple[Corners, Corners]:
    boxes, targets = as_boxes(boxes, "boxes"), as_boxes(targets, "targets")
    check_shape(targets, boxes.shape, "targets")
    return corners(boxes), corners(targets)


def _iou_with_eps(a: Corners, b: Corners, eps: float):
    """IoU as the peers' losses compute it, and the union."""
    inter = intersection_of_corners(a, b)
    union = (a.area + b.area) - inter
    return inter / (union + eps), union


def _distance_term(a: Corners, b: Corners, eps: float):
    width, height = _enclosing(a, b)
    return _centre_distance2(a, b) / (width * width + height * height + eps)


def giou_loss(
    boxes: ArrayLike, targets: ArrayLike, *, eps: float = 1e-7
) -> Float[Array, "..."]:
    """Compute 1 - GIoU of boxes and their targets, elementwise.

    Args:
        boxes: `[..., 4]` xyxy.
        targets: `[..., 4]` xyxy, same unit.
        eps: keeps the divisions finite.

    Returns:
        `[...]` float32 in [0, 2], not reduced.

    Reference:
        Rezatofighi et al., CVPR 2019; torchvision.ops.generalized_box_iou_loss.

    Example:
        >>> box = jnp.array([0.0, 0.0, 2.0, 2.0])
        >>> round(float(giou_loss(box, box + jnp.array([2.0, 0.0, 2.0, 0.0]))), 4)
        1.0
    """
    a, b = _paired(boxes, targets)
    iou, union = _iou_with_eps(a, b, eps)
    width, height = _enclosing(a, b)
    around = width * height
    return 1 - iou + (around - union) / (around + eps)


def diou_loss(
    boxes: ArrayLike, targets: ArrayLike, *, eps: float = 1e-7
) -> Float[Array, "..."]:
    """Compute 1 - DIoU of boxes and their targets, elementwise.

    Args:
        boxes: `[..., 4]` xyxy.
        targets: `[..., 4]` xyxy, same unit.
        eps: keeps the divisions finite.

    Returns:
        `[...]` float32 in [0, 2], not reduced.

    Reference:
        Zheng et al., AAAI 2020; torchvision.ops.distance_box_iou_loss.

    Example:
        >>> box = jnp.array([0.0, 0.0, 2.0, 2.0])
        >>> round(float(diou_loss(box, box + jnp.array([2.0, 0.0, 2.0, 0.0]))), 4)
        1.2
    """
    a, b = _paired(boxes, targets)
    return 1 - _iou_with_eps(a, b, eps)[0] + _distance_term(a, b, eps)


def ciou_loss(
    boxes: ArrayLike, targets: ArrayLike, *, eps: float = 1e-7
) -> Float[Array, "..."]:
    """Compute 1 - CIoU of boxes and their targets, elementwise.

    The trade-off alpha is a constant for the gradient, as in the paper.

    Args:
        boxes: `[..., 4]` xyxy.
        targets: `[..., 4]` xyxy, same unit.
        eps: keeps the divisions finite.

    Returns:
        `[...]` float32, not reduced.

    Reference:
        Zheng et al., AAAI 2020; torchvision.ops.complete_box_iou_loss.

    Example:
        >>> box = jnp.array([0.0, 0.0, 2.0, 2.0])
        >>> round(float(ciou_loss(box, box + jnp.array([2.0, 0.0, 2.0, 0.0]))), 4)
        1.2
    """
    a, b = _paired(boxes, targets)
    iou = _iou_with_eps(a, b, eps)[0]
    v = _aspect_term(a, b)
    alpha = jax.lax.stop_gradient(v / (1 - iou + v + eps))
    return 1 - iou + _distance_term(a, b, eps) + alpha * v


def rpn_losses(
    objectness: ArrayLike,
    box: ArrayLike,
    labels: ArrayLike,
    sampled: ArrayLike,
    *,
    normalizer: str = "sampled",
    batch_size: int = 256,
    axis_name: str | None = None,
) -> RPNLosses:
    """Reduce the losses of all anchors of a batch to the two parts of the RPN loss.

    The objectness of sampled anchors and the box loss of sampled positives are summed
    over the batch and divided by one number: with "sampled" the number of sampled
    anchors in the batch (torchvision, py-faster-rcnn), with "batch_size" the constant
    `batch_size` * images (detectron2). Under `jit` on a sharded batch the sums are
    those of the whole batch; inside `shard_map` or `pmap` name the axis.

    Args:
        objectness: `[B, A]` loss of each anchor.
        box: `[B, A]` loss of each anchor, its four offsets summed.
        labels: `[B, A]` integers; 1 marks positives.
        sampled: `[B, A]` bool.
        normalizer: "sampled" or "batch_size".
        batch_size: anchors an image for "batch_size".
        axis_name: mesh axis over which the batch is split, if mapped over by hand.

    Returns:
        `RPNLosses`. With nothing sampled both are 0, and so are their gradients,
        whatever the losses of the other anchors hold.

    Raises:
        ValueError: the shapes differ or `normalizer` is unknown.

    Example:
        >>> ones = jnp.ones((1, 4))
        >>> losses = rpn_losses(
        ...     ones, ones, jnp.array([[1, 0, 0, 0]]),
        ...     jnp.array([[True, True, False, False]]))
        >>> float(losses.objectness), float(losses.box)
        (1.0, 0.5)
    """
    check_option(normalizer, NORMALIZERS, "normalizer")
    objectness, box = as_real(objectness, "objectness"), as_real(box, "box")
    labels, sampled = jnp.asarray(labels), jnp.asarray(sampled)
    for name, x in {"box": box, "labels": labels, "sampled": sampled}.items():
        check_shape(x, objectness.shape, name)
    zero = jnp.zeros_like(objectness)
    sums = (
        jnp.where(sampled, objectness, zero).sum(),
        jnp.where(sampled & (labels == 1), box, zero).sum(),
        sampled.sum().astype(jnp.float32),
        jnp.float32(batch_size * objectness.shape[0]),
    )
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    count = jnp.maximum(sums[2], 1) if normalizer == "sampled" else sums[3]
    return RPNLosses(sums[0] / count, sums[1] / count)
