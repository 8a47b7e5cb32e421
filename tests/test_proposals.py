"""From the head's outputs to proposals: the peers' arrays, and the contracts."""

import functools
import math

import jax
import numpy as np
import pytest

from rpn_jax import decode_boxes, generate_proposals
from rpn_jax.conventions import DETECTRON2, PY_FASTER_RCNN, TORCHVISION, options
from tests import reference

COUNTS = (
    "train_pre_nms",
    "train_post_nms",
    "test_pre_nms",
    "test_post_nms",
    "min_size_scaled",
)
PEERS = {
    "tv": ("filter_proposals_tv", TORCHVISION, "scores", "score_threshold"),
    "d2": ("filter_proposals_d2", DETECTRON2, "logits", "min_size"),
}
CASES = [
    *[("tv", c) for c in ("eval_1000_1000", "pre300_post50", "thresh50", "score05")],
    ("tv", "train_2000_2000"),
    *[("d2", c) for c in ("eval_1000_1000", "pre300_post50", "thresh50", "minsize16")],
    ("d2", "train_2000_1000"),
]


def rules(convention, **changes):
    chosen = options(convention.proposals, *COUNTS) | options(convention.coding)
    return chosen | {k: v for k, v in changes.items()}


@functools.cache
def compiled(items):
    return jax.jit(functools.partial(generate_proposals, **dict(items)))


def run(anchors, logits, deltas, size, **rule):
    return compiled(tuple(sorted(rule.items())))(anchors, logits, deltas, size)


def kept(proposals):
    valid = np.asarray(proposals.valid)
    return np.asarray(proposals.boxes)[valid], np.asarray(proposals.scores)[valid]


@pytest.mark.parametrize(("peer", "case"), CASES)
@pytest.mark.parametrize("image", [0, 1])
def test_the_peers_proposals_are_reproduced(golden, peer, case, image):
    name, convention, scores, last = PEERS[peer]
    z = golden(name)
    ends = np.cumsum(z["num_anchors_per_level"])[:-1]
    pre, post, threshold, extra = z[f"{case}__params"]
    rule = rules(
        convention,
        pre_nms_top_n=int(pre),
        post_nms_top_n=int(post),
        iou_threshold=float(threshold),
        **{last: float(extra)},
    )
    found = run(
        np.split(z["anchors"], ends),
        np.split(z["logits"][image], ends),
        np.split(z["deltas"][image], ends),
        z["image_sizes"][image],
        **rule,
    )
    boxes, values = kept(found)
    np.testing.assert_allclose(boxes, z[f"{case}__boxes_{image}"], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(
        values, z[f"{case}__{scores}_{image}"], rtol=1e-5, atol=1e-6
    )


def test_rows_that_are_not_finite_are_dropped_as_detectron2_does(golden):
    z = golden("filter_proposals_d2")
    ends = np.cumsum(z["num_anchors_per_level"])[:-1]
    rule = rules(DETECTRON2, pre_nms_top_n=1000, post_nms_top_n=1000)
    for image in (0, 1):
        logits, deltas = z["logits"][image].copy(), z["deltas"][image].copy()
        if image == 0:
            logits[z["nonfinite_logits_index"]] = np.nan
        else:
            deltas[z["nonfinite_boxes_index"], 1] = np.inf
        found = run(
            np.split(z["anchors"], ends),
            np.split(logits, ends),
            np.split(deltas, ends),
            z["image_sizes"][image],
            **rule,
        )
        boxes, values = kept(found)
        np.testing.assert_allclose(
            boxes, z[f"nonfinite__boxes_{image}"], rtol=1e-5, atol=1e-4
        )
        np.testing.assert_allclose(values, z[f"nonfinite__logits_{image}"], rtol=1e-5)


@pytest.mark.parametrize("peer", ["tv", "d2"])
def test_one_level_as_the_peers(golden, peer):
    z = golden("filter_proposals_single_level")
    _, convention, scores, _ = PEERS[peer]
    pre, post, threshold = z["params"]
    rule = rules(
        convention,
        pre_nms_top_n=int(pre),
        post_nms_top_n=int(post),
        iou_threshold=float(threshold),
    )
    for i in (0, 1):
        found = run(
            [z["anchors"]],
            [z["logits"][i]],
            [z["deltas"][i]],
            z["image_sizes"][i],
            **rule,
        )
        boxes, values = kept(found)
        np.testing.assert_allclose(boxes, z[f"{peer}_boxes_{i}"], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(values, z[f"{peer}_{scores}_{i}"], rtol=1e-5)


def py_faster_rcnn(anchors, logits, deltas, size, *, pre, post, threshold, smallest):
    """The lineage's own arithmetic, on inclusive boxes: width = x2 - x1 + 1."""
    height, width = size
    boxes = []
    for box, delta in zip(anchors, deltas, strict=True):
        x1, y1, x2, y2 = box - np.array([0, 0, 1, 1])  # to inclusive
        w, h = x2 - x1 + 1, y2 - y1 + 1
        x, y = x1 + 0.5 * w + delta[0] * w, y1 + 0.5 * h + delta[1] * h
        w, h = np.exp(delta[2]) * w, np.exp(delta[3]) * h
        new = np.array([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h])
        new[0::2] = new[0::2].clip(0, width - 1)
        new[1::2] = new[1::2].clip(0, height - 1)
        boxes.append(new)
    boxes = np.array(boxes)
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    large = np.flatnonzero((sides >= smallest).all(axis=1))
    order = large[np.argsort(-logits[large], kind="stable")][:pre]

    def iou(a, b):
        w = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
        h = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
        areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
        return w * h / (sum(areas) - w * h)

    keep = []
    for i in order:
        if all(iou(boxes[i], boxes[j]) <= threshold for j in keep):
            keep.append(i)
    return boxes[keep[:post]], logits[keep[:post]]


def test_py_faster_rcnn_in_its_own_arithmetic():
    rng = np.random.default_rng(0)
    corner = rng.integers(-20, 80, (150, 2))
    anchors = np.concatenate([corner, corner + rng.integers(8, 60, (150, 2))], axis=1)
    anchors = anchors.astype(np.float32)
    logits = rng.normal(size=150).astype(np.float32)
    deltas = rng.normal(0, 0.3, (150, 4)).astype(np.float32)
    size, smallest = (90, 100), 20.0
    rule = rules(PY_FASTER_RCNN, pre_nms_top_n=100, post_nms_top_n=40)
    found = run([anchors], [logits], [deltas], size, **rule | {"min_size": smallest})
    boxes, scores = kept(found)
    expected, expected_logits = py_faster_rcnn(
        anchors,
        logits,
        deltas,
        size,
        pre=100,
        post=40,
        threshold=0.7,
        smallest=smallest,
    )
    assert len(boxes) == len(expected) > 10
    np.testing.assert_allclose(boxes - [0, 0, 1, 1], expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-expected_logits)), rtol=1e-5)


