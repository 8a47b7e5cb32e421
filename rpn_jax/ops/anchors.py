"""Anchors: reference boxes of several scales and ratios at every feature-map point.

Shape legend: `C` anchors a cell, `H x W` the feature map, `A = H * W * C`.
Order everywhere: row, column, then anchor. A ratio is height / width.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rpn_jax.ops._checks import check_option

ORDERS = ("ratio_major", "size_major")
ROUNDINGS = ("none", "corners", "base16")


def cell_anchors(
    sizes: Sequence[float],
    ratios: Sequence[float],
    *,
    order: str = "ratio_major",
    rounding: str = "none",
) -> np.ndarray:
    """Make the anchors of one cell, centred on (0, 0).

    An anchor of size s and ratio r has area s^2 and height / width = r.

    Args:
        sizes: square roots of the areas, pixels.
        ratios: heights over widths.
        order: "ratio_major" (all sizes of the first ratio, then of the next; as
            torchvision) or "size_major" (as detectron2).
        rounding: "none" (detectron2); "corners": half extents rounded to whole
            pixels, half to even (torchvision); "base16": sides of a 16-pixel anchor
            rounded, then scaled by size / 16 (py-faster-rcnn, whose areas are
            therefore not exactly size^2).

    Returns:
        `[C, 4]` NumPy float32 xyxy, C = len(sizes) * len(ratios).

    Raises:
        ValueError: an option is unknown, or a size or ratio is not positive or not
            finite.

    Example:
        >>> cell_anchors((32,), (0.5, 1.0), rounding="corners")
        array([[-23., -11.,  23.,  11.],
               [-16., -16.,  16.,  16.]], dtype=float32)
    """
    check_option(order, ORDERS, "order")
    check_option(rounding, ROUNDINGS, "rounding")
    given = (*sizes, *ratios)
    if not (len(sizes) and len(ratios) and all(0 < x < math.inf for x in given)):
        raise ValueError(
            "sizes and ratios must be positive numbers and finite, got "
            f"{sizes} and {ratios}"
        )
    # The arithmetic of each peer in its own precision, so that the last bit agrees.
    real = np.float32 if rounding == "corners" else np.float64
    size, ratio = (x.astype(real) for x in (np.asarray(sizes), np.asarray(ratios)))
    size, ratio = np.meshgrid(size, ratio, indexing="xy")  # ratio slow, size fast
    if order == "size_major":
        size, ratio = size.T, ratio.T
    size, ratio = size.ravel(), ratio.ravel()
    if rounding == "base16":
        width = np.round(np.sqrt(16 * 16 / ratio))
        height = np.round(width * ratio) * (size / 16)
        width = width * (size / 16)
    elif rounding == "corners":
        root = np.sqrt(ratio)
        width, height = (1 / root) * size, root * size
    else:
        width = np.sqrt(size**2 / ratio)
        height = ratio * width
    half = np.stack([width, height], axis=1) / 2
    cell = np.concatenate([-half, half], axis=1)
    return (np.round(cell) if rounding == "corners" else cell).astype(np.float32)


def grid_anchors(
    grid_size: tuple[int, int],
    *,
    scales: Sequence[float] = (8, 16, 32),
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    stride: int | tuple[int, int] = 16,
    offset: float = 0.0,
    order: str = "ratio_major",
    rounding: str = "none",
) -> Float[Array, "A 4"]:
    """Make the anchors of one feature map: nine a point by default, as published.

    An anchor of scale k has the area of a square of side k * stride.

    Args:
        grid_size: (H, W) of the feature map.
        scales: sizes in units of the stride (of its height if it has two).
        ratios: heights over widths.
        stride: pixels between neighbouring points, one number or (y, x).
        offset: where in its cell a point lies, in strides: 0 the top left corner
            (torchvision, detectron2), 0.5 the middle (py-faster-rcnn).
        order: see `cell_anchors`.
        rounding: see `cell_anchors`.

    Returns:
        `[H * W * C, 4]` float32 xyxy in pixels of the network input; row, column,
        then anchor.

    Reference:
        Ren et al., Faster R-CNN, NeurIPS 2015, section 3.1.1.

    Example:
        >>> grid_anchors((38, 50)).shape
        (17100, 4)
        >>> grid_anchors((1, 2), scales=(2,), ratios=(1.0,))
        Array([[-16., -16.,  16.,  16.],
               [  0., -16.,  32.,  16.]], dtype=float32)
    """
    step = _pair(stride)
    sizes = tuple(scale * step[0] for scale in scales)
    cell = cell_anchors(sizes, ratios, order=order, rounding=rounding)
    return _place(cell, grid_size, step, offset)


def _pair(stride) -> tuple[int, int]:
    """Turn one stride, or (y, x), into (y, x)."""
    y, x = stride if isinstance(stride, Sequence) else (stride, stride)
    return y, x


def _place(cell, grid_size, stride, offset) -> jax.Array:
    """Put the anchors of a cell [C, 4] at every point of a grid."""
    y, x = (
        (jnp.arange(n, dtype=jnp.float32) + offset) * step
        for n, step in zip(grid_size, stride, strict=True)
    )
    y, x = jnp.meshgrid(y, x, indexing="ij")
    points = jnp.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    return (points + jnp.asarray(cell)[None]).reshape(-1, 4)


def pyramid_anchors(
    grid_sizes: Sequence[tuple[int, int]],
    *,
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float] | Sequence[Sequence[float]] = (0.5, 1.0, 2.0),
    strides: Sequence[int | tuple[int, int]],
    offset: float = 0.0,
    order: str = "ratio_major",
    rounding: str = "none",
) -> tuple[Float[Array, "A 4"], ...]:
    """Make the anchors of every level of a feature pyramid.

    Args:
        grid_sizes: (H, W) of each level, L of them.
        sizes: for each level its anchor sizes (square roots of areas, pixels).
        ratios: heights over widths, for all levels, or a sequence for each level.
        strides: for each level its stride, one number or (y, x).
        offset: see `grid_anchors`.
        order: see `cell_anchors`.
        rounding: see `cell_anchors`.

    Returns:
        L arrays `[H * W * C, 4]` float32 xyxy, one a level.

    Raises:
        ValueError: the numbers of levels differ; the message shows them side by side.

    Example:
        >>> levels = pyramid_anchors(
        ...     [(4, 4), (2, 2)], sizes=[(32,), (64,)], strides=[8, 16])
        >>> [level.shape for level in levels]
        [(48, 4), (12, 4)]
    """
    per_level = isinstance(ratios[0], Sequence | np.ndarray)
    all_ratios = list(ratios) if per_level else [ratios] * len(grid_sizes)
    if not len(grid_sizes) == len(sizes) == len(all_ratios) == len(strides):
        table = level_table(
            grid=grid_sizes, stride=strides, sizes=sizes, ratios=all_ratios
        )
        raise ValueError(
            "every level needs a grid, a stride, sizes and ratios; got "
            f"{len(grid_sizes)} grids, {len(strides)} strides, {len(sizes)} groups of "
            f"sizes and {len(all_ratios)} of ratios\n{table}"
        )
    anchors = []
    for grid, size, ratio, stride in zip(
        grid_sizes, sizes, all_ratios, strides, strict=True
    ):
        cell = cell_anchors(size, ratio, order=order, rounding=rounding)  # type: ignore[arg-type]
        anchors.append(_place(cell, grid, _pair(stride), offset))
    return tuple(anchors)


def level_table(**columns: Sequence) -> str:
    """Lay the levels side by side, so that the missing one can be seen."""
    rows = [("level", *columns)]
    for i in range(max(len(column) for column in columns.values())):
        cells = (str(c[i]) if i < len(c) else "missing" for c in columns.values())
        rows.append((str(i), *cells))
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
