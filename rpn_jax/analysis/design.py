"""Anchor sizes and ratios proposed from the objects of a data set.

A network has sizes for each level and ratios for all of them, and its anchors are their
products; the numbers of both stay what they are.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from rpn_jax.analysis.coverage import anchor_layout, best_ious
from rpn_jax.analysis.objects import Objects
from rpn_jax.analysis.report import THRESHOLDS, box_ratios, box_sides
from rpn_jax.rpn import RPNConfig

SAMPLE = 20_000
"""Objects that a design is made from; of more, so many in even steps."""
STEPS = (0.32, 0.16, 0.08, 0.04, 0.02, 0.01)
"""By how much sizes and ratios are moved, as logarithms."""


def design_anchors(objects: Objects, config: RPNConfig) -> RPNConfig:
    """Find the sizes and ratios that cover the most objects, at equal number.

    From two starts, the present sizes and ratios and those that `cluster_anchors`
    gives, each is moved up and down as long as that raises the score, in ever smaller
    steps; the better end is taken. Nothing is drawn at random.

    The score is the mean of the shares of objects whose best anchor, where they lie on
    the grid, reaches IoU 0.3, 0.5 and 0.7. The share above 0.7 alone would rise
    further, at the price of the smallest objects, which it gives up altogether.

    Args:
        objects: to design from, not those to measure on.
        config: the network; all but sizes and ratios stays.

    Returns:
        `config` with other sizes and ratios, rounded to three digits.
    """
    rows = np.linspace(0, len(objects.boxes) - 1, min(SAMPLE, len(objects.boxes)))
    rows = rows.astype(np.int64)
    objects = objects._replace(boxes=objects.boxes[rows], image=objects.image[rows])
    targets = config.convention.targets

    def score(values: np.ndarray) -> float:
        layout = anchor_layout(_with_values(config, values), objects.buckets)
        iou = np.asarray(best_ious(objects, layout, targets), np.float64)
        # Of what reaches as many, the closer fit.
        return float(np.mean([iou >= t for t in THRESHOLDS]) + 0.01 * iou.mean())

    starts = config, cluster_anchors(objects, config)
    ends = [_climb(_values(start), score) for start in starts]
    values, _ = max(ends, key=lambda end: end[1])
    return _with_values(config, values)


def cluster_anchors(objects: Objects, config: RPNConfig) -> RPNConfig:
    """Cluster objects by IoU into sizes times ratios.

    K-means in which an object belongs to the anchor that it overlaps most when their
    centres agree, and each size and each ratio moves to the geometric mean of its
    objects'. The smallest sizes go to the first level.

    Args:
        objects: to cluster.
        config: says how many sizes each level has, and how many ratios there are.

    Returns:
        `config` with other sizes and ratios.
    """
    logs = np.log(box_sides(objects.boxes)), np.log(box_ratios(objects.boxes))
    counts = sum(map(len, config.sizes)), len(config.ratios)
    centres = [
        np.quantile(x, (np.arange(n) + 0.5) / n)
        for x, n in zip(logs, counts, strict=True)
    ]
    before = None
    for _ in range(100):
        nearest = _most_similar(*logs, *centres)
        if before is not None and (nearest == before).all():
            break
        before = nearest
        members = np.divmod(nearest, counts[1])
        for x, centre, member in zip(logs, centres, members, strict=True):
            number = np.bincount(member, minlength=len(centre))
            total = np.bincount(member, x, minlength=len(centre))
            centre[number > 0] = total[number > 0] / number[number > 0]
    return _with_values(config, np.concatenate([np.sort(c) for c in centres]))


def _most_similar(side, ratio, sizes, ratios) -> np.ndarray:
    """Index into sizes x ratios of the anchor with the highest IoU, all logarithms."""
    best, index = np.full(len(side), -1.0), np.zeros(len(side), np.int64)
    height, width = np.exp(side + ratio / 2), np.exp(side - ratio / 2)
    for i in range(len(sizes)):
        for j in range(len(ratios)):
            h, w = np.exp(sizes[i] + ratios[j] / 2), np.exp(sizes[i] - ratios[j] / 2)
            shared = np.minimum(h, height) * np.minimum(w, width)
            iou = shared / (h * w + height * width - shared)
            index = np.where(iou > best, i * len(ratios) + j, index)
            best = np.maximum(best, iou)
    return index


def _climb(
    values: np.ndarray, score: Callable[[np.ndarray], float]
) -> tuple[np.ndarray, float]:
    """Raise a score by moving one value at a time, until no step raises it."""
    best = score(values)
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for i in range(len(values)):
                for move in (step, -step):
                    trial = values.copy()
                    trial[i] += move
                    if (found := score(trial)) > best:
                        values, best, improved = trial, found, True
    return values, best


def _values(config: RPNConfig) -> np.ndarray:
    """Logarithms of all sizes, level by level, and of the ratios."""
    return np.log([*(s for sizes in config.sizes for s in sizes), *config.ratios])


def _with_values(config: RPNConfig, values: np.ndarray) -> RPNConfig:
    """Put sizes and ratios back, rounded to three digits."""
    rounded = [float(f"{x:.3g}") for x in np.exp(values)]
    sizes, start = [], 0
    for level in config.sizes:
        sizes.append(tuple(sorted(rounded[start : start + len(level)])))
        start += len(level)
    return dataclasses.replace(
        config, sizes=tuple(sizes), ratios=tuple(sorted(rounded[start:]))
    )