def scene(count=60, levels=2, seed=0):
    rng = np.random.default_rng(seed)
    anchors, logits, deltas = [], [], []
    for _ in range(levels):
        corner = rng.uniform(-10, 60, (count, 2))
        side = rng.uniform(4, 30, (count, 2))
        anchors.append(np.concatenate([corner, corner + side], 1).astype(np.float32))
        logits.append(rng.normal(size=count).astype(np.float32))
        deltas.append(rng.normal(0, 0.2, (count, 4)).astype(np.float32))
    return anchors, logits, deltas


SIZE = (50, 64)
RULE = {"pre_nms_top_n": 30, "post_nms_top_n": 20}


def test_decoding_what_survives_equals_decoding_all_bit_for_bit():
    anchors, logits, deltas = scene(levels=1)
    rule = {**RULE, "iou_threshold": None, "min_size": -math.inf}
    found = run(anchors, logits, deltas, (1000, 1000), **rule)
    order = np.argsort(-logits[0], kind="stable")[:20]
    every = np.asarray(jax.jit(decode_boxes)(deltas[0], anchors[0]))
    expected = np.clip(every[order], 0, 1000)
    np.testing.assert_array_equal(np.asarray(found.boxes), expected)


def test_nms_stays_within_a_level_and_the_best_of_all_levels_are_kept():
    box = np.array([[0, 0, 10, 10]], np.float32)
    found = run(
        [box, box],
        [np.array([1.0], np.float32), np.array([2.0], np.float32)],
        [np.zeros((1, 4), np.float32)] * 2,
        SIZE,
        **RULE,
    )
    assert found.levels[:3].tolist() == [1, 0, -1]
    assert found.valid.sum() == 2


def test_without_nms_overlapping_boxes_stay():
    box = np.tile(np.array([[0, 0, 10, 10]], np.float32), (3, 1))
    inputs = [box], [np.arange(3.0, dtype=np.float32)], [np.zeros((3, 4), np.float32)]
    assert run(*inputs, SIZE, **RULE).valid.sum() == 1
    assert run(*inputs, SIZE, **RULE, iou_threshold=None).valid.sum() == 3


