"""Extreme inputs for the functions of the library, and what has to hold of the results.

`FAMILIES` is a table: what a few functions are given, and a check of what they return.
`experiments.fuzz` and the tests fill the inputs, each in its own way, with huge, tiny,
infinite and undefined numbers, ties and padding. Shapes are fixed, so that each family
compiles once.

    python -m experiments.fuzz_ops [CASES [SEED]]

runs so many cases over the families in turn.
"""

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rpn_jax as rj
from rpn_jax.conventions import (
    DETECTRON2,
    PY_FASTER_RCNN,
    TORCHVISION,
    LossConvention,
    options,
)
from rpn_jax.evaluation import (
    match_detections,
    match_voc_detections,
    matched_recall,
)
from rpn_jax.objective import RPNOutputs, rpn_loss
from rpn_jax.proposals import proposal_options
from rpn_jax.targets import AnchorTargets

F = np.float32
TINY = np.finfo(F).tiny  # XLA takes what is smaller for 0

SPECIAL = np.array(
    [
        *(0.0, -0.0, 1e-45, -1e-40, 1e-38, 1e-20, 1.0, -1.0, 1e9, 1e19, -1e19),
        *(1e30, -1e30, 3e38, -3e38, np.inf, -np.inf, np.nan),
    ],
    F,
)
"""Numbers where functions go wrong."""


class Input(NamedTuple):
    """An array to fill.

    Attributes:
        kind: "boxes", "numbers", "mask", "integers" (-2 to 3) or "seed".
        shape: of the array.
    """

    kind: str
    shape: tuple[int, ...]


class Family(NamedTuple):
    """Functions that are tried together.

    Attributes:
        inputs: what they are given, by name.
        check: runs them on such arrays; raises `AssertionError` where a contract is
            broken, else returns the name of the outcome.
    """

    inputs: dict[str, Input]
    check: Callable[..., str]


FAMILIES: dict[str, Family] = {}


def family(**inputs: Any):
    """Enter a check in the table; inputs are `name=(kind, *shape)`."""

    def enter(check: Callable[..., str]):
        spec = {name: Input(kind, tuple(n)) for name, (kind, *n) in inputs.items()}
        FAMILIES[check.__name__] = Family(spec, check)
        return check

    return enter


def draw(rng: np.random.Generator, given: Input) -> Any:
    """Fill an array."""
    kind, shape = given
    if kind == "seed":
        return rng.integers(0, 2**31, dtype=np.int64).astype(np.uint32)
    if kind == "mask":
        return rng.random(shape) < rng.choice([0, 0.5, 0.9, 1])
    if kind == "integers":
        return rng.integers(-2, 4, shape, dtype=np.int32)
    if kind == "boxes":
        whole = rng.integers(0, 13, (*shape[:-1], 2, 2)).astype(F)
        real = rng.uniform(-20, 60, (*shape[:-1], 2, 2)).astype(F)
        corners = np.sort(whole if rng.random() < 0.5 else real, axis=-2)
        values = corners.reshape(shape)
    else:
        whole = rng.integers(-3, 4, shape).astype(F)
        values = whole if rng.random() < 0.5 else rng.normal(0, 5, shape).astype(F)
    strange = rng.random(shape) < rng.choice([0, 0, 0.02, 0.2, 1])
    values = np.where(strange, rng.choice(SPECIAL, shape), values)
    if rng.random() < 0.1:
        values = np.broadcast_to(values[:1], shape).copy()  # nothing but ties
    return values


# What the results are compared with, in plain NumPy. As XLA does, it takes what is
# smaller than any normal number for 0.


def flush(x):
    """Take what is smaller than any normal number for 0."""
    return np.where(np.abs(x) < TINY, F(0), x)


def positive(x):
    """Return x above 0, else 0, NaN included."""
    return np.where(x > 0, x, F(0))


