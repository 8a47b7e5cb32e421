"""The funnel: stages worked by hand, a plain NumPy reference, and the sum of counts."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rpn_jax.analysis import STAGES, batch_funnel, funnel, losses, stages_passed
from rpn_jax.conventions import PRESETS, Convention
from rpn_jax.evaluation import IOU_THRESHOLDS, matched_recall
from rpn_jax.objective import RPNOutputs
from rpn_jax.ops.matching import match_anchors
from tests import reference, strategies


def convention(**changes) -> Convention:
    default = dict(test_pre_nms=4, test_post_nms=3, iou_threshold=0.5, score="logit")
    base = Convention()
    rules = dataclasses.replace(base.proposals, **default | changes)
    return dataclasses.replace(base, proposals=rules)


@functools.cache
def compiled(rules):
    return jax.jit(functools.partial(funnel, convention=rules))


def run(anchors, logits, objects, *, deltas=None, valid=None, size=(100, 100), **rules):
    anchors, objects = (
        np.array(x, np.float32).reshape(-1, 4) for x in (anchors, objects)
    )
    deltas = np.zeros_like(anchors) if deltas is None else np.array(deltas, np.float32)
    valid = np.ones(len(objects), bool) if valid is None else np.array(valid)
    logits = np.array(logits, np.float32)
    levels = [anchors], [logits], [deltas]
    return compiled(convention(**rules))(*levels, np.array(size), objects, valid)


OBJECT = [10, 10, 30, 30]
NEAR = [10, 10, 30, 26]  # IoU 0.8 with the object
HALF = [10, 10, 30, 20]  # IoU 0.5 with the object, 0.625 with NEAR
AWAY = [[60, 60, 70, 70], [60, 80, 70, 90], [80, 60, 90, 70], [80, 80, 90, 90]]


def lost_at(found, threshold=0.7):
    (passed,) = stages_passed(found.iou, threshold)
    return "found" if passed == len(STAGES) else STAGES[passed]


def test_an_object_is_found():
    found = run([NEAR, *AWAY[:2]], [2, 1, 0], OBJECT)
    np.testing.assert_allclose(found.iou, [[0.8] * 5], rtol=1e-6)
    np.testing.assert_array_equal(found.boxes[0], [NEAR] * 5)
    assert lost_at(found, 0.8) == "found"
    assert lost_at(found, 0.81) == "decoded"
    assert found.positives.tolist() == [1]


def test_an_object_is_lost_by_regression_though_an_anchor_reaches_it():
    away = [[1.0, 0, 0, 0]]  # one width to the right
    found = run([NEAR], [2], OBJECT, deltas=away)
    assert lost_at(found) == "decoded"
    np.testing.assert_allclose(found.anchor_iou, [0.8], rtol=1e-6)
    assert not found.iou.any() and not found.boxes.any()


def test_regression_may_reach_what_no_anchor_reaches():
    # HALF is 10 high with its centre at y = 15; the object 20 with its centre at 20.
    found = run([HALF], [2], OBJECT, deltas=[[0, 0.5, 0, math.log(2)]])
    assert lost_at(found, 0.99) == "found"
    np.testing.assert_allclose(found.anchor_iou, [0.5])
    assert losses(*found[:1], found.anchor_iou, found.positives, 0.7).anchor == 0


def test_an_object_is_lost_by_its_low_score():
    found = run([NEAR, *AWAY], [-1, 0, 1, 2, 3], OBJECT)
    assert lost_at(found) == "top_k"
    assert lost_at(run([NEAR, *AWAY], [0.5, 0, 1, 2, 3], OBJECT, test_post_nms=4)) == (
        "found"
    )


@pytest.mark.parametrize("rule", [dict(min_size=16.0), dict(score_threshold=2.5)])
def test_an_object_is_lost_by_a_filter(rule):
    found = run([NEAR, AWAY[0]], [2, 1], OBJECT, **rule)
    assert lost_at(found) == "filtered"


def test_small_boxes_dropped_first_are_lost_in_the_choice():
    found = run([NEAR, AWAY[0]], [2, 1], OBJECT, min_size=16.0, filter_first=True)
    assert lost_at(found) == "top_k"


def test_an_object_is_lost_by_nms():
    found = run([NEAR, HALF], [1, 2], OBJECT)
    assert lost_at(found) == "nms"
    np.testing.assert_array_equal(found.boxes[0], [NEAR] * 3 + [HALF] * 2)
    assert lost_at(run([NEAR, HALF], [1, 2], OBJECT, iou_threshold=0.625)) == "found"


def test_an_object_is_lost_by_the_cap():
    found = run([NEAR, *AWAY[:3]], [0, 1, 2, 3], OBJECT)
    assert lost_at(found) == "cap"
    assert not found.iou[0, -1] and not found.boxes[0, -1].any()


def test_counts_of_a_group():
    iou = [[0.9, 0.9, 0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.5, 0.5], [0.4] * 5]
    found = losses(iou, [0.6, 0.9, 0.4], [1, 0, 2], 0.5)
    assert found == (3, 2, 2, (1, 0, 0, 0, 0), 2)
    found = losses(iou, [0.6, 0.9, 0.4], [1, 0, 2], 0.7)
    assert found == (3, 1, 2, (1, 0, 0, 1, 0), 1)
    none = losses(np.zeros((0, 5)), np.zeros(0), np.zeros(0), 0.5)
    assert none == (0, 0, 0, (0,) * 5, 0)


def plain(anchors, logits, deltas, size, objects, valid, rules):
    """The funnel by loops over NumPy arrays, of one level."""
    boxes = [reference.decode(*x) for x in zip(deltas, anchors, strict=True)]
    boxes = np.array(boxes, np.float32)
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, size[1])
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, size[0])
    order = reference.ranking(logits, ~np.isnan(logits))
    # As scores, logits must be finite.
    known = np.isfinite(boxes).all(axis=1) & np.isfinite(logits)
    decoded = [i for i in order if known[i]]
    top = [i for i in order[: rules.test_pre_nms] if i in decoded]
    sides = boxes[:, 2:] - boxes[:, :2]
    passed = [i for i in top if (sides[i] > rules.min_size).all()]
    mask = np.zeros(len(boxes), bool)
    mask[passed] = True
    kept = reference.nms(
        boxes, logits, rules.iou_threshold, len(boxes), mask, [0] * len(boxes)
    )
    kept = [i for i in kept if i >= 0]
    stages = (decoded, top, passed, kept, kept[: rules.test_post_nms])
    result = np.zeros((len(objects), len(stages)))
    for g, s in np.ndindex(result.shape):
        if valid[g] and reference.is_proper(objects[g : g + 1])[0]:
            near = [reference.iou(boxes[i], objects[g]) for i in stages[s]]
            result[g, s] = max(near, default=0)
    return result


SEVERAL = 12


@given(
    strategies.grid_boxes(SEVERAL, smallest=1),
    strategies.scores(SEVERAL),
    arrays(np.float32, (SEVERAL, 4), elements=st.sampled_from([0.0, 0.5, -0.25])),
    strategies.odd_boxes(4),
    arrays(bool, 4),
)
def test_the_funnel_is_that_of_plain_loops(anchors, logits, deltas, objects, valid):
    deltas[:, 2:] = 0  # exp rounds in its own way, and NMS would tell
    changes = dict(test_pre_nms=8, test_post_nms=3, min_size=1.0)
    size = (9, 10)
    found = run(
        anchors, logits, objects, deltas=deltas, valid=valid, size=size, **changes
    )
    logits = np.where(np.isneginf(logits), np.nan, logits)  # chosen as little
    rules = convention(**changes).proposals
    wanted = plain(anchors, logits, deltas, size, objects, valid, rules)
    np.testing.assert_allclose(found.iou, wanted, rtol=2e-5, atol=1e-6)
    assert (np.diff(found.iou, axis=1) <= 0).all()
    for threshold in IOU_THRESHOLDS:
        count = losses(found.iou, found.anchor_iou, found.positives, threshold)
        assert count.objects == 4 == sum(count.lost) + count.found


def scene(rng, levels=(48, 12), objects=6):
    """Outputs of a network about some objects, from noise."""
    corner = rng.uniform(0, 80, (objects, 2))
    gt = np.concatenate([corner, corner + rng.uniform(5, 40, (objects, 2))], axis=1)
    anchors = []
    for number in levels:
        near = gt[rng.integers(objects, size=number)]
        box = near + rng.normal(0, 6, (number, 4))
        anchors.append(
            np.concatenate(
                [box[:, :2], box[:, :2] + 4 + abs(box[:, 2:] - box[:, :2])], 1
            )
        )
    logits = [rng.normal(size=n) for n in levels]
    deltas = [rng.normal(0, 0.1, (n, 4)) for n in levels]
    leaves = (anchors, logits, deltas, gt)
    return jax.tree.map(lambda x: np.asarray(x, np.float32), leaves)


@pytest.mark.parametrize("name", PRESETS)
def test_counts_add_up_in_every_convention_and_proposals_are_the_networks(name):
    rng, preset = np.random.default_rng(0), PRESETS[name]
    few = dict(test_pre_nms=20, test_post_nms=10, iou_threshold=0.6)
    rules = dataclasses.replace(
        preset, proposals=dataclasses.replace(preset.proposals, **few)
    )
    scenes = [scene(rng) for _ in range(8)]
    anchors = scenes[0][0]
    logits, deltas, gt = (
        jax.tree.map(lambda *x: np.stack(x), *(s[i] for s in scenes)) for i in (1, 2, 3)
    )
    single = logits
    if preset.loss.objectness == "softmax":
        logits = [np.stack([np.zeros_like(x), x], axis=-1) for x in logits]
    sizes, scales = np.full((8, 2), 128), np.ones(8, np.float32)
    valid = rng.uniform(size=(8, 6)) < 0.8
    outputs = RPNOutputs(
        *(tuple(map(jnp.asarray, x)) for x in (anchors, logits, deltas))
    )
    many = jax.jit(functools.partial(batch_funnel, convention=rules))
    found = many(outputs, sizes, scales, gt, valid)
    alone = jax.jit(functools.partial(funnel, convention=rules))
    for b in (0, 5):
        one = alone(
            anchors,
            [x[b] for x in single],
            [x[b] for x in deltas],
            sizes[b],
            gt[b],
            valid[b],
        )
        for x, y in zip(one, found, strict=True):
            np.testing.assert_array_equal(x, y[b])
    assert (np.diff(found.iou, axis=-1) <= 0).all()
    ious, *rest = (
        np.asarray(x)[valid] for x in (found.iou, found.anchor_iou, found.positives)
    )
    for threshold in IOU_THRESHOLDS:
        count = losses(ious, *rest, threshold)
        assert count.objects == valid.sum() == sum(count.lost) + count.found
    assert len({*stages_passed(ious, 0.5)}) > 2  # the scenes lose some here, some there


def test_what_is_not_an_object_changes_nothing():
    anchors, logits, deltas, gt = scene(np.random.default_rng(1))
    rules = convention(test_pre_nms=30, test_post_nms=10)
    few = funnel(anchors, logits, deltas, (128, 128), gt[:2], convention=rules)
    gt[2:4], gt[4:] = np.nan, gt[:1]
    valid = np.array([True, True, True, False, False, False])
    padded = funnel(anchors, logits, deltas, (128, 128), gt, valid, convention=rules)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[:2]), few, padded)
    assert not any(np.any(x[2:]) for x in padded)
    none = funnel(anchors, logits, deltas, (128, 128), gt[:0], convention=rules)
    assert none.iou.shape == (0, 5) and none.boxes.shape == (0, 5, 4)


def test_matched_counts_the_anchors_that_learn_an_object():
    anchors, logits, deltas, gt = scene(np.random.default_rng(2))
    found = funnel(anchors, logits, deltas, (128, 128), gt, convention=convention())
    matches = match_anchors(np.concatenate(anchors), gt)
    np.testing.assert_array_equal(found.anchor_iou, matches.gt_iou)
    positive = np.asarray(matches.gt_index)[np.asarray(matches.labels) == 1]
    np.testing.assert_array_equal(found.positives, np.bincount(positive, minlength=6))


def test_recall_of_lone_objects_is_the_share_found():
    """Where no proposal reaches two objects, COCO's count and the funnel's agree."""
    found = run([NEAR, *AWAY], [1, 2, 3, 0, -1], [OBJECT, AWAY[0], AWAY[3]])
    proposals = np.array([AWAY[1], AWAY[0], NEAR], np.float32)
    gt = np.array([OBJECT, AWAY[0], AWAY[3]], np.float32)
    yes = np.ones(3, bool)
    hits = matched_recall(proposals, yes, gt, yes, max_proposals=[3]).hits[0, 0]
    for threshold, hit in zip(IOU_THRESHOLDS, hits, strict=True):
        passed = stages_passed(found.iou, threshold)
        assert (passed == len(STAGES)).sum() == hit
