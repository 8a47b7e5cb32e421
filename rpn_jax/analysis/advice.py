"""What the numbers of coverage say: which objects are missed, why, and what to add."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from rpn_jax.analysis.coverage import Coverage, anchor_layout, best_ious
from rpn_jax.analysis.objects import Objects
from rpn_jax.analysis.report import (
    RATIO_EDGES,
    SIZE_EDGES,
    binned,
    box_ratios,
    box_sides,
)
from rpn_jax.rpn import RPNConfig

NOTABLE = 0.01
"""The least share of all objects that a bin must hold to be spoken of."""
SAMPLE = 20_000
"""Objects on which additions are tried."""


def advise(objects: Objects, coverage: Coverage, config: RPNConfig) -> list[str]:
    """Say in a few sentences what the anchors miss, and what would serve it.

    An addition is advised only if trying it out covers at least one more object in a
    hundred.
    """
    threshold = config.convention.targets.high_threshold
    missed = ~coverage.covered
    number, total = int(missed.sum()), len(missed)
    if not number:
        return [f"Every object has an anchor at IoU {threshold:g}."]
    lines = [
        f"{number:,} of {total:,} objects ({number / total:.0%}) have no anchor at IoU "
        f"{threshold:g}."
    ]
    for what, form, values, edges in (
        ("Sizes", "{:.0f}-{:.0f} px", box_sides(objects.boxes), SIZE_EDGES),
        ("Height / width", "{:.2f}-{:.2f}", box_ratios(objects.boxes), RATIO_EDGES),
    ):
        ranges = list(_missed_ranges(coverage.covered, binned(values, edges), edges))
        if ranges:
            text = ", ".join(
                f"{form.format(low, high)} ({share:.0%} of {count:,})"
                for low, high, share, count in ranges
            )
            lines.append(f"{what} of which less than half are covered: {text}.")
    between = (coverage.centred[missed] >= threshold).mean()
    if between > 0.3:
        lines.append(
            f"{between:.0%} of the missed would be covered if they lay on a grid "
            "point: a finer stride would serve them."
        )
    lines += try_additions(objects, coverage, config)
    lost = int(coverage.lost.sum())
    if lost:
        lines.append(f"{lost:,} objects get no positive anchor at all.")
    return lines


def _missed_ranges(
    covered: np.ndarray, which: np.ndarray, edges: np.ndarray
) -> Iterator[tuple[float, float, float, int]]:
    """Join neighbouring bins of which hardly any is covered, or less than half.

    Yields:
        Where they begin and end, the share that is covered, the number of objects.
    """
    number = np.bincount(which, minlength=len(edges) - 1)
    hits = np.bincount(which, covered, minlength=len(edges) - 1)
    share = hits / np.maximum(number, 1)
    grade = np.digitize(share, (0.1, 0.5))  # 0 hardly any, 1 less than half
    grade[number < max(NOTABLE * len(which), 1)] = 2
    borders = np.r_[0, np.flatnonzero(np.diff(grade)) + 1, len(grade)]
    for start, end in zip(borders[:-1], borders[1:], strict=True):
        if grade[start] < 2:
            total = int(number[start:end].sum())
            hit = float(hits[start:end].sum())
            yield float(edges[start]), float(edges[end]), hit / total, total


def try_additions(
    objects: Objects, coverage: Coverage, config: RPNConfig, what: str = "objects"
) -> list[str]:
    """Try one more size at every level, and one more ratio.

    Args:
        objects: to be covered; of more than `SAMPLE` so many in even steps.
        coverage: of them, by the network as it is.
        config: the network.
        what: to call the objects.

    Returns:
        A sentence about the best size and one about the best ratio, where they cover
        at least `NOTABLE` more.
    """
    rows = np.linspace(0, len(coverage.iou) - 1, min(SAMPLE, len(coverage.iou)))
    rows = rows.astype(np.int64)
    boxes, missed = objects.boxes[rows], ~coverage.covered[rows]
    objects = objects._replace(boxes=boxes, image=objects.image[rows])
    if not missed.any():
        return []
    at = np.linspace(0.1, 0.9, 9)
    sizes = np.unique(np.quantile(box_sides(boxes[missed]), at).round(1))
    ratios = np.unique(np.quantile(box_ratios(boxes[missed]), at).round(2))
    wider = {
        f"the size {size:g} px at stride {config.strides[level]}": dataclasses.replace(
            config, sizes=_with(config.sizes, level, float(size))
        )
        for level in range(len(config.sizes))
        for size in sizes
    }
    taller = {
        f"the ratio {ratio:g}": dataclasses.replace(
            config, ratios=(*config.ratios, float(ratio))
        )
        for ratio in ratios
    }
    targets, found = config.convention.targets, []
    for trials in (wider, taller):
        gains = {}
        for name, trial in trials.items():
            iou = best_ious(objects, anchor_layout(trial, objects.buckets), targets)
            covered = np.asarray(iou) >= targets.high_threshold
            gains[name] = covered.mean() - 1 + missed.mean()
        name = max(gains, key=gains.__getitem__)
        if gains[name] >= NOTABLE:
            gain = f"{gains[name]:.0%} of the {what}"
            found.append(f"Adding {name} would cover another {gain}.")
    return found


def _with(sizes: tuple, level: int, size: float) -> tuple:
    """Add a size to a level."""
    return (*sizes[:level], (*sizes[level], size), *sizes[level + 1 :])
