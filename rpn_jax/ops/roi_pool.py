"""RoIPool: the maximum of each bin of a box, as Fast R-CNN and VGG detectors use it."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rpn_jax.ops import _rois
from rpn_jax.ops._batching import image_by_image
from rpn_jax.ops._checks import as_boxes
from rpn_jax.ops._rois import Plan, RoIs, Taps

# In reading order, so that the first of equal cells stays.
BLOCK = (1, 4)


def roi_pool(
    features: ArrayLike,
    boxes: ArrayLike,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: ArrayLike,
    valid: ArrayLike | None = None,
) -> Float[Array, "R P Q C"]:
    """Pool the features under each box into bins by their maximum.

    The corners are rounded to cells (halves away from 0), both of which belong to the
    box; a bin begins at the cell in which its share begins and ends with the cell in
    which it ends, so that neighbours may share cells. Bins off the map are 0.

    Args:
        features: `[H, W, C]` real numbers of any precision, one image.
        boxes: `[R, 4]` xyxy, image pixels; may leave the image. They get no gradient.
        output_size: bins, one number or (P, Q); static.
        spatial_scale: cells per pixel, as 1 / 16.
        valid: `[R]` bool; boxes that are not valid, or not finite, give zeros.

    Returns:
        `[R, P, Q, C]` float32. The gradient goes to the cell of the maximum, of equal
        ones to the first in reading order; it is deterministic.

    Raises:
        ValueError: a shape or dtype is wrong.

    Reference:
        Girshick, Fast R-CNN, ICCV 2015; `torchvision.ops.roi_pool`.

    Example:
        >>> features = jnp.arange(16.0).reshape(4, 4, 1)
        >>> boxes = jnp.array([[0.0, 0.0, 3.0, 3.0]])
        >>> roi_pool(features, boxes, output_size=2, spatial_scale=1.0)[0, :, :, 0]
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """
    (features,) = _rois.as_maps((features,))
    plan = _rois.as_plan([features], output_size)
    boxes = as_boxes(boxes, "boxes", rank=2)

    def place(first, last):
        first, last = (
            lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO) for x in (first, last)
        )
        return first, jnp.maximum(last - first + 1, 1.0)

    rois = _rois.as_rois(
        boxes,
        jnp.zeros_like(boxes[:, 0], jnp.int32),
        valid,
        (spatial_scale,),
        plan.shapes,
        place,
    )
    return _pool(plan, _rois.as_cells([features], rois), rois)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool(plan: Plan, cells: jax.Array, rois: RoIs) -> jax.Array:
    return _pool_forward(plan, cells, rois)[0]


def _pool_forward(plan, cells, rois):
    return _rois.on_each(partial(_read, plan), cells, rois)


def _pool_backward(plan, where, gradient):
    total = lax.platform_dependent(
        where,
        gradient,
        cpu=image_by_image(partial(_add, plan)),
        default=partial(_compare, plan),
    )
    return total, None


_pool.defvjp(_pool_forward, _pool_backward)


def _read(plan: Plan, cells: jax.Array, rois: RoIs) -> tuple[jax.Array, jax.Array]:
    """Find the maximum of each bin and its cell, [R, P, Q, C]; 0 and -1 if none."""

    def compare(state, y, x):
        best, where = state
        for (row,), (column,) in product(y, x):
            index = _rois.cell_of(rois, row, column)
            value = cells.at[index].get(mode="promise_in_bounds")
            where = jnp.where(value > best, index[..., None], where)
            best = jnp.where(value > best, value, best)
        return best, where

    (rows, has_rows), (columns, has_columns) = (
        _bins(plan, rois, axis) for axis in (0, 1)
    )
    # Derived from both inputs, so that it varies over a mesh as they do.
    none = jnp.zeros_like(rois.start, shape=(len(rois.valid), *plan.bins, 1))
    none += jnp.zeros_like(cells[:1, None, None])
    start = none - jnp.inf, none.astype(jnp.int32) - 1
    best, where = _rois.fold_blocks(compare, start, rows, columns, BLOCK)
    some = (has_rows[:, :, None] & has_columns[:, None, :])[..., None]
    return jnp.where(some, best, 0.0), jnp.where(some, where, -1)


def _bins(plan: Plan, rois: RoIs, axis: int) -> tuple[Taps, jax.Array]:
    """Find the rows or columns of each bin, the last of them over and over.

    Also tells which bins have any, [R, bins].
    """
    start, size, length = (
        x[:, axis, None] for x in (rois.start, rois.size, rois.length)
    )
    size = _rois.divide(size, plan.bins[axis])
    k = jnp.arange(plan.bins[axis], dtype=jnp.float32)[None]
    first = jnp.clip(start + jnp.floor(k * size), 0, length)
    end = jnp.clip(start + jnp.ceil((k + 1) * size), 0, length)
    most = max(shape[axis] for shape in plan.shapes)
    most += -most % BLOCK[axis]
    cell = first[..., None] + jnp.arange(most, dtype=jnp.float32)[None, None]
    index = jnp.clip(cell, 0, jnp.maximum(end, 1)[..., None] - 1).astype(jnp.int32)
    count = jnp.where(rois.valid, (end - first).max(axis=1), 0).astype(jnp.int32)
    return Taps((index,), count), (end > first) & rois.valid[:, None]


def _add(plan: Plan, where: jax.Array, gradient: jax.Array) -> jax.Array:
    """Let one RoI after the other add to the cells of its maxima, [N, C]."""
    channels = gradient.shape[-1]

    def one(total, roi):
        where, gradient = roi
        gradient = jnp.where(where >= 0, gradient, 0.0)
        index = jnp.maximum(where, 0), jnp.arange(channels)[None, None]
        return total.at[index].add(gradient, mode="promise_in_bounds"), None

    none = jnp.zeros_like(gradient, shape=(plan.cells, channels))
    return lax.scan(one, none, (where, gradient))[0]


def _compare(plan: Plan, where: jax.Array, gradient: jax.Array) -> jax.Array:
    """Compute the same where additions to one cell have no fixed order.

    Each cell looks which bins have their maximum there.
    """
    cells = jnp.arange(plan.cells, dtype=jnp.int32)[:, None]

    def one(total, roi):
        where, gradient = (x[:, :, None] for x in roi)
        here = where == cells[None, None]
        return total + jnp.where(here, gradient, 0.0).sum(axis=(0, 1)), None

    none = jnp.zeros_like(gradient, shape=(plan.cells, gradient.shape[-1]))
    return lax.scan(one, none, (where, gradient))[0]
