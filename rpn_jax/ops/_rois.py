"""What RoIAlign and RoIPool share: RoIs on the maps of a pyramid, and their taps.

Shape legend, here, in `roi_align` and in `roi_pool`: `R` RoIs, `P x Q` bins of an
output, `C` channels, `N` cells of all maps together, one after the other.

A bin looks at some rows and some columns of its map, its taps. They are read in blocks:
XLA makes one pass of a block's reads, each of C numbers that lie side by side, and
stores nothing in between.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from rpn_jax.ops._batching import image_by_image
from rpn_jax.ops._checks import as_boxes, as_float, as_mask, check_shape


class Plan(NamedTuple):
    """What shapes the program.

    Attributes:
        shapes: (height, width) of each map.
        bins: (P, Q).
        sampling: samples of a bin in each axis, 0 for as many as its size asks for.
    """

    shapes: tuple[tuple[int, int], ...]
    bins: tuple[int, int]
    sampling: int = 0

    @property
    def cells(self) -> int:
        """Number of cells of all maps, N."""
        return sum(height * width for height, width in self.shapes)


class RoIs(NamedTuple):
    """RoIs, each on a map; pairs are (y, x), in cells of the map.

    Attributes:
        start: `[R, 2]` where the first bin begins.
        size: `[R, 2]` of all bins together.
        length: `[R, 2]` float32, height and width of the map.
        offset: `[R]` int32, which of the N cells is the map's first.
        valid: `[R]` bool.
    """

    start: jax.Array
    size: jax.Array
    length: jax.Array
    offset: jax.Array
    valid: jax.Array


class Taps(NamedTuple):
    """The taps of each bin in one axis, K at most.

    Attributes:
        arrays: each `[R, bins, K]`: rows or columns as int32, all of them on the map,
            and what else a tap has.
        count: `[R]` int32, how many of the K are needed.
    """

    arrays: tuple[jax.Array, ...]
    count: jax.Array


def as_maps(features: Sequence[ArrayLike]) -> list[jax.Array]:
    """Check the maps of a pyramid."""
    maps = [as_float(x, "features") for x in features]
    if not maps:
        raise ValueError("features must hold one map at least, got none")
    for x in maps:
        if x.ndim != 3 or 0 in x.shape or x.shape[2] != maps[0].shape[2]:
            given = ", ".join(str(x.shape) for x in maps)
            raise ValueError(f"features must be [H, W, C] and not empty, got {given}")
    return maps


def as_plan(
    maps: Sequence[jax.Array], output_size: int | tuple[int, int], sampling: int = 0
) -> Plan:
    """Make a plan; one number of bins stands for a square."""
    square = isinstance(output_size, int)
    rows, columns = (output_size, output_size) if square else output_size
    if min(rows, columns) < 1:
        raise ValueError(f"output_size must be at least 1, got {output_size}")
    shapes = tuple((x.shape[0], x.shape[1]) for x in maps)
    return Plan(shapes, (rows, columns), sampling)


def as_rois(
    boxes: ArrayLike,
    levels: ArrayLike,
    valid: ArrayLike | None,
    scales: Sequence[ArrayLike],
    shapes: Sequence[tuple[int, int]],
    place: Callable,
) -> RoIs:
    """Check boxes and put each on its map.

    Args:
        boxes: `[R, 4]` xyxy, image pixels.
        levels: `[R]` integers, which map; a box of any other is not valid.
        valid: `[R]` bool or None. Boxes that are not finite are not valid either.
        scales: cells per pixel of each map.
        shapes: (height, width) of each map.
        place: gives start and size [R, 2] from two corners [R, 2], all in cells.
    """
    boxes, levels = as_boxes(boxes, "boxes", rank=2), jnp.asarray(levels)
    if not jnp.issubdtype(levels.dtype, jnp.integer):
        raise ValueError(f"levels must be integers, got dtype {levels.dtype}")
    check_shape(levels, boxes.shape[:1], "levels")
    valid = as_mask(valid, boxes.shape[:1], "valid")
    valid &= (levels >= 0) & (levels < len(shapes))
    levels = jnp.clip(levels, 0, len(shapes) - 1)

    def of_level(values, dtype=jnp.float32):
        # Not values[levels]: over an explicit mesh JAX will not index shared values.
        result = jnp.zeros_like(levels, dtype)
        for i, value in enumerate(values):
            result = jnp.where(levels == i, jnp.asarray(value, dtype), result)
        return result

    corners = lax.stop_gradient(boxes) * of_level(scales)[:, None]
    # Far below what float32 holds, so that no size overflows. Nor can a selected
    # product be contracted with what is added to it; see `divide`.
    valid &= (jnp.abs(corners) < 1e37).all(axis=1)
    corners = jnp.where(valid[:, None], corners, 0.0)
    start, size = place(corners[:, 1::-1], corners[:, :1:-1])
    length = jnp.stack([of_level(x) for x in zip(*shapes, strict=True)], axis=1)
    ends = np.cumsum([height * width for height, width in shapes])
    offset = of_level([0, *ends[:-1]], jnp.int32)
    return RoIs(start, size, length, offset, valid)


def as_cells(maps: Sequence[jax.Array], rois: RoIs) -> jax.Array:
    """Lay the cells of all maps one after the other, [N, C].

    In a shard_map, maps that devices share become as different as their RoIs, which
    costs nothing: so then is their gradient, and JAX sums it up.
    """
    cells = jnp.concatenate([x.reshape(-1, x.shape[2]) for x in maps])
    return cells + jnp.zeros_like(rois.start, shape=(1, 1))


def divide(a: jax.Array, b: ArrayLike) -> jax.Array:
    """Divide as written.

    Where a bin ends, and how many samples it has, follow the rounding of float32 as it
    is in the peers: an ulp is a cell more, or on a wide map an error of 1e-4. By a
    constant, or by what is broadcast, XLA would multiply with the reciprocal instead.
    """
    return a / jnp.where(jnp.isnan(a), 1.0, jnp.asarray(b, a.dtype))


def on_each(function: Callable, cells: jax.Array, rois: RoIs) -> Any:
    """Compute function(cells, rois), of which each result is [R, ...].

    On CPU one RoI after the other: its sums stay in the cache, and it costs what its
    own size asks for. Elsewhere all at once.
    """

    def one_by_one(cells, *rois):
        def one(roi):
            group = RoIs(*(x[None] for x in roi))
            return jax.tree.map(lambda x: x[0], function(cells, group))

        return lax.map(one, rois)

    def together(cells, *rois):
        return function(cells, RoIs(*rois))

    return lax.platform_dependent(
        cells, *rois, cpu=image_by_image(one_by_one), default=together
    )


def fold_blocks(
    function: Callable, state: Any, rows: Taps, columns: Taps, block: tuple[int, int]
) -> Any:
    """Fold the blocks that some RoIs need: state = function(state, y, x).

    y and x list the block's taps: of each what its arrays hold, `[R, bins]`. K must be
    a multiple of the block. Blocks come row by row.
    """

    def cut(taps, i, size):
        parts = [
            lax.dynamic_slice_in_dim(x, i * size, size, axis=2) for x in taps.arrays
        ]
        return [tuple(x[..., k] for x in parts) for k in range(size)]

    def row(i, state):
        y = cut(rows, i, block[0])

        def column(j, state):
            return function(state, y, cut(columns, j, block[1]))

        return lax.fori_loop(zero, numbers[1], column, state)

    if (rows.arrays[0].shape[2], columns.arrays[0].shape[2]) == block:
        return function(state, cut(rows, 0, block[0]), cut(columns, 0, block[1]))
    # Counted from an input, so that the counters vary over a mesh as the state does.
    most = [taps.count.max(initial=0) for taps in (rows, columns)]
    numbers = [-(-x // size) for x, size in zip(most, block, strict=True)]
    zero = most[0] * 0
    return lax.fori_loop(zero, numbers[0], row, state)


def cell_of(rois: RoIs, row: jax.Array, column: jax.Array) -> jax.Array:
    """Number the cells of rows [R, P] and columns [R, Q] among the N, [R, P, Q]."""
    width = rois.length[:, 1].astype(jnp.int32)
    first = rois.offset[:, None] + row * width[:, None]
    return first[:, :, None] + column[:, None, :]
