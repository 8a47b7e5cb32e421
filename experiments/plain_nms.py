"""Plain NumPy loops for every kind of NMS, and random cases to run them on.

`experiments.exactness` holds the ops to them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

F = np.float32
CLASSES = 3


class Case(NamedTuple):
    """N boxes as the ops take them, and an IoU threshold."""

    boxes: np.ndarray
    scores: np.ndarray
    valid: np.ndarray
    groups: np.ndarray
    threshold: np.floating


class Expected(NamedTuple):
    """What the reference returns, and by how much its closest decision was taken."""

    arrays: tuple[np.ndarray, ...]
    margin: float


# Random cases.


def random_case(rng: np.random.Generator, n: int) -> Case:
    """Draw a case of n boxes."""
    boxes = _random_boxes(rng, n)
    valid = (
        np.ones(n, bool),
        rng.random(n) < rng.random(),
        np.arange(n) < rng.integers(n + 1),  # padded at the end
    )[rng.integers(3)]
    groups = (
        np.zeros(n),
        rng.integers(-2, 3, n),
        np.arange(n),
        rng.choice([-(2**31), 2**31 - 1, 0], n),
    )[rng.choice(4, p=(0.5, 0.3, 0.1, 0.1))]
    threshold = F(rng.integers(11) / 10)
    if rng.random() < 0.4:  # the IoU of two of the boxes, or next to it
        two = boxes[rng.integers(n, size=2)]
        if np.isfinite(two).all():
            some = pairwise_iou(two)[0, 1]
            threshold = np.nextafter(some, F(rng.choice([0.0, some, 1.0])))
    return Case(
        boxes, _random_scores(rng, n), valid, groups.astype(np.int32), threshold
    )


def _random_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    style = rng.choice(["grid", "anywhere", "clusters", "chain", "copies"])
    low, size = rng.uniform(-64, 64, (n, 2)), rng.uniform(0.5, 64, (n, 2))
    if style == "grid":  # ties, empty boxes, IoUs of exactly 1/2
        low, size = rng.integers(0, 8, (n, 2)), rng.integers(0, 7, (n, 2))
    elif style == "clusters":
        which, spread = rng.integers(1 + n // 8, size=n), rng.choice([0.1, 1, 4])
        low = low[which] + spread * rng.normal(size=(n, 2))
        size = np.abs(size[which] + spread * rng.normal(size=(n, 2)))
    elif style == "chain":  # each overlaps its neighbours
        low, size = np.arange(n)[:, None] * [[1.0, 0.0]], np.full((n, 2), rng.choice(9))
        low = low[rng.permutation(n)] if rng.random() < 0.5 else low
    elif style == "copies":
        which = rng.integers(3, size=n) % n
        low, size = low[which], size[which]
    boxes = np.concatenate([low, low + size], axis=1).astype(F)
    if rng.random() < 0.3:  # inverted in one direction or both
        rows = rng.random(n) < 0.2
        swap = [[2, 1, 0, 3], [2, 3, 0, 1]][rng.integers(2)]
        boxes[rows] = boxes[rows][:, swap]
    if rng.random() < 0.3:
        wrong = rng.random((n, 4)) < 0.05
        boxes[wrong] = rng.choice([np.nan, np.inf, -np.inf], wrong.sum())
    return boxes


def _random_scores(rng: np.random.Generator, n: int) -> np.ndarray:
    scores = (
        rng.random(n),
        rng.integers(4, size=n),
        rng.normal(size=n),
        np.full(n, rng.random()),
    )[rng.integers(4)].astype(F)
    if rng.random() < 0.3:
        some = rng.random(n) < 0.2
        scores[some] = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0], some.sum())
    order = rng.choice(["none", "ascending", "descending"], p=(0.6, 0.1, 0.3))
    if order != "none":
        scores = np.sort(scores)[:: 1 if order == "ascending" else -1].copy()
    if rng.random() < 0.2:
        scores[rng.integers(n) :] = -np.inf
    return scores


# The reference.


def pairwise_iou(boxes: np.ndarray) -> np.ndarray:
    """Compute IoU [N, N] in float32, in the order in which the ops do."""
    x1, y1, x2, y2 = boxes.T
    area = np.maximum((x2 - x1) * (y2 - y1), F(0))
    w = np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1)
    h = np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1)
    inter = np.maximum(np.maximum(w, F(0)) * h, F(0))
    union = (area[:, None] + area) - inter
    return inter / np.where(union == 0, F(1), union)


def _prepare(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return who takes part, IoU, and who is in one group."""
    part = case.valid & np.isfinite(case.boxes).all(1)
    part &= ~np.isnan(case.scores) & (case.scores != -np.inf)
    iou = pairwise_iou(np.where(part[:, None], case.boxes, F(0)))
    return part, iou, case.groups[:, None] == case.groups


