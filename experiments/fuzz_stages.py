"""Families of the fuzzing: matching, targets, proposals, detections, RoIs, recall."""

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
    reference_iou,
    same,
    within,
)
from rpn_jax.conventions import (
    DETECTRON2,
    PY_FASTER_RCNN,
    TORCHVISION,
    options,
)
from rpn_jax.evaluation import (
    match_detections,
    match_voc_detections,
    matched_recall,
)
from rpn_jax.proposals import proposal_options

FAMILIES: dict[str, Family] = {}

family = partial(enter, FAMILIES)


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