def reference_iou(a, b):
    """IoU of boxes [N, 4] with boxes [M, 4]; NaN of those that are not finite."""
    a, b = (np.where(finite(x)[:, None], flush(x), F(np.nan)) for x in (a, b))
    unknown = np.isnan(a[:, :1]) | np.isnan(b[:, 0])
    area = [positive(flush((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]))) for x in (a, b)]
    a, b = np.moveaxis(a[:, None], -1, 0), np.moveaxis(b[None], -1, 0)
    least = [np.where(a[i] < b[i], a[i], b[i]) for i in (2, 3)]
    most = [np.where(a[i] > b[i], a[i], b[i]) for i in (0, 1)]
    width, height = positive(flush(least[0] - most[0])), flush(least[1] - most[1])
    inter = positive(flush(width * height))
    union = flush((area[0][:, None] + area[1][None]) - inter)
    iou = flush(inter / np.where(union == 0, F(1), union))
    return np.where(unknown, F(np.nan), iou)


def ranking(scores, valid):
    """Indices of what may be chosen, best first, ties to the lower index."""
    scores = flush(scores)
    usable = np.flatnonzero(valid & ~np.isnan(scores) & (scores != -np.inf))
    return usable[np.argsort(-scores[usable], kind="stable")]


def padded(indices, length):
    """Fill indices up with -1."""
    indices = list(indices)[:length]
    return np.array(indices + [-1] * (length - len(indices)), np.int32)


def finite(x) -> np.ndarray:
    """Tell which rows are finite."""
    return np.isfinite(x).all(axis=-1)


def mild(*arrays) -> bool:
    """Tell whether no number is so huge that its square overflows."""
    return all((np.abs(x) < 1e18).all() for x in arrays)


def upright(boxes) -> np.ndarray:
    """Tell which boxes are not inverted."""
    return (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)


def same(found, expected, what: str) -> None:
    """Hold that two arrays are equal, NaN included."""
    if not np.array_equal(found, expected, equal_nan=np.asarray(found).dtype == F):
        raise AssertionError(f"{what}: {found} is not {expected}")


def hold(condition, what: str) -> None:
    """Hold that a condition is true everywhere."""
    if not np.all(condition):
        raise AssertionError(what)


def within(x, low, high, what: str) -> None:
    """Hold that numbers lie in a range; NaN does not."""
    hold((x >= low) & (x <= high), f"{what} must lie in {low} to {high}: {x}")


def fetch(tree):
    """Bring results to the host."""
    return jax.tree.map(np.asarray, tree)


# The families. Their functions are made when first wanted, and compiled once.


@cache
def _boxes():
    def run(a, b):
        overlaps = {
            "iou": rj.box_iou,
            "ioa": rj.box_ioa,
            "giou": rj.generalized_box_iou,
            "diou": rj.distance_box_iou,
            "ciou": rj.complete_box_iou,
        }
        found = {name: f(a, b) for name, f in overlaps.items()}
        found |= {"area": rj.box_area(a), "clipped": rj.clip_boxes_to_image(a, (9, 7))}
        found["slope"] = jax.grad(lambda a: rj.box_iou(a, b).sum())(a)
        found["levels"] = rj.assign_levels(a, min_level=2, max_level=5)
        return found

    return jax.jit(run)


@family(a=("boxes", 6, 4), b=("boxes", 5, 4))
def boxes(a, b):
    """Overlaps, area, clipping and levels."""
    found = fetch(_boxes()(a, b))
    within(found["area"], 0, np.inf, "area")
    within(found["levels"], 0, 3, "levels")
    same(found["iou"], reference_iou(a, b), "iou")
    same(np.isnan(found["clipped"]), np.isnan(a), "NaN of clipped boxes")
    limits = np.array([7, 9, 7, 9])
    clipped = np.nan_to_num(found["clipped"])
    hold((clipped >= 0) & (clipped <= limits), "clipped boxes leave the image")
    if mild(a, b):
        hold(np.isfinite(found["slope"]), f"gradient of iou: {found['slope']}")
    least = {"iou": 0, "ioa": 0, "giou": -1.0001, "diou": -1.0001, "ciou": -2.0001}
    for name, low in least.items():
        x = found[name]
        x = x[upright(a)][:, upright(b)] if name in ("giou", "diou", "ciou") else x
        within(x[~np.isnan(x)] if not mild(a, b) else x, low, 1.0001, name)
    return "mild" if mild(a, b) else "extreme"


