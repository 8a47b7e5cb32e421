"""RoIAlign: features of fixed size for each box, interpolated, exact for any box.

Interpolation and averaging are separable: a bin is the sum over its taps of
`wy[a] * wx[b] * features[y[a], x[b]]`. With a fixed number of samples the taps are the
two cells beside each sample. With as many samples as the size asks for, at most one
cell apart, they are all cells that the bin covers; a cell's weight is then the sum over
the few samples near it, so that a RoI may be many times larger than the map.

The gradient of the features is the transposed sum. On CPU each RoI in turn adds to the
cells that it read. Elsewhere additions to the same cell have no fixed order; there it
is a matmul with dense weights, `wy^T @ gradient @ wx`.
"""

from collections.abc import Sequence
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

# Taps of the rows and of the columns that are read at a time.
BLOCK = (4, 4)
# RoIs that a matmul of the gradient takes at a time.
CHUNK = 64


def roi_align(
    features: ArrayLike,
    boxes: ArrayLike,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: ArrayLike,
    sampling_ratio: int,
    aligned: bool,
    valid: ArrayLike | None = None,
) -> Float[Array, "R P Q C"]:
    """Pool the features under each box into bins by averages of bilinear samples.

    A box is cut into P x Q bins. A bin is the average of evenly spaced samples; a
    sample is interpolated between the centres of four cells. Samples more than a cell
    before the first centre, or after the last, are 0; between, the nearest cell counts.

    Args:
        features: `[H, W, C]` real numbers of any precision, one image. A cell that is
            not finite may spoil the bins of any box.
        boxes: `[R, 4]` xyxy, image pixels; may leave the image. They get no gradient.
        output_size: bins, one number or (P, Q); static.
        spatial_scale: cells per pixel, as 1 / 16.
        sampling_ratio: samples of a bin in each axis; 0 for ceil(box / bins), so that
            they lie at most one cell apart; static.
        aligned: True: pixel 0 begins half a cell before the first centre. False, as
            first published: it begins there, and boxes have a side of a cell at least.
        valid: `[R]` bool; boxes that are not valid, or not finite, give zeros.

    Returns:
        `[R, P, Q, C]` float32. The gradient of the features is deterministic.

    Raises:
        ValueError: a shape, dtype or option is wrong.

    Reference:
        He et al., Mask R-CNN, ICCV 2017; `torchvision.ops.roi_align`.

    Example:
        >>> features = jnp.arange(16.0).reshape(4, 4, 1)
        >>> roi_align(features, jnp.array([[0.0, 0.0, 8.0, 8.0]]), output_size=2,
        ...           spatial_scale=0.5, sampling_ratio=2, aligned=True)[0, :, :, 0]
        Array([[ 2.5,  4.5],
               [10.5, 12.5]], dtype=float32)
    """
    boxes = as_boxes(boxes, "boxes", rank=2)
    levels = jnp.zeros_like(boxes[:, 0], jnp.int32)
    return multilevel_roi_align(
        (features,),
        boxes,
        levels,
        output_size=output_size,
        spatial_scales=(spatial_scale,),
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        valid=valid,
    )


def multilevel_roi_align(
    features: Sequence[ArrayLike],
    boxes: ArrayLike,
    levels: ArrayLike,
    *,
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[ArrayLike],
    sampling_ratio: int,
    aligned: bool,
    valid: ArrayLike | None = None,
) -> Float[Array, "R P Q C"]:
    """Pool the features under each box, each from its own level of a pyramid.

    A box costs as much as `roi_align` of its level alone.

    Args:
        features: maps `[H, W, C]` of one image, one for each level.
        boxes: `[R, 4]` xyxy, image pixels.
        levels: `[R]` integers into features, as of `assign_levels`; a box with any
            other gives zeros.
        output_size: bins, one number or (P, Q); static.
        spatial_scales: cells per pixel of each map, as (1 / 4, 1 / 8, 1 / 16, 1 / 32).
        sampling_ratio: as of `roi_align`.
        aligned: as of `roi_align`.
        valid: `[R]` bool; boxes that are not valid, or not finite, give zeros.

    Returns:
        `[R, P, Q, C]` float32.

    Raises:
        ValueError: a shape, dtype or option is wrong.

    Reference:
        Lin et al., Feature Pyramid Networks, CVPR 2017, section 4.2.

    Example:
        >>> maps = jnp.ones((4, 4, 1)), 2 * jnp.ones((2, 2, 1))
        >>> boxes = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 16.0, 16.0]])
        >>> multilevel_roi_align(
        ...     maps, boxes, jnp.array([0, 1]), output_size=1,
        ...     spatial_scales=(1 / 4, 1 / 8), sampling_ratio=2, aligned=True).ravel()
        Array([1., 2.], dtype=float32)
    """
    maps = _rois.as_maps(features)
    if len(spatial_scales) != len(maps):
        raise ValueError(
            "spatial_scales must hold a number for each map, "
            f"got {len(spatial_scales)} for {len(maps)}"
        )
    if sampling_ratio < 0:
        raise ValueError(f"sampling_ratio must be at least 0, got {sampling_ratio}")
    plan = _rois.as_plan(maps, output_size, sampling_ratio)

    def place(first, last):
        shift, least = (0.5, 0.0) if aligned else (0.0, 1.0)
        start, end = first - shift, last - shift
        return start, jnp.maximum(end - start, least)

    rois = _rois.as_rois(boxes, levels, valid, spatial_scales, plan.shapes, place)
    return _pool(plan, _rois.as_cells(maps, rois), rois)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool(plan: Plan, cells: jax.Array, rois: RoIs) -> jax.Array:
    return _rois.on_each(partial(_read, plan), cells, rois)


