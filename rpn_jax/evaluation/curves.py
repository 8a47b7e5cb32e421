"""From the matches of all images to curves of precision over recall, in NumPy.

Precision needs the scores of all images side by side, so this part runs on the host:
what the device found right is collected, sorted and summed up here, in float64.

Shape legend: `R` area ranges, `T` IoU thresholds, `C` classes, `P` recall points, `D`
detections of all images.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np

from rpn_jax.evaluation.detections import DetectionMatches


class Collected(NamedTuple):
    """Detections of all images, best first.

    Attributes:
        hit: `[D, R, T]` bool.
        ignored: `[D, R, T]` bool.
        ranks: `[D]`, within image and class.
        rows: for each class its detections, best first.
        objects: `[R, C]`.
    """

    hit: np.ndarray
    ignored: np.ndarray
    ranks: np.ndarray
    rows: list[np.ndarray]
    objects: np.ndarray


def collect(
    matches: DetectionMatches | Iterable[DetectionMatches], num_classes: int
) -> Collected:
    """Bring matches to the host, drop the padding, sort by class and score."""
    parts, counts = [], []
    for batch in [matches] if isinstance(matches, DetectionMatches) else matches:
        hit, ignored, scores, labels, ranks, objects = map(
            np.asarray, jax.device_get(batch)
        )
        highest = max(labels.max(initial=-1), objects.max(initial=-1))
        if highest >= num_classes:
            raise ValueError(
                f"classes must be 0-based and below num_classes, got class {highest} "
                f"with num_classes = {num_classes}"
            )
        outcomes = (np.moveaxis(x, -1, -3) for x in (hit, ignored))
        real = labels >= 0
        parts.append([x[real] for x in (*outcomes, scores, labels, ranks)])
        by_range = np.moveaxis(objects, -2, 0)
        counts.append([np.bincount(x[x >= 0], minlength=num_classes) for x in by_range])
    if not parts:
        raise ValueError("matches must be of one image at least, got none")
    hit, ignored, scores, labels, ranks = map(np.concatenate, zip(*parts, strict=True))
    order = np.lexsort((-scores, labels))  # stable: equal scores stay in order
    ends = np.searchsorted(labels[order], np.arange(1, num_classes))
    return Collected(hit, ignored, ranks, np.split(order, ends), np.sum(counts, axis=0))


def curve(
    hit: np.ndarray, ignored: np.ndarray, objects: np.integer
) -> tuple[np.ndarray, np.ndarray]:
    """Recall after each detection, and the best precision from there on, `[D, T]`."""
    right = np.cumsum(hit, axis=0)
    counted = np.cumsum(~ignored, axis=0)
    precision = right / np.maximum(counted, 1)
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    return right / objects, best


def at_recalls(recall: np.ndarray, best: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Best precision where recall reaches each point, 0 where it does not, `[T, P]`."""
    first = [np.searchsorted(column, points) for column in recall.T]
    padded = np.pad(best, ((0, 1), (0, 0)))
    return np.stack([p[i] for p, i in zip(padded.T, first, strict=True)])


def over_classes(values: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Mean over the classes `[..., C]` that have objects, -1 if none has."""
    there = values[..., objects > 0]
    return there.mean(-1) if there.shape[-1] else np.full(values.shape[:-1], -1.0)