def _iou_margin(part, iou, same, threshold) -> float:
    """How far, relatively, any IoU that matters is from the threshold."""
    with np.errstate(invalid="ignore"):
        away = np.abs(iou - threshold) / np.maximum(iou, threshold)
    return float(np.nanmin(away, where=part[:, None] & part & same, initial=1))


def _pad(values: Sequence, k: int, filling: float, dtype: Any) -> np.ndarray:
    return np.array([*values, *[filling] * (k - len(values))], dtype)


def greedy(case: Case, k: int) -> Expected:
    """Take the best box left, drop what overlaps it, repeat."""
    part, iou, same = _prepare(case)
    kept: list[int] = []
    alive = part.copy()
    for i in np.argsort(-case.scores, kind="stable"):
        if alive[i] and len(kept) < k:
            kept.append(i)
            alive &= ~((iou[i] > case.threshold) & same[i])
    margin = _iou_margin(part, iou, same, case.threshold)
    return Expected((_pad(kept, k, -1, np.int32),), margin)


def soft_greedy(
    case: Case, k: int, *, method: str, score_threshold: float = 0.001
) -> Expected:
    """Take the best box left, lower the scores of what overlaps it, repeat.

    The exponential is XLA's, that of NumPy rounds otherwise.
    """
    part, iou, same = _prepare(case)
    scores = np.where(part & (case.scores >= 0), case.scores, F(-1))
    scores[np.isinf(scores)] = -1
    linear = method == "linear"
    factors = 1 - iou
    if not linear:
        factors = np.asarray(jnp.exp(iou * iou * (F(-1) / sigma(case.threshold))))
    limit = case.threshold if linear else F(0)
    least = F(max(score_threshold, 0))
    margin = _iou_margin(part, iou, same, limit) if linear else 1.0
    indices, values = [], []
    while len(indices) < k:
        best = int(scores.argmax())
        score = scores[best]
        if score < 0:
            break
        margin = min(margin, abs(score - least) / max(score, least))
        if score < least:
            break
        indices.append(best)
        values.append(score)
        scores[best] = -1
        margin = min(margin, (score - scores.max()) / score if score else 0)
        decays = (iou[best] > limit) & same[best] & (scores > 0)
        scores = np.where(decays, scores * factors[best], scores)
    arrays = _pad(indices, k, -1, np.int32), _pad(values, k, 0, F)
    return Expected(arrays, float(margin))


def sigma(threshold):
    """A width of gaussian decay for every case."""
    return threshold + F(0.1)


def to_classes(case: Case, *, shared: bool) -> Case:
    """Make of a case one of C classes, [box, class] flattened."""
    rows = -(-len(case.scores) // CLASSES)
    flat = rows * CLASSES
    boxes = np.resize(case.boxes, (flat, 4))
    return Case(
        np.repeat(boxes[:rows], CLASSES, axis=0) if shared else boxes,
        np.resize(case.scores, flat),
        np.repeat(case.valid[:rows], CLASSES),
        np.arange(flat, dtype=np.int32) % CLASSES,
        case.threshold,
    )


def multiclass_greedy(case: Case, k: int, *, least: float, cut: bool) -> Expected:
    """Run `greedy` within each class, on the candidates above a score."""
    part = _prepare(case)[0] & (case.scores > least)
    if cut:
        order = np.argsort(-case.scores, kind="stable")
        best = [i for i in order if part[i]][: candidates(part)]
        part = np.isin(np.arange(len(part)), best)
    (kept,), margin = greedy(case._replace(valid=part), k)
    indices, classes = np.where(kept >= 0, np.divmod(kept, CLASSES), -1)
    return Expected((indices, classes), margin)


def candidates(pairs) -> int:
    """How many pairs enter NMS where their number is cut."""
    return max(len(pairs) // 2, 1)