@cache
def _coding():
    def run(boxes, anchors, deltas):
        decode = partial(rj.decode_boxes, max_log_scale=np.inf)
        gradient = jax.grad(
            lambda *x: jnp.clip(decode(*x), 0, 50).sum(), argnums=(0, 1)
        )
        return (
            rj.encode_boxes(boxes, anchors),
            rj.decode_boxes(deltas, anchors),
            gradient(deltas, anchors),
        )

    return jax.jit(run)


@family(boxes=("boxes", 6, 4), anchors=("boxes", 6, 4), deltas=("numbers", 6, 4))
def coding(boxes, anchors, deltas):
    """Offsets of boxes, boxes of offsets, and their gradient."""
    encoded, decoded, gradients = fetch(_coding()(boxes, anchors, deltas))
    sides = np.concatenate([x[:, 2:] - x[:, :2] for x in (boxes, anchors)], axis=1)
    usual = ((sides > 1e-9) & (sides < 1e18)).all(axis=1)
    far = np.abs(np.concatenate([boxes, anchors], axis=1)).max(axis=1)
    hold(finite(encoded)[usual & (far < 1e18)], f"encoded: {encoded}")
    usual = (np.abs(np.concatenate([anchors, deltas], axis=1)) < 1e18).all(axis=1)
    hold(finite(decoded)[usual], f"decoded: {decoded}")
    usual &= (np.abs(anchors) < 1e9).all(axis=1)
    for gradient in gradients:
        hold(finite(gradient)[usual], f"gradient of decoded: {gradient}")
    return "usual" if usual.all() else "extreme"


@cache
def _losses():
    each = {"giou": rj.giou_loss, "diou": rj.diou_loss, "ciou": rj.ciou_loss}
    smooth = rj.smooth_l1_loss

    def run(predictions, targets, labels, boxes, gt_boxes):
        def with_gradient(f, x, *rest):
            total, pull = jax.vjp(lambda x: f(x, *rest), x)
            return total, pull(jnp.ones_like(total))[0]

        found = {k: with_gradient(f, boxes, gt_boxes) for k, f in each.items()}
        found["smooth"] = with_gradient(smooth, predictions, targets)
        found["l1"] = with_gradient(partial(smooth, beta=0), predictions, targets)
        found["sigmoid"] = with_gradient(
            rj.sigmoid_objectness_loss, predictions, labels
        )
        pairs = jnp.stack([predictions, targets], axis=-1)
        found["softmax"] = with_gradient(rj.softmax_objectness_loss, pairs, labels)
        return found

    return jax.jit(run)


@family(
    predictions=("numbers", 8),
    targets=("numbers", 8),
    labels=("integers", 8),
    boxes=("boxes", 8, 4),
    gt_boxes=("boxes", 8, 4),
)
def losses(predictions, targets, labels, boxes, gt_boxes):
    """Losses of single anchors and their gradients."""
    found = fetch(_losses()(predictions, targets, labels, boxes, gt_boxes))
    usual = np.abs(np.stack([predictions, targets])).max(axis=0) <= 1e30
    mild_boxes = np.abs(np.concatenate([boxes, gt_boxes], axis=1)).max(axis=1) < 1e18
    for name, (loss, gradient) in found.items():
        rows = mild_boxes if name.endswith("iou") else usual
        hold(np.isfinite(loss[rows]), f"{name}: {loss}")
        if name.endswith("iou"):
            rows = rows & upright(boxes) & upright(gt_boxes)
        within(loss[rows], -1e-4, np.inf, name)
        hold(np.isfinite(gradient[rows]), f"gradient of {name}: {gradient}")
    return "usual" if usual.all() and mild_boxes.all() else "extreme"


