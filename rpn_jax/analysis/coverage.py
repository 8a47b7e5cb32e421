"""How well anchors cover objects, without listing the anchors.

Of all the anchors that one cell anchor becomes on its grid, the best for an object is
the one nearest to it along x and along y (`axis.py`). So each object is compared with
the cell anchors, not with the anchors: with 9 in place of 17,100 for the classic nine
on a grid of 38 x 50.

Shape legend: `N` objects, `C` cell anchors of all levels, `K` padded sizes.
Boxes are xyxy in pixels of the network's input.
"""

import dataclasses
import math
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rpn_jax.analysis.axis import Axis, count_places, usable_points
from rpn_jax.analysis.objects import Objects, Progress, Size
from rpn_jax.conventions import TargetConvention, options
from rpn_jax.ops.anchors import cell_anchors
from rpn_jax.rpn import RPNConfig, level_strides, rpn_modules

CHUNK = 8192
"""Objects on the device at a time."""

SLACK = 1e-5
"""Anchors whose IoU falls short of a threshold by less are counted as reaching it, so
that rounding parts none from its equals."""


class Layout(NamedTuple):
    """The anchors of a network at several padded sizes; arrays of NumPy or of JAX.

    Attributes:
        cells: `[C, 4]` float32 xyxy, the anchors of a cell, centred on (0, 0).
        level: `[C]` int32, the level of each.
        strides: `[K, C, 2]` float32, pixels between grid points along (y, x).
        grids: `[K, C, 2]` float32, grid points along (y, x).
        offset: where in its cell a grid point lies, in strides.
    """

    cells: Any
    level: Any
    strides: Any
    grids: Any
    offset: Any


class Coverage(NamedTuple):
    """What anchors there are for each object; arrays of NumPy or of JAX.

    Attributes:
        iou: `[N]` float32, the highest IoU with any anchor that may be used.
        cell: `[N]` int32, the cell anchor that reaches it; -1 if none overlaps it.
        covered: `[N]` bool, whether `iou` reaches the upper threshold.
        saved: `[N]` bool, whether only the low-quality rule gives it positives. The
            objects that are neither are lost, among them those that overlap no anchor:
            where the convention does not guard against it, all anchors become positive
            for such an object, and none of them can learn it.
        positives: `[N, C]` int32, of each cell anchor the places at which the object
            would make it positive, were it alone in its image: where the IoU reaches
            the upper threshold or, if it is saved, its own highest IoU (within
            `SLACK`).
        centred: `[N]` float32, the highest IoU if its centre lay on a grid point: the
            best that shifting it within a stride can do, far from the border.
        between: `[N]` float32, the highest IoU if its centre lay half a stride from the
            grid points of every level along both axes. For one level that is the worst
            that shifting can do; several are seldom at their worst together, and then
            the worst is no less.
    """

    iou: Any
    cell: Any
    covered: Any
    saved: Any
    positives: Any
    centred: Any
    between: Any

    @property
    def lost(self) -> np.ndarray:
        """`[N]` bool, the objects that get no positive anchor."""
        return ~(self.covered | self.saved)


def anchor_grids(config: RPNConfig, size: Size) -> list[Size]:
    """Return the (height, width) of each feature map at a padded size.

    Example:
        >>> anchor_grids(RPNConfig(backbone="squeezenet"), (608, 800))
        [(38, 50)]
    """
    backbone, _ = rpn_modules(config)
    return _map_sizes(backbone, size)


@cache
def _map_sizes(backbone: nn.Module, size: Size) -> list[Size]:
    """Trace a backbone, once for all anchors that are tried on it."""
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    maps, _ = jax.eval_shape(backbone.init_with_output, jax.random.key(0), image)
    return [(x.shape[1], x.shape[2]) for x in maps]


def anchor_layout(config: RPNConfig, buckets: tuple[Size, ...]) -> Layout:
    """Describe the anchors of a network at each of the padded sizes.

    Example:
        >>> layout = anchor_layout(RPNConfig(), ((384, 384), (608, 800)))
        >>> layout.cells.shape, layout.grids[:, 0].tolist()
        ((9, 4), [[24.0, 24.0], [38.0, 50.0]])
    """
    anchors = config.convention.anchors
    rules = options(anchors, "stride", "offset")
    cells = [cell_anchors(sizes, config.ratios, **rules) for sizes in config.sizes]
    level = np.repeat(np.arange(len(cells), dtype=np.int32), [len(c) for c in cells])
    grids = [anchor_grids(config, size) for size in buckets]
    strides = [
        [np.broadcast_to(step, 2) for step in level_strides(config, grid, size)]
        for grid, size in zip(grids, buckets, strict=True)
    ]
    return Layout(
        np.concatenate(cells),
        level,
        np.array(strides, np.float32)[:, level],
        np.array(grids, np.float32)[:, level],
        np.float32(anchors.offset),
    )


