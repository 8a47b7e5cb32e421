"""Objects and anchors along one axis, on which all of coverage rests.

The overlap of two intervals of given lengths falls with the distance of their centres,
so that of an anchor's possible places, the points of a grid, the nearest is the best.

Shape legend: `N` objects, `C` cell anchors. All numbers are pixels or grid indices.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Axis(NamedTuple):
    """Objects, cell anchors and their grids along x or y.

    Attributes:
        low: `[N, 1]` where each object begins.
        high: `[N, 1]` where it ends.
        half: `[C]`, half the length of each cell anchor.
        step: `[N, C]`, from grid point to grid point.
        offset: of grid point 0, in steps.
        first: `[N, C]`, the first grid point at which the anchor may stand.
        last: `[N, C]`, the last one; below `first` if there is none.
    """

    low: jax.Array
    high: jax.Array
    half: jax.Array
    step: jax.Array
    offset: jax.Array
    first: jax.Array
    last: jax.Array

    @property
    def least(self) -> jax.Array:
        """Length of the object or of the anchor, whichever is less: full overlap."""
        return jnp.minimum(self.high - self.low, 2 * self.half)

    @property
    def nearest(self) -> jax.Array:
        """Grid point nearest to the object's centre, on the grid or beyond it."""
        return jnp.round((self.low + self.high) / 2 / self.step - self.offset)

    def overlap(self, index: jax.Array) -> jax.Array:
        """Length that object and anchor share if the anchor stands at a grid point."""
        # Measured from there: large coordinates would cost small boxes their precision.
        point = (index + self.offset) * self.step
        end = jnp.minimum(self.high - point, self.half)
        return jnp.maximum(end - jnp.maximum(self.low - point, -self.half), 0.0)

    def best(self) -> jax.Array:
        """Longest overlap at any grid point where the anchor may stand."""
        # Both neighbours: which of them is nearer may be lost in rounding.
        below = jnp.floor((self.low + self.high) / 2 / self.step - self.offset)
        places = (jnp.clip(i, self.first, self.last) for i in (below, below + 1))
        return jnp.maximum(*map(self.overlap, places))

    def at_distance(self, distance: jax.Array) -> jax.Array:
        """Overlap if the centres were so far apart."""
        half_object = (self.high - self.low) / 2
        return jnp.clip(half_object + self.half - distance, 0.0, self.least)

    def farthest(self, length: jax.Array) -> jax.Array:
        """Distance of the centres up to which the overlap is at least `length`."""
        return (self.high - self.low) / 2 + self.half - length

    def points_within(self, distance: jax.Array) -> jax.Array:
        """Number of usable grid points so near to the object's centre."""
        point = (self.nearest + self.offset) * self.step
        centre = ((self.low - point) + (self.high - point)) / 2
        from_, to = (centre - distance) / self.step, (centre + distance) / self.step
        from_ = jnp.maximum(jnp.ceil(from_), self.first - self.nearest)
        to = jnp.minimum(jnp.floor(to), self.last - self.nearest)
        return jnp.maximum(to - from_ + 1, 0.0)


def usable_points(
    half, step, count, offset, length, boundary: float, *, touching: bool
) -> tuple[jax.Array, jax.Array]:
    """Return the first and last grid points at which anchors stay within a boundary.

    As `anchor_targets` decides it: from -boundary to length + boundary, the upper end
    included only if `touching`.

    Args:
        half: `[C]`, half the lengths of the cell anchors.
        step: `[N, C]`, from grid point to grid point.
        count: `[N, C]`, grid points.
        offset: of the first of them, in steps.
        length: `[N, 1]` of the image.
        boundary: by how much an anchor may leave it.
        touching: whether an upper end may lie on the boundary.
    """

    def begins(index):
        return (index + offset) * step - half >= -boundary

    def ends(index):
        end, limit = (index + offset) * step + half, length + boundary
        return end <= limit if touching else end < limit

    first = _frontier(begins, jnp.ceil((half - boundary) / step - offset), -1)
    last = _frontier(ends, jnp.floor((length + boundary - half) / step - offset), 1)
    return jnp.maximum(first, 0.0), jnp.minimum(last, count - 1)


def _frontier(fits: Callable, guess: jax.Array, outwards: int) -> jax.Array:
    """Mend a guess that rounding may have put one off: the last index that fits."""
    guess = jnp.where(fits(guess + outwards), guess + outwards, guess)
    return jnp.where(fits(guess), guess, guess - outwards)


def count_places(x: Axis, y: Axis, least: jax.Array) -> jax.Array:
    """Count the grid points at which an anchor shares an area with an object.

    Column by column, for within a column these points follow each other.

    Args:
        x: objects and anchors along x.
        y: likewise along y.
        least: `[N, C]`, the least area to share; positive.

    Returns:
        `[N, C]` int32.
    """
    farthest = x.farthest(least / y.least) / x.step
    columns = jnp.maximum(jnp.floor(farthest.max()) + 1, 0).astype(jnp.int32)

    def column(k, total):
        index = x.nearest + k
        width = jnp.where((index >= x.first) & (index <= x.last), x.overlap(index), 0.0)
        height = least / jnp.where(width > 0, width, 1.0)
        rows = y.points_within(y.farthest(height))
        return total + jnp.where((width > 0) & (height <= y.least), rows, 0.0)

    return jax.lax.fori_loop(-columns, columns + 1, column, 0 * least).astype(jnp.int32)
