"""Boxes: formats, area, clipping, and how much two boxes overlap.

Boxes are `[..., 4]` float32, `x1, y1, x2, y2` (xyxy), continuous: width = x2 - x1.
Shape legend: `N` and `M` boxes.

All overlap in the library goes through `iou_of_corners`. Its comparisons are
`where`, not `minimum` / `maximum`: no product then feeds a sum directly, so that a
compiler cannot contract the two into a fused multiply-add, and the IoU is the same
to the bit in every program, in NumPy and in torchvision (and IoU(a, b) = IoU(b, a)).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from rpn_jax.ops._checks import ImageSize, as_boxes, as_image_size, check_option


class Corners(NamedTuple):
    """Boxes taken apart, with their area; the form in which overlap is computed."""

    x1: jax.Array
    y1: jax.Array
    x2: jax.Array
    y2: jax.Array
    area: jax.Array


@jax.custom_jvp
def _least(a, b):
    return jnp.where(a < b, a, b)


@jax.custom_jvp
def _most(a, b):
    return jnp.where(a > b, a, b)


# Where both are equal each gets half of the slope, as from `minimum` and in the peers:
# the gradient of an IoU loss at its target is then 0.
_least.defjvp(lambda x, dx: (_least(*x), jax.jvp(jnp.minimum, x, dx)[1]))
_most.defjvp(lambda x, dx: (_most(*x), jax.jvp(jnp.maximum, x, dx)[1]))


def _clamp0(x):
    return jnp.where(x > 0, x, jnp.zeros_like(x))


def corners(boxes: jax.Array) -> Corners:
    """Take boxes [..., 4] apart into coordinates and area, each [...]."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return Corners(x1, y1, x2, y2, _clamp0((x2 - x1) * (y2 - y1)))


def pairs_of_corners(boxes1: jax.Array, boxes2: jax.Array) -> tuple[Corners, Corners]:
    """Corners of boxes [N, 4] as [N, 1] and of boxes [M, 4] as [1, M].

    The area of a box that is not finite is NaN, and so then is its IoU. Without this
    it is any number: comparisons lose a NaN, and each program loses another.
    """
    b1, b2 = (
        corners(x)._replace(
            area=jnp.where(jnp.isfinite(x).all(axis=-1), corners(x).area, jnp.nan)
        )
        for x in (boxes1, boxes2)
    )
    return Corners(*(x[:, None] for x in b1)), Corners(*(x[None, :] for x in b2))


def _pairs(boxes1, boxes2) -> tuple[Corners, Corners]:
    return pairs_of_corners(
        as_boxes(boxes1, "boxes1", rank=2), as_boxes(boxes2, "boxes2", rank=2)
    )


def intersection_of_corners(a: Corners, b: Corners) -> jax.Array:
    """Area that two boxes share, elementwise with broadcasting."""
    w = _clamp0(_least(a.x2, b.x2) - _most(a.x1, b.x1))
    h = _least(a.y2, b.y2) - _most(a.y1, b.y1)
    return _clamp0(w * h)


@jax.custom_jvp
def _divide(a, b):
    return a / b


@_divide.defjvp
def _divide_jvp(x, dx):
    # JAX multiplies by b^-2, which of boxes of 1e-10 pixels is infinite.
    ratio = x[0] / x[1]
    return ratio, (dx[0] - ratio * dx[1]) / x[1]


def _ratio(part, whole):
    """Return part / whole, and 0 where whole is 0 (empty boxes), NaN-free in grad."""
    return _divide(part, jnp.where(whole == 0, jnp.ones_like(whole), whole))


def iou_of_corners(a: Corners, b: Corners) -> jax.Array:
    """IoU, elementwise with broadcasting; 0 where the union is empty."""
    inter = intersection_of_corners(a, b)
    return _ratio(inter, (a.area + b.area) - inter)


def ioa_of_corners(a: Corners, b: Corners) -> jax.Array:
    """Share of b that lies in a, elementwise with broadcasting; 0 where b is empty."""
    # NaN where the area of a is; else 0 is added.
    return _ratio(intersection_of_corners(a, b), b.area) + (a.area - a.area)


def box_area(boxes: ArrayLike) -> Float[Array, "..."]:
    """Compute the area of boxes, 0 for those inverted in one direction.

    Args:
        boxes: `[..., 4]` xyxy, pixels.

    Returns:
        `[...]` float32, (x2 - x1)(y2 - y1), never below 0; of a box with a NaN 0.

    Example:
        >>> box_area(jnp.array([[0.0, 0.0, 4.0, 3.0]]))
        Array([12.], dtype=float32)
    """
    return corners(as_boxes(boxes, "boxes")).area