def test_padding_is_zeros_and_minus_ones():
    anchors, logits, deltas = scene()
    logits = [np.full_like(x, np.nan) for x in logits]
    found = run(anchors, logits, deltas, SIZE, **RULE)
    assert not found.valid.any()
    assert (found.boxes == 0).all() and (found.scores == 0).all()
    assert (found.levels == -1).all()


def test_more_proposals_wanted_than_there_are_anchors():
    anchors, logits, deltas = scene(count=3)
    found = run(anchors, logits, deltas, SIZE, pre_nms_top_n=50, post_nms_top_n=40)
    assert found.boxes.shape == (40, 4)
    assert 1 <= found.valid.sum() <= 6


@pytest.mark.parametrize("strict", [True, False])
def test_a_side_of_exactly_the_least_size(strict):
    box = np.array([[0, 0, 4, 8]], np.float32)
    found = run(
        [box],
        [np.zeros(1, np.float32)],
        [np.zeros((1, 4), np.float32)],
        SIZE,
        **RULE,
        min_size=4.0,
        min_size_strict=strict,
    )
    assert bool(found.valid[0]) is not strict


def test_a_score_of_exactly_the_threshold_stays():
    box = np.array([[0, 0, 4, 8], [20, 20, 30, 30]], np.float32)
    logits = np.array([0.0, -0.1], np.float32)
    found = run(
        [box],
        [logits],
        [np.zeros((2, 4), np.float32)],
        SIZE,
        **RULE,
        score_threshold=0.5,
    )
    assert found.valid.tolist()[:2] == [True, False]


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_an_infinite_logit_is_no_score(score):
    boxes = np.array([[0, 0, 4, 8], [20, 20, 30, 30], [40, 0, 50, 9]], np.float32)
    logits = np.array([np.inf, 1.0, -np.inf], np.float32)
    found = run(
        [boxes], [logits], [np.zeros((3, 4), np.float32)], SIZE, **RULE, score=score
    )
    wanted = [1.0] if score == "logit" else [1.0, 1 / (1 + np.exp(-1))]
    np.testing.assert_allclose(found.scores[found.valid], wanted, rtol=1e-6)


def test_jit_equals_eager_and_vmap_equals_a_loop():
    scenes = [scene(seed=s) for s in range(3)]
    function = functools.partial(generate_proposals, **RULE)
    singles = [jax.jit(function)(*s, SIZE) for s in scenes]
    stacked = jax.tree.map(lambda *x: np.stack(x), *scenes)
    batch = jax.jit(jax.vmap(function, in_axes=(0, 0, 0, None)))(*stacked, SIZE)
    for i, single in enumerate(singles):
        for one, many in zip(single, batch, strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(many[i]))
    eager = function(*scenes[0], SIZE)
    np.testing.assert_allclose(eager.boxes, singles[0].boxes, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(eager.valid, singles[0].valid)


def test_gradients_reach_deltas_and_logits_and_are_finite():
    anchors, logits, deltas = scene()
    deltas[0][3] = np.nan

    def total(logits, deltas):
        found = generate_proposals(anchors, logits, deltas, SIZE, **RULE)
        return found.boxes.sum() + found.scores.sum()

    grads = jax.jit(jax.grad(total, argnums=(0, 1)))(logits, deltas)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert all((np.asarray(g) != 0).any() for g in jax.tree.leaves(grads))


def test_against_plain_loops():
    anchors, logits, deltas = scene(levels=1, seed=5)
    found = run(anchors, logits, deltas, SIZE, **RULE, iou_threshold=0.4)
    boxes = np.asarray(jax.jit(decode_boxes)(deltas[0], anchors[0]))
    boxes = np.clip(boxes, 0, [64, 50, 64, 50]).astype(np.float32)
    order = np.argsort(-logits[0], kind="stable")[:30]
    valid = np.zeros(60, bool)
    valid[order] = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)[order]
    groups = np.zeros(60, int)
    index = reference.nms(boxes, logits[0], 0.4, 20, valid, groups)
    index = np.asarray(index)
    expected = boxes[index[index >= 0]]
    np.testing.assert_array_equal(kept(found)[0], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "odds"}, "score must be one of"),
        ({"logits": [np.zeros(59)]}, r"logits\[0\] must have shape \(60,\)"),
        ({"anchors": []}, "one entry a level"),
    ],
)
def test_wrong_input_is_named(change, message):
    anchors, logits, deltas = scene(levels=1)
    inputs = {"anchors": anchors, "logits": logits, "deltas": deltas} | change
    with pytest.raises(ValueError, match=message):
        generate_proposals(image_size=SIZE, **inputs, **RULE)
