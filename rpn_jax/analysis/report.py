"""Coverage in numbers: shares of objects by size, ratio and level.

Shape legend: `N` objects, `C` cell anchors of all levels.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rpn_jax.analysis.coverage import Coverage, Layout
from rpn_jax.analysis.objects import Objects
from rpn_jax.evaluation import AREA_NAMES, AREA_RANGES

THRESHOLDS = (0.3, 0.5, 0.7)
SIZE_EDGES = 2.0 ** (np.arange(2, 23) / 2)
"""Half octaves of the square root of an area, 2 to 2048 px."""
RATIO_EDGES = 2.0 ** ((np.arange(-6, 8) - 0.5) / 2)
"""Half octaves of height / width with 1 in the middle of one, 0.11 to 9.5."""


LEGEND = """\
IoU: mean of each object's highest with any anchor; >=: share that reaches it
low-q: share that only the low-quality rule gives positive anchors; lost: that gets none
anchors: median number of anchors that an object makes positive
at best, at worst: share >= {threshold:g} if each object lay at its best or worst place
within a stride, borders aside (of several levels, each at its worst)"""
"""What the columns of `table` mean."""


class Shares(NamedTuple):
    """What there is for a group of objects; NaN where the group is empty.

    Attributes:
        objects: how many they are.
        mean_iou: mean of the highest IoU of each.
        above: shares whose highest IoU reaches each of `THRESHOLDS`.
        saved: share that only the low-quality rule gives positives.
        lost: share that gets none.
        positives: median of the anchors that each makes positive.
        centred: share that would be covered, were each at its best place in a stride.
        between: likewise at the worst place.
    """

    objects: int
    mean_iou: float
    above: tuple[float, ...]
    saved: float
    lost: float
    positives: float
    centred: float
    between: float


class HeatMap(NamedTuple):
    """Objects by size and ratio.

    Attributes:
        sizes: `[S + 1]` edges, square roots of areas in pixels of the network's input.
        ratios: `[R + 1]` edges, heights over widths.
        objects: `[S, R]`, how many they are.
        mean: `[S, R]`, the mean of something over them; NaN where there is none.
    """

    sizes: np.ndarray
    ratios: np.ndarray
    objects: np.ndarray
    mean: np.ndarray


def shares(coverage: Coverage, group: np.ndarray, threshold: float) -> Shares:
    """Sum up the objects that `group` `[N]` bool names; covered is IoU >= threshold."""
    part = Coverage(*(x[group] for x in coverage))
    if not len(part.iou):
        nan = float("nan")
        return Shares(0, nan, (nan,) * len(THRESHOLDS), nan, nan, nan, nan, nan)
    return Shares(
        len(part.iou),
        float(part.iou.mean(dtype=np.float64)),
        tuple(float((part.iou >= t).mean()) for t in THRESHOLDS),
        float(part.saved.mean()),
        float(part.lost.mean()),
        float(np.median(part.positives.sum(axis=1))),
        float((part.centred >= threshold).mean()),
        float((part.between >= threshold).mean()),
    )


def box_sides(boxes: np.ndarray) -> np.ndarray:
    """Square roots of the areas of boxes `[N, 4]`."""
    return np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))


def box_ratios(boxes: np.ndarray) -> np.ndarray:
    """Heights over widths of boxes `[N, 4]`."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    return height / width


def groups(
    objects: Objects, coverage: Coverage, layout: Layout
) -> dict[str, dict[str, np.ndarray]]:
    """Name the groups of objects that a report looks at, `[N]` bool each.

    By COCO's sizes (areas as annotated, in pixels of the original image), by size and
    ratio at the network's input, and by the level that has an object's best anchor.
    """
    sizes = binned(box_sides(objects.boxes), SIZE_EDGES)
    ratios = binned(box_ratios(objects.boxes), RATIO_EDGES)
    level = np.where(coverage.cell >= 0, layout.level[coverage.cell], -1)
    return {
        "size (COCO), original": {
            name: (objects.areas >= low) & (objects.areas <= high)
            for name, (low, high) in zip(AREA_NAMES, AREA_RANGES, strict=True)
        },
        "size, network input": {
            f"{SIZE_EDGES[i]:.0f}-{SIZE_EDGES[i + 1]:.0f} px": sizes == i
            for i in np.unique(sizes)
        },
        "height / width": {
            f"{RATIO_EDGES[i]:.2f}-{RATIO_EDGES[i + 1]:.2f}": ratios == i
            for i in np.unique(ratios)
        },
        "level of best anchor": {
            f"{i} (stride {layout.strides[0, layout.level == i][0, 0]:g})": level == i
            for i in range(layout.level.max() + 1)
        },
    }


def table(
    coverage: Coverage, title: str, rows: Mapping[str, np.ndarray], threshold: float
) -> str:
    """Lay groups of objects out as text, a line a group; `LEGEND` says what it means.

    Args:
        coverage: of the objects.
        title: of the column of names.
        rows: for each name the group, `[N]` bool.
        threshold: IoU from which an object is covered.
    """
    head = ("objects", "IoU", *(f">={t:g}" for t in THRESHOLDS), "low-q", "lost")
    head = (*head, "anchors", "at best", "at worst")
    width = max(len(title), *map(len, rows))

    def line(name: str, cells: Sequence[str]) -> str:
        wide = (c.rjust(max(len(h) + 2, 7)) for c, h in zip(cells, head, strict=False))
        return name.ljust(width) + "".join(wide)

    lines = [line(title, head)]
    for name, group in rows.items():
        row = shares(coverage, group, threshold)
        cells = [f"{row.objects:,}"]
        if row.objects:
            parts = (*row.above, row.saved, row.lost)
            cells += [f"{row.mean_iou:.3f}", *(f"{x:.1%}" for x in parts)]
            cells += [f"{row.positives:g}", f"{row.centred:.1%}", f"{row.between:.1%}"]
        lines.append(line(name, cells))
    return "\n".join(lines)


def heat_map(objects: Objects, values: np.ndarray) -> HeatMap:
    """Average `values` `[N]`, such as `Coverage.covered`, by size and ratio."""
    size = binned(box_sides(objects.boxes), SIZE_EDGES)
    ratio = binned(box_ratios(objects.boxes), RATIO_EDGES)
    shape = len(SIZE_EDGES) - 1, len(RATIO_EDGES) - 1
    number, total = np.zeros(shape, np.int64), np.zeros(shape)
    np.add.at(number, (size, ratio), 1)
    np.add.at(total, (size, ratio), values)
    mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return HeatMap(SIZE_EDGES, RATIO_EDGES, number, mean)


def binned(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Index of the bin of each value; what lies beyond goes to the outermost bins."""
    return np.clip(np.digitize(values, edges) - 1, 0, len(edges) - 2)