def box_convert(boxes: ArrayLike, in_fmt: str, out_fmt: str) -> Float[Array, "*n 4"]:
    """Convert boxes between xyxy, xywh (corner and size) and cxcywh (centre and size).

    Args:
        boxes: `[..., 4]` in the format `in_fmt`, any unit.
        in_fmt: "xyxy", "xywh" or "cxcywh".
        out_fmt: likewise.

    Returns:
        `[..., 4]` float32 in the format `out_fmt`.

    Raises:
        ValueError: the last dimension is not 4, or a format is unknown.

    Example:
        >>> box_convert(jnp.array([10.0, 20.0, 5.0, 6.0]), "xywh", "xyxy")
        Array([10., 20., 15., 26.], dtype=float32)
    """
    boxes = as_boxes(boxes, "boxes")
    formats = ("xyxy", "xywh", "cxcywh")
    check_option(in_fmt, formats, "in_fmt")
    check_option(out_fmt, formats, "out_fmt")
    if in_fmt == out_fmt:
        return boxes
    low, second = boxes[..., :2], boxes[..., 2:]
    if in_fmt == "xyxy":
        low, size = low, second - low
    else:
        low, size = (low - 0.5 * second if in_fmt == "cxcywh" else low), second
    if out_fmt == "xyxy":
        return jnp.concatenate([low, low + size], axis=-1)
    low = low + 0.5 * size if out_fmt == "cxcywh" else low
    return jnp.concatenate([low, size], axis=-1)


def clip_boxes_to_image(
    boxes: ArrayLike, image_size: ImageSize
) -> Float[Array, "*n 4"]:
    """Clip boxes to the image: x to [0, width], y to [0, height].

    Args:
        boxes: `[..., 4]` xyxy, pixels.
        image_size: `[2]` (height, width), pixels; may be traced.

    Returns:
        `[..., 4]` float32. NaN stays NaN.

    Example:
        >>> clip_boxes_to_image(jnp.array([-5.0, 2.0, 50.0, 9.0]), (20, 30))
        Array([ 0.,  2., 30.,  9.], dtype=float32)
    """
    boxes = as_boxes(boxes, "boxes")
    height, width = as_image_size(image_size)
    limit = jnp.stack([width, height, width, height])
    return jnp.clip(boxes, 0, jnp.broadcast_to(limit, boxes.shape))


def clip_decoded(boxes: jax.Array, image_size: ImageSize, inclusive: bool) -> jax.Array:
    """Clip decoded boxes; inclusive ones become continuous.

    Args:
        boxes: `[..., 4]` xyxy, pixels.
        image_size: `[2]` (height, width), pixels; may be traced.
        inclusive: x2, y2 are the last pixel inside and are clipped to W - 1, H - 1
            (py-faster-rcnn); 1 is added, for the edge behind it is 1 further.
    """
    if not inclusive:
        return clip_boxes_to_image(boxes, image_size)
    edge = jnp.array([0, 0, 1, 1], jnp.float32)
    return clip_boxes_to_image(boxes, as_image_size(image_size) - 1) + edge


def is_proper(boxes: jax.Array) -> Bool[Array, "..."]:
    """Tell which boxes are finite and have positive width and height."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return jnp.isfinite(boxes).all(-1) & (x2 > x1) & (y2 > y1)


def box_iou(boxes1: ArrayLike, boxes2: ArrayLike) -> Float[Array, "N M"]:
    """Compute the intersection over union of every pair of boxes.

    Args:
        boxes1: `[N, 4]` xyxy.
        boxes2: `[M, 4]` xyxy, same unit.

    Returns:
        `[N, M]` float32 in [0, 1]. Two empty boxes have IoU 0. On CPU equal to
        NumPy float32 and torchvision bit for bit. NaN where a box is not finite, or
        where areas overflow, as those of sides of 1e19 do. Inverted boxes overlap
        nothing.

    Raises:
        ValueError: an argument is not `[N, 4]`.

    Example:
        >>> a = jnp.array([[0.0, 0.0, 2.0, 2.0]])
        >>> box_iou(a, jnp.array([[1.0, 0.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]]))
        Array([[0.33333334, 0.        ]], dtype=float32)
    """
    return iou_of_corners(*_pairs(boxes1, boxes2))


def box_ioa(boxes1: ArrayLike, boxes2: ArrayLike) -> Float[Array, "N M"]:
    """Compute intersection over the area of the second box, for every pair.

    With crowd regions as `boxes1` it says how much of each anchor lies in a crowd.

    Args:
        boxes1: `[N, 4]` xyxy.
        boxes2: `[M, 4]` xyxy, same unit.

    Returns:
        `[N, M]` float32 in [0, 1]; 0 where the second box is empty, NaN as in
        `box_iou`.

    Example:
        >>> a = jnp.array([[0.0, 0.0, 2.0, 2.0]])
        >>> box_ioa(a, jnp.array([[1.0, 0.0, 3.0, 2.0]]))
        Array([[0.5]], dtype=float32)
    """
    return ioa_of_corners(*_pairs(boxes1, boxes2))


def _enclosing(a: Corners, b: Corners):
    """Width and height of the smallest box around both."""
    width = _most(a.x2, b.x2) - _least(a.x1, b.x1)
    height = _most(a.y2, b.y2) - _least(a.y1, b.y1)
    return width, height


def _centre_distance2(a: Corners, b: Corners):
    dx = (a.x1 + a.x2 - b.x1 - b.x2) / 2
    dy = (a.y1 + a.y2 - b.y1 - b.y2) / 2
    return dx * dx + dy * dy


def _aspect_term(a: Corners, b: Corners):
    """CIoU's v: how much the two aspect ratios differ, in [0, 1]."""

    def angle(box: Corners):
        # arctan2 is atan(w / h) without the division by 0. Its slope is 1 / size: sides
        # too small for that are 0, and a box without any has the angle of atan(0 / 1).
        w, h = box.x2 - box.x1, box.y2 - box.y1
        w, h = (jnp.where(x > 1e-9, x, jnp.zeros_like(x)) for x in (w, h))
        return jnp.arctan2(w, jnp.where((w == 0) & (h == 0), jnp.ones_like(h), h))

    return (4 / jnp.pi**2) * (angle(a) - angle(b)) ** 2