@cache
def _objective():
    # Anchors of a usual size: those are not what goes wrong here.
    anchors = jnp.asarray(rj.grid_anchors((2, 2), scales=(1, 2), ratios=(1.0,)))
    kinds = {"smooth_l1": TORCHVISION, "softmax": PY_FASTER_RCNN} | {
        kind: dataclasses.replace(TORCHVISION, loss=LossConvention(box=kind))
        for kind in ("giou", "diou", "ciou")
    }

    def run(logits, deltas, gt_boxes, labels, sampled):
        encoded = rj.encode_boxes(gt_boxes, anchors)
        known = (sampled & (labels == 1))[:, None]
        targets = AnchorTargets(
            labels,
            sampled,
            jnp.where(known, gt_boxes, 0.0),
            jnp.where(known, encoded, 0.0),
            jnp.zeros(1),
        )
        targets = jax.tree.map(lambda x: x[None], targets)

        def total(outputs, convention):
            logits, deltas = outputs
            if convention.loss.objectness == "softmax":
                logits = jnp.stack([-logits, logits], axis=-1)
            outputs = RPNOutputs((anchors,), (logits[None],), (deltas[None],))
            losses = rpn_loss(outputs, targets, convention)
            return losses.objectness + losses.box

        return {
            name: jax.value_and_grad(total)((logits, deltas), convention)
            for name, convention in kinds.items()
        }

    return jax.jit(run)


@family(
    logits=("numbers", 8),
    deltas=("numbers", 8, 4),
    labels=("integers", 8),
    sampled=("mask", 8),
)
def objective(logits, deltas, labels, sampled):
    """The loss of a batch: anchors that do not count may hold anything."""
    gt_boxes = np.tile(np.array([[1, 2, 18, 21]], F), (8, 1))
    found = fetch(_objective()(logits, deltas, gt_boxes, labels, sampled))
    counts = sampled & (labels == 1)
    usual = (np.abs(logits[sampled]) < 1e30).all()
    usual &= (np.abs(deltas[counts]) < 1e9).all()
    for name, (loss, gradients) in found.items():
        if usual:
            hold(np.isfinite(loss), f"{name}: {loss}")
            for gradient in gradients:
                hold(np.isfinite(gradient), f"gradient of {name}: {gradient}")
        hold(gradients[0][~sampled] == 0, f"{name}: gradient of logits not sampled")
        hold(gradients[1][~counts] == 0, f"{name}: gradient of deltas not positive")
    return "usual" if usual else "extreme"


@cache
def _selection():
    def run(boxes, scores, valid, groups):
        common = {"iou_threshold": 0.5, "max_outputs": 9, "valid": valid}
        pairs = jnp.stack([scores, scores[::-1]], axis=1)
        return (
            rj.top_k(scores, 9, valid=valid),
            rj.nms(boxes, scores, groups=groups, **common),
            rj.multiclass_nms(boxes, pairs, **common),
        )

    return jax.jit(run)