def _pool_forward(plan, cells, rois):
    return _pool(plan, cells, rois), rois


def _pool_backward(plan, rois, gradient):
    total = lax.platform_dependent(
        gradient,
        *rois,
        cpu=image_by_image(partial(_add, plan)),
        default=partial(_multiply, plan),
    )
    return total, None


_pool.defvjp(_pool_forward, _pool_backward)


def _read(plan: Plan, cells: jax.Array, rois: RoIs) -> jax.Array:
    """Sum the taps of some RoIs, [R, P, Q, C]."""

    def add(total, y, x):
        for (row, wy), (column, wx) in product(y, x):
            weight = (wy[:, :, None] * wx[:, None, :])[..., None]
            index = _rois.cell_of(rois, row, column)
            total += weight * cells.at[index].get(mode="promise_in_bounds")
        return total

    rows, columns = _taps(plan, rois)
    # Zeros that vary over a mesh as both inputs do.
    none = jnp.zeros_like(rois.start, shape=(len(rois.valid), *plan.bins, 1))
    none += jnp.zeros_like(cells[:1, None, None])
    total = _rois.fold_blocks(add, none, rows, columns, BLOCK)
    return jnp.where(rois.valid[:, None, None, None], total, 0.0)


def _add(plan: Plan, gradient: jax.Array, *rois: jax.Array) -> jax.Array:
    """Let one RoI after the other add to the cells that it read, [N, C]."""

    def one(total, roi):
        gradient, rois = _split([x[None] for x in roi])

        def add(total, y, x):
            taps = list(product(y, x))
            index = [_rois.cell_of(rois, row, column) for (row, _), (column, _) in taps]
            weight = [wy[:, :, None] * wx[:, None, :] for (_, wy), (_, wx) in taps]
            part = jnp.stack(weight)[..., None] * gradient[None]
            return total.at[jnp.stack(index)].add(part, mode="promise_in_bounds")

        rows, columns = _taps(plan, rois)
        return _rois.fold_blocks(add, total, rows, columns, BLOCK), None

    none = jnp.zeros_like(gradient, shape=(plan.cells, gradient.shape[-1]))
    return lax.scan(one, none, (gradient, *rois))[0]