def generalized_box_iou(boxes1: ArrayLike, boxes2: ArrayLike) -> Float[Array, "N M"]:
    """Compute GIoU = IoU - (C - union) / C, C the area of the box around both.

    Args:
        boxes1: `[N, 4]` xyxy.
        boxes2: `[M, 4]` xyxy, same unit.

    Returns:
        `[N, M]` float32 in [-1, 1]; 0 for two equal empty boxes, NaN as in `box_iou`.
        Of an inverted box it is any number.

    Reference:
        Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.

    Example:
        >>> a = jnp.array([[0.0, 0.0, 1.0, 1.0]])
        >>> generalized_box_iou(a, jnp.array([[2.0, 0.0, 3.0, 1.0]]))
        Array([[-0.33333334]], dtype=float32)
    """
    a, b = _pairs(boxes1, boxes2)
    union = (a.area + b.area) - intersection_of_corners(a, b)
    width, height = _enclosing(a, b)
    around = _clamp0(width * height)
    return iou_of_corners(a, b) - _ratio(around - union, around)


def distance_box_iou(
    boxes1: ArrayLike, boxes2: ArrayLike, *, eps: float = 1e-7
) -> Float[Array, "N M"]:
    """Compute DIoU = IoU - (centre distance / diagonal around both)^2.

    Args:
        boxes1: `[N, 4]` xyxy.
        boxes2: `[M, 4]` xyxy, same unit.
        eps: added to the squared diagonal, as torchvision does.

    Returns:
        `[N, M]` float32 in [-1, 1]; NaN as in `box_iou`. Of an inverted box it is any
        number.

    Reference:
        Zheng et al., Distance-IoU Loss, AAAI 2020.

    Example:
        >>> a = jnp.array([[0.0, 0.0, 1.0, 1.0]])
        >>> distance_box_iou(a, jnp.array([[1.0, 0.0, 2.0, 1.0]]))
        Array([[-0.2]], dtype=float32)
    """
    a, b = _pairs(boxes1, boxes2)
    width, height = _enclosing(a, b)
    return iou_of_corners(a, b) - _centre_distance2(a, b) / (
        width * width + height * height + eps
    )


def complete_box_iou(
    boxes1: ArrayLike, boxes2: ArrayLike, *, eps: float = 1e-7
) -> Float[Array, "N M"]:
    """Compute CIoU = DIoU - alpha v, v the difference of the aspect ratios.

    v = 4 / pi^2 (atan(w1 / h1) - atan(w2 / h2))^2, alpha = v / (1 - IoU + v + eps).

    Args:
        boxes1: `[N, 4]` xyxy.
        boxes2: `[M, 4]` xyxy, same unit.
        eps: keeps the two divisions finite, as torchvision does.

    Returns:
        `[N, M]` float32; NaN as in `box_iou`. Of an inverted box it is any number.

    Reference:
        Zheng et al., Distance-IoU Loss, AAAI 2020.

    Example:
        >>> a = jnp.array([[0.0, 0.0, 1.0, 1.0]])
        >>> complete_box_iou(a, a)
        Array([[1.]], dtype=float32)
    """
    a, b = _pairs(boxes1, boxes2)
    v = _aspect_term(a, b)
    alpha = jax.lax.stop_gradient(v / (1 - iou_of_corners(a, b) + v + eps))
    return distance_box_iou(boxes1, boxes2, eps=eps) - alpha * v
