"""Families of the fuzzing: boxes, coding, losses, selection."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

import rpn_jax as rj
from experiments.fuzz_inputs import (
    F,
    Family,
    enter,
    fetch,
    finite,
    flush,
    hold,
    mild,
    padded,
    ranking,
    reference_iou,
    same,
    upright,
    within,
)
from rpn_jax.conventions import (
    PY_FASTER_RCNN,
    TORCHVISION,
    LossConvention,
)
from rpn_jax.objective import RPNOutputs, rpn_loss
from rpn_jax.targets import AnchorTargets

FAMILIES: dict[str, Family] = {}

family = partial(enter, FAMILIES)


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