def _multiply(plan: Plan, gradient: jax.Array, *rois: jax.Array) -> jax.Array:
    """Compute the same by matmuls with dense weights, a chunk of RoIs at a time."""

    def in_chunks(x):
        x = jnp.pad(x, [(0, -len(x) % CHUNK)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, CHUNK, *x.shape[1:])

    def add(totals, chunk):
        gradient, rois = _split(chunk)
        rows, columns = _taps(plan, rois)
        parts, first = [], 0
        for height, width in plan.shapes:
            here = (rois.offset == first)[:, None, None, None]
            part = jnp.einsum(
                "rpqc,rph,rqw->hwc",
                jnp.where(here, gradient, 0.0),
                _dense(rows, height),
                _dense(columns, width),
                precision=lax.Precision.HIGHEST,
            )
            parts.append(part)
            first += height * width
        return [a + b for a, b in zip(totals, parts, strict=True)], None

    channels = gradient.shape[-1]
    none = [jnp.zeros_like(gradient, shape=(*x, channels)) for x in plan.shapes]
    totals, _ = lax.scan(add, none, [in_chunks(x) for x in (gradient, *rois)])
    return jnp.concatenate([x.reshape(-1, channels) for x in totals])


def _split(arrays: list[jax.Array]) -> tuple[jax.Array, RoIs]:
    """Tell the gradient, of RoIs that are not valid 0, from the RoIs."""
    gradient, rois = arrays[0], RoIs(*arrays[1:])
    return jnp.where(rois.valid[:, None, None, None], gradient, 0.0), rois


def _dense(taps: Taps, length: int) -> jax.Array:
    """Weights of all rows or columns, [R, bins, length]."""
    numbers = jnp.arange(length, dtype=jnp.int32)[None, None, :, None]
    index, weight = taps.arrays
    here = index[:, :, None] == numbers
    return jnp.where(here, weight[:, :, None], 0.0).sum(axis=3)


def _taps(plan: Plan, rois: RoIs) -> list[Taps]:
    """Find rows and columns."""
    find = _beside_samples if plan.sampling else _covered
    return [find(plan, rois, axis) for axis in (0, 1)]


# Below all arrays are [R, bins, ., .]: one axis for a bin's samples or cells, one for
# what belongs to each of those.


def _beside_samples(plan: Plan, rois: RoIs, axis: int) -> Taps:
    """Take the two cells beside each of a fixed number of samples."""
    start, size, length = _bins(plan, rois, axis)
    sample = _sample(start, size, plan.sampling, _numbers(plan.sampling, 2))
    cell = jnp.floor(jnp.clip(sample, 0, length - 1)) + _numbers(2, 3)
    weight = _tent(sample, cell, length) / plan.sampling
    count = jnp.where(rois.valid, 2 * plan.sampling, 0)
    return _as_taps(jnp.minimum(cell, length - 1), weight, count)


def _covered(plan: Plan, rois: RoIs, axis: int) -> Taps:
    """Take all cells of a bin, whose samples lie at most one cell apart."""
    start, size, length = _bins(plan, rois, axis)
    number = jnp.ceil(size)
    first, last = (
        jnp.clip(jnp.floor(x), 0, length - 1) for x in (start, start + size + 1)
    )
    cell = first + _numbers(max(shape[axis] for shape in plan.shapes), 2)
    # A cell's reach is from one before it to one behind. Spaced by more than 2/3, or
    # but two, no more than three samples lie there; the first of four may lie outside.
    before = jnp.floor((cell - 1 - start) / (size / number) - 0.5)
    k = jnp.maximum(before, 0) + _numbers(4, 3)
    weight = _tent(_sample(start, size, number, k), cell, length) / number
    weight = jnp.where(k < number, weight, 0.0).sum(axis=3, keepdims=True)
    count = jnp.where(rois.valid, (last - first).max(axis=(1, 2, 3)) + 1, 0)
    return _as_taps(jnp.minimum(cell, length - 1), weight, count)


def _bins(plan: Plan, rois: RoIs, axis: int) -> tuple[jax.Array, ...]:
    """Find where bins start, how large they are, and the length of the map."""
    start, whole, length = (
        x[:, axis, None, None, None] for x in (rois.start, rois.size, rois.length)
    )
    size = _rois.divide(whole, plan.bins[axis])
    before = _numbers(plan.bins[axis], 1) * size
    # The selection keeps the product from being contracted with the sum.
    return start + jnp.where(before > 0, before, 0.0), size, length


def _sample(start, size, number, k) -> jax.Array:
    """Place the k-th of so many samples of a bin."""
    return start + _rois.divide((k + 0.5) * size, number)


def _tent(sample, cell, length) -> jax.Array:
    """Weight of a cell in the interpolation at a sample, 0 if that is off the map."""
    near = 1 - jnp.abs(jnp.clip(sample, 0, length - 1) - cell)
    return jnp.where((sample >= -1) & (sample <= length), jnp.maximum(near, 0), 0.0)


def _numbers(count: int, axis: int) -> jax.Array:
    """Count from 0 along one of four axes."""
    shape = [count if i == axis else 1 for i in range(4)]
    return jnp.arange(count, dtype=jnp.float32).reshape(shape)


def _as_taps(index, weight, count) -> Taps:
    """Make one list of the last two axes; fill its last block with weights of 0."""
    index, weight = (
        x.reshape(*x.shape[:2], x.shape[2] * x.shape[3]) for x in (index, weight)
    )
    fill = [(0, 0), (0, 0), (0, -index.shape[2] % BLOCK[0])]
    index, weight = jnp.pad(index, fill), jnp.pad(weight, fill)
    return Taps((index.astype(jnp.int32), weight), count.astype(jnp.int32))