@family(
    boxes=("boxes", 12, 4),
    scores=("numbers", 12),
    valid=("mask", 12),
    groups=("integers", 12),
)
def selection(boxes, scores, valid, groups):
    """Exact top-k and NMS, against NumPy."""
    best, kept, pairs = fetch(_selection()(boxes, scores, valid, groups))
    same(best.indices, padded(ranking(scores, valid), 9), "top_k")
    chosen = np.where(best.valid, flush(scores)[best.indices], F(0))
    same(best.values, chosen, "values of top_k")
    usable = valid & finite(boxes)
    overlap = reference_iou(boxes, boxes) > F(0.5)
    same(kept.indices, padded(_greedy(overlap, scores, usable, groups), 9), "nms")
    scores, usable = np.stack([scores, scores[::-1]], axis=1).ravel(), usable.repeat(2)
    overlap = overlap.repeat(2, axis=0).repeat(2, axis=1)
    order = padded(_greedy(overlap, scores, usable, np.arange(24) % 2), 9)
    same(pairs.indices, np.where(order < 0, -1, order // 2), "multiclass_nms")
    same(pairs.classes, np.where(order < 0, -1, order % 2), "multiclass_nms, classes")
    return "some kept" if kept.valid.any() else "none kept"


def _greedy(overlap, scores, usable, groups) -> list[int]:
    kept = []
    for i in ranking(scores, usable):
        if not (overlap[kept, i] & (groups[kept] == groups[i])).any():
            kept.append(i)
    return kept


@cache
def _soft_nms():
    def run(boxes, scores, valid, groups):
        def total(boxes, scores, method):
            kept = rj.soft_nms(
                boxes,
                scores,
                max_outputs=5,
                method=method,
                valid=valid,
                groups=groups,
            )
            return kept.scores.sum(), kept

        gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
        return [gradient(boxes, scores, method) for method in ("linear", "gaussian")]

    return jax.jit(run)


@family(
    boxes=("boxes", 7, 4),
    scores=("numbers", 7),
    valid=("mask", 7),
    groups=("integers", 7),
)
def soft_nms(boxes, scores, valid, groups):
    """Soft-NMS: each box at most once, scores descending."""
    usable = valid & finite(boxes) & np.isfinite(scores) & (scores >= 0)
    for gradients, kept in fetch(_soft_nms()(boxes, scores, valid, groups)):
        chosen = kept.indices[kept.valid]
        hold(len({*chosen}) == len(chosen), "a box is chosen twice")
        hold(usable[chosen], "a box is chosen that takes no part")
        hold(np.diff(kept.scores) <= 0, f"scores do not descend: {kept.scores}")
        hold(kept.indices[~kept.valid] == -1, "padding is not -1")
        within(kept.scores[kept.valid], 0.001, scores[usable].max(initial=1), "scores")
        if mild(boxes[usable], scores[usable]):
            for gradient in gradients:
                hold(np.isfinite(gradient), f"gradient: {gradient}")
    return "usual" if usable.all() else "some take no part"


@cache
def _matching():
    rules = {
        "label": {"low_quality": "label"},
        "overwrite": {"low_quality": "overwrite", "low_quality_above": -1.0},
    }

    def run(anchors, gt_boxes, gt_valid, gt_ignore, anchor_valid):
        return {
            name: rj.match_anchors(
                anchors,
                gt_boxes,
                gt_valid,
                gt_ignore=gt_ignore,
                anchor_valid=anchor_valid,
                **rule,
            )
            for name, rule in rules.items()
        }

    return jax.jit(run)


@family(
    anchors=("boxes", 12, 4),
    gt_boxes=("boxes", 5, 4),
    gt_valid=("mask", 5),
    gt_ignore=("mask", 5),
    anchor_valid=("mask", 12),
)
def matching(anchors, gt_boxes, gt_valid, gt_ignore, anchor_valid):
    """Matching, against NumPy; what an ignore region covers apart."""
    found = fetch(_matching()(anchors, gt_boxes, gt_valid, gt_ignore, anchor_valid))
    small = flush(gt_boxes)
    proper = finite(gt_boxes) & (small[:, 2:] > small[:, :2]).all(axis=1)
    objects = gt_valid & proper & ~gt_ignore
    anchor_valid = anchor_valid & finite(anchors)
    regions = (gt_valid & proper & gt_ignore).any()
    iou = reference_iou(np.where(anchor_valid[:, None], anchors, F(0)), gt_boxes)
    iou = np.where(objects & (iou >= 0), iou, F(-1))  # NaN is no overlap
    best = np.where(iou.max(axis=1) < 0, -1, iou.argmax(axis=1))
    gt_best = iou.max(axis=0)
    for name, above in (("label", 0), ("overwrite", -1)):
        claims = objects & (gt_best > above) & (iou == gt_best)
        labels = np.where(iou.max(axis=1) < F(0.3), 0, -1)
        labels = np.where((iou.max(axis=1) >= F(0.7)) | claims.any(axis=1), 1, labels)
        index = best
        if name == "overwrite":
            last = 4 - claims[:, ::-1].argmax(axis=1)
            index = np.where(claims.any(axis=1), last, best)
        matches = found[name]
        labels = np.where(anchor_valid, labels, -1)
        if regions:  # they turn negatives into anchors that are not used, no more
            hidden = (labels == 0) & (matches.labels == -1)
            labels = np.where(hidden, -1, labels)
        same(matches.labels, labels, f"labels, {name}")
        same(matches.gt_index, np.where(anchor_valid, index, -1), f"index, {name}")
        same(matches.gt_iou, np.maximum(gt_best, 0), "gt_iou")
        same(matches.iou, np.where(anchor_valid, iou.max(axis=1), 0).clip(0), "iou")
    return "regions" if regions else "objects" if objects.any() else "no object"


@cache
def _sampling():
    return jax.jit(
        lambda seed, labels: [
            rj.sample_balanced(
                jax.random.key(seed), labels, size=size, positive_fraction=0.5
            )
            for size in (8, 200)
        ]
    )


@family(seed=("seed",), labels=("integers", 40))
def sampling(seed, labels):
    """Exact numbers of positives and negatives."""
    for size, mask in zip((8, 200), fetch(_sampling()(seed, labels)), strict=True):
        positives = min((labels == 1).sum(), size // 2)
        negatives = min((labels == 0).sum(), size - positives)
        hold((mask & (labels == 1)).sum() == positives, "positives drawn")
        hold((mask & (labels == 0)).sum() == negatives, "negatives drawn")
        hold(mask.sum() == positives + negatives, "others drawn")
    return "ok"


@cache
def _targets():
    def run(seed, anchors, gt_boxes, gt_labels, gt_valid, gt_ignore, valid):
        key = jax.random.key(seed)
        rules = [
            {"weights": x.coding.weights, **options(x.targets), "sample_size": 8}
            for x in (TORCHVISION, DETECTRON2, PY_FASTER_RCNN)
        ]
        first = [
            rj.anchor_targets(
                key, anchors, gt_boxes, gt_valid, (40, 60), gt_ignore=gt_ignore, **rule
            )
            for rule in rules
        ]
        second = [
            rj.roi_targets(
                key,
                anchors,
                valid,
                gt_boxes,
                gt_labels,
                gt_valid,
                gt_ignore,
                iou_threshold=least,
                sample_size=10,
            )
            for least in (0.5, 0.0)
        ]
        return first, second

    return jax.jit(run)


@family(
    seed=("seed",),
    anchors=("boxes", 12, 4),
    gt_boxes=("boxes", 5, 4),
    gt_labels=("integers", 5),
    gt_valid=("mask", 5),
    gt_ignore=("mask", 5),
    valid=("mask", 12),
)
def targets(seed, anchors, gt_boxes, gt_labels, gt_valid, gt_ignore, valid):
    """What the two stages learn: finite, whatever objects and anchors hold."""
    given = (seed, anchors, gt_boxes, gt_labels, gt_valid, gt_ignore, valid)
    first, second = fetch(_targets()(*given))
    for x in first:
        learnt = x.sampled & (x.labels == 1)
        hold(finite(x.deltas), f"deltas: {x.deltas}")
        hold(finite(x.boxes), f"boxes: {x.boxes}")
        hold(x.deltas[~learnt] == 0, "deltas of what is not sampled")
        hold((x.boxes[learnt, 2:] > x.boxes[learnt, :2]), "objects of no size")
        hold(x.labels[x.sampled] >= 0, "sampled, but neither positive nor negative")
        within(x.gt_iou, 0, 1, "gt_iou")
    for x in second:
        hold(finite(x.boxes), f"rois: {x.boxes}")
        hold(finite(x.deltas), f"deltas of rois: {x.deltas}")
        hold(x.boxes[~x.valid] == 0, "rois in padding")
        hold(x.labels[~x.valid] == -1, "labels in padding")
        hold(x.deltas[~x.valid] == 0, "deltas in padding")
    return "positives" if (first[0].labels == 1).any() else "no positive"


@cache
def _proposals():
    rules = {
        "torchvision": proposal_options(TORCHVISION),
        "detectron2": proposal_options(DETECTRON2),
        "py_faster_rcnn": proposal_options(PY_FASTER_RCNN),
    }
    for rule in rules.values():
        rule |= {"pre_nms_top_n": 8, "post_nms_top_n": 10}

    def run(anchors, logits, deltas):
        def total(logits, deltas, rule):
            levels = ([x[i] for i in _LEVELS] for x in (anchors, logits, deltas))
            found = rj.generate_proposals(*levels, image_size=(20, 30), **rule)
            scores = jnp.where(jnp.isfinite(found.scores), found.scores, 0.0)
            return found.boxes.sum() + scores.sum(), found

        gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
        return [gradient(logits, deltas, rule) for rule in rules.values()]

    return jax.jit(run)


_LEVELS = slice(0, 12), slice(12, 16), slice(16, 17)  # the last of one anchor


@family(anchors=("boxes", 17, 4), logits=("numbers", 17), deltas=("numbers", 17, 4))
def proposals(anchors, logits, deltas):
    """Proposals, their contract and their gradient."""
    for gradients, found in fetch(_proposals()(anchors, logits, deltas)):
        valid = found.valid
        _contract(found.boxes, valid, (20, 30))
        hold(~np.isnan(found.scores), "a score is NaN")
        hold(found.scores[~valid] == 0, "scores in padding")
        hold(found.levels[~valid] == -1, "levels in padding")
        within(found.levels[valid], 0, 2, "levels")
        ranked = flush(found.scores[valid])
        hold(ranked[1:] <= ranked[:-1], f"scores do not descend: {found.scores}")
        for gradient in gradients:
            if mild(anchors[finite(anchors)]):
                hold(np.isfinite(gradient), f"gradient: {gradient}")
    return "some" if valid.any() else "none"


def _contract(boxes, valid, size) -> None:
    """Hold what padded boxes within an image promise."""
    height, width = size
    hold(finite(boxes), f"boxes are not finite: {boxes}")
    hold(boxes[~valid] == 0, "boxes in padding")
    hold((boxes >= 0) & (boxes <= (width, height) * 2), f"outside: {boxes}")
    hold(boxes[:, 2:] >= boxes[:, :2], f"inverted: {boxes}")
    hold(valid[:-1] >= valid[1:], "padding before what is valid")


@cache
def _detections():
    def run(boxes, valid, logits, deltas):
        def total(logits, deltas):
            found = rj.generate_detections(
                boxes, valid, logits, deltas, (20, 30), max_detections=6
            )
            return found.boxes.sum() + found.scores.sum(), found

        return jax.grad(total, argnums=(0, 1), has_aux=True)(logits, deltas)

    return jax.jit(run)


@family(
    boxes=("boxes", 7, 4),
    valid=("mask", 7),
    logits=("numbers", 7, 3),
    deltas=("numbers", 7, 2, 4),
)
def detections(boxes, valid, logits, deltas):
    """Detections, their contract and their gradient."""
    gradients, found = fetch(_detections()(boxes, valid, logits, deltas))
    _contract(found.boxes, found.valid, (20, 30))
    within(found.scores, 0, 1, "scores")
    hold(found.scores[~found.valid] == 0, "scores in padding")
    hold(found.labels[~found.valid] == -1, "labels in padding")
    within(found.labels[found.valid], 0, 1, "labels")
    hold(np.diff(found.scores) <= 0, f"scores do not descend: {found.scores}")
    if mild(boxes[finite(boxes)]):
        for gradient in gradients:
            hold(np.isfinite(gradient), f"gradient: {gradient}")
    return "some" if found.valid.any() else "none"


@cache
def _rois():
    def run(features, boxes, levels, valid):
        one, other = features[:30].reshape(5, 6, 1), features[30:].reshape(2, 3, 1)
        common = {"output_size": 2, "valid": valid}
        ways = {
            "align": lambda a, b: rj.multilevel_roi_align(
                (a, b),
                boxes,
                levels,
                spatial_scales=(0.25, 0.125),
                sampling_ratio=2,
                aligned=True,
                **common,
            ),
            "adaptive": lambda a, b: rj.roi_align(
                a, boxes, spatial_scale=0.25, sampling_ratio=0, aligned=False, **common
            ),
            "pool": lambda a, b: rj.roi_pool(a, boxes, spatial_scale=0.25, **common),
        }
        found = {}
        for name, way in ways.items():
            result, pull = jax.vjp(way, one, other)
            found[name] = result, pull(jnp.ones_like(result))
        return found

    return jax.jit(run)


@family(
    features=("numbers", 36),
    boxes=("boxes", 5, 4),
    levels=("integers", 5),
    valid=("mask", 5),
)
def rois(features, boxes, levels, valid):
    """RoIAlign and RoIPool: huge and infinite boxes, on finite maps."""
    features = np.where(np.isfinite(features), np.clip(features, -1e9, 1e9), F(0))
    usable = valid & finite(boxes)
    on_map = usable & (levels >= 0) & (levels < 2)
    for name, (pooled, gradients) in fetch(
        _rois()(features, boxes, levels, valid)
    ).items():
        hold(np.isfinite(pooled), f"{name}: {pooled}")
        most = np.abs(features).max() * F(1.001)
        within(pooled, -most, most, name)
        hold(pooled[~(on_map if name == "align" else usable)] == 0, f"{name}: padding")
        for gradient in gradients:
            within(gradient, 0, 4.01 * len(boxes), f"gradient of {name}")
    return "some" if usable.any() else "none"


@cache
def _evaluation():
    def run(boxes, scores, labels, valid, gt_boxes, gt_labels, gt_valid, gt_ignore):
        objects = gt_boxes, gt_labels, gt_valid, gt_ignore
        return (
            matched_recall(boxes, valid, gt_boxes, gt_valid, gt_ignore),
            match_detections(boxes, scores, labels, valid, *objects),
            match_voc_detections(boxes, scores, labels, valid, *objects),
        )

    return jax.jit(run)


@family(
    boxes=("boxes", 8, 4),
    scores=("numbers", 8),
    labels=("integers", 8),
    valid=("mask", 8),
    gt_boxes=("boxes", 5, 4),
    gt_labels=("integers", 5),
    gt_valid=("mask", 5),
    gt_ignore=("mask", 5),
)
def evaluation(**given):
    """Recall and precision: never more hits than objects or detections."""
    given["gt_boxes"][:3] = given["boxes"][1:4]  # so that there are hits
    for name in ("labels", "gt_labels"):
        given[name] //= 3  # three classes, of which -1 is padding
    recall, *precision = fetch(_evaluation()(**given))
    counted = given["gt_valid"] & ~given["gt_ignore"]
    hold(recall.objects <= counted.sum(), "objects")
    hold(recall.hits >= 0, "hits")
    hold(recall.hits <= recall.objects[:, None, None], "more hits than objects")
    for matches in precision:
        found = matches.hit | matches.ignored  # [R, T, N]
        hold(~(matches.hit & matches.ignored), "a hit that is ignored")
        hold(~found[..., ~given["valid"]], "a hit by padding")
        hold(matches.hit.sum(axis=-1) <= counted.sum(), "more hits than objects")
    return "hits" if recall.hits.any() else "no hit"


def try_once(name: str, rng: np.random.Generator, _: Path) -> str:
    """Draw the inputs of a family and check it."""
    given = FAMILIES[name]
    arrays = {key: draw(rng, spec) for key, spec in given.inputs.items()}
    with np.errstate(all="ignore"):
        return given.check(**arrays)


TARGETS: dict[str, Callable[[np.random.Generator, Path], str]] = {
    name: partial(try_once, name) for name in FAMILIES
}
"""For each family a function of (random generator, folder) that tries it once."""


def main(argv: list[str]) -> int:
    """Run some cases and tell how many there were of each outcome."""
    cases, seed = (int(x) for x in [*argv, *(1000, 0)[len(argv) :]])
    failures = Counter()
    for name, target in TARGETS.items():
        outcomes, start = Counter(), 0.0
        for case in range(-(-cases // len(TARGETS))):
            start = start or (time.perf_counter() if case else 0.0)
            try:
                outcomes[target(np.random.default_rng([seed, case]), Path())] += 1
            except AssertionError as error:
                failures[name] += 1
                if failures[name] < 3:
                    print(f"{name}, case {case}: {error}", file=sys.stderr)
        each = 1000 * (time.perf_counter() - start) / max(sum(outcomes.values()), 1)
        print(f"{name}  {dict(outcomes)}  {each:.2f} ms a case", flush=True)
    print(f"failures: {dict(failures) or 'none'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