def cover(
    objects: Objects,
    layout: Layout,
    targets: TargetConvention,
    progress: Progress | None = None,
) -> Coverage:
    """Find the best anchor of every object, count its positives, shift it.

    On the device, `CHUNK` objects at a time. Equal to comparing each object with each
    anchor, to 1e-6 in IoU.

    Args:
        objects: what is to be covered.
        layout: of the anchors, at the padded sizes of `objects`.
        targets: which anchors may be used, and which become positive.
        progress: called after every chunk.

    Returns:
        `Coverage`, NumPy arrays.
    """
    total = len(objects.boxes)
    parts, step = [], min(CHUNK, total)
    for end in range(step, total + step, max(step, 1)):
        # The last chunk reaches back, so that all have one shape and compile once.
        start = min(end, total) - step
        rows = slice(start, start + step)
        found = _cover(*_arguments(objects, rows), layout, targets)
        fresh = end - step - start
        parts.append(Coverage(*(x[fresh:] for x in jax.device_get(found))))
        if progress:
            progress(rows.stop, total)
    return Coverage(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def best_ious(objects: Objects, layout: Layout, targets: TargetConvention) -> jax.Array:
    """Find the highest IoU of every object, `[N]`; nothing else, and all at once."""
    return _best_ious(*_arguments(objects, slice(None)), layout, targets)


def _arguments(objects: Objects, rows: slice) -> tuple[np.ndarray, ...]:
    image = objects.image[rows]
    return objects.boxes[rows], objects.image_sizes[image], objects.bucket[image]


@partial(jax.jit, static_argnames="targets")
def _best_ious(boxes, sizes, bucket, layout, targets):
    x, y = _axes(boxes, sizes, bucket, layout, targets)
    return _ious(x, y, x.best(), y.best()).max(axis=1)


@partial(jax.jit, static_argnames="targets")
def _cover(boxes, sizes, bucket, layout: Layout, targets: TargetConvention) -> Coverage:
    x, y = _axes(boxes, sizes, bucket, layout, targets)
    ious = _ious(x, y, x.best(), y.best())
    best = ious.max(axis=1)
    covered = best >= targets.high_threshold
    saved = ~covered & (best > max(targets.low_quality_above, 0.0))
    if targets.low_quality == "off":
        saved = jnp.zeros_like(saved)
    elif not (targets.boundary_first or math.isinf(targets.boundary)):
        # Anchors outside are dropped after matching: if the object's best is among
        # them, no other has been claimed for it.
        anywhere = dataclasses.replace(targets, boundary=math.inf)
        saved &= best >= _best_ious(boxes, sizes, bucket, layout, anywhere) - SLACK

    reach = jnp.where(covered, targets.high_threshold, best) - SLACK
    reach = jnp.where(covered | saved, reach, 1.0)[:, None]
    places = count_places(x, y, reach / (1 + reach) * _both_areas(x, y))
    zero, half_x, half_y = jnp.zeros(()), x.step / 2, y.step / 2
    return Coverage(
        best,
        jnp.where(best > 0, ious.argmax(axis=1), -1),
        covered,
        saved,
        jnp.where(_usable(x, y) & (covered | saved)[:, None], places, 0),
        _ious(x, y, x.at_distance(zero), y.at_distance(zero)).max(axis=1),
        _ious(x, y, x.at_distance(half_x), y.at_distance(half_y)).max(axis=1),
    )


def _axes(boxes, sizes, bucket, layout, targets) -> tuple[Axis, Axis]:
    """Look at objects and cell anchors along x and along y."""
    boxes, sizes = boxes.astype(jnp.float32), sizes.astype(jnp.float32)

    def axis(low: int, high: int, side: int) -> Axis:
        half = layout.cells[:, high]
        step = layout.strides[bucket, :, side]
        first, last = usable_points(
            half,
            step,
            layout.grids[bucket, :, side],
            layout.offset,
            sizes[:, side, None],
            targets.boundary,
            touching=targets.boundary_first,
        )
        ends = boxes[:, low, None], boxes[:, high, None]
        return Axis(*ends, half, step, layout.offset, first, last)

    return axis(0, 2, 1), axis(1, 3, 0)


def _usable(x: Axis, y: Axis) -> jax.Array:
    """Tell which cell anchors may stand anywhere at all, `[N, C]`."""
    return (x.first <= x.last) & (y.first <= y.last)


def _both_areas(x: Axis, y: Axis) -> jax.Array:
    """Add the areas of each object and each cell anchor, `[N, C]`."""
    return (x.high - x.low) * (y.high - y.low) + 4 * x.half * y.half


def _ious(x: Axis, y: Axis, width: jax.Array, height: jax.Array) -> jax.Array:
    """IoU of objects and anchors that share width x height; 0 of those not usable."""
    shared = width * height
    return jnp.where(_usable(x, y), shared / (_both_areas(x, y) - shared), 0.0)
