"""Extreme numbers, ties, padding and empty arrays: nothing breaks, all is documented.

The table of ops and what has to hold of each is that of `experiments.fuzz_inputs`; here
hypothesis fills the inputs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import rpn_jax as rj
from experiments import fuzz_ops
from experiments.fuzz import FAMILIES, OPS, run
from experiments.fuzz_inputs import SPECIAL, Input
from rpn_jax.batch import Batch
from rpn_jax.conventions import TORCHVISION
from rpn_jax.evaluation import average_recall, match_detections, match_voc_detections
from rpn_jax.rpn import RPNConfig, rpn

KEY = jax.random.key(0)


def fill(given: Input) -> st.SearchStrategy:
    kind, shape = given
    if kind == "seed":
        return st.integers(0, 2**31 - 1).map(np.uint32)
    if kind == "mask":
        return arrays(np.bool_, shape)
    if kind == "integers":
        return arrays(np.int32, shape, elements=st.integers(-2, 3))
    special = st.sampled_from(SPECIAL.tolist())
    usual = st.integers(0, 12).map(float)
    number = st.one_of(usual, usual, special, st.floats(width=32))
    values = arrays(np.float32, shape, elements=number)
    if kind == "boxes":  # half of them upright
        upright = arrays(np.float32, (*shape[:-1], 2, 2), elements=usual)
        values |= upright.map(lambda x: np.sort(x, axis=-2).reshape(shape))
    return values


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=25)
@given(data=st.data())
def test_whatever_the_numbers_the_contract_holds(name, data):
    inputs, check = FAMILIES[name]
    drawn = {key: data.draw(fill(given)) for key, given in inputs.items()}
    with np.errstate(all="ignore"):
        check(**drawn)


@pytest.mark.parametrize("name", OPS)
def test_no_input_of_a_sample_breaks_an_op(name):
    assert run(OPS[name], 20, seed=0, limit=300)["failures"] == []


def test_a_wrong_result_is_noticed(monkeypatch):
    run = fuzz_ops._selection()

    def broken(*arrays):
        best, kept, pairs = run(*arrays)
        return best, kept._replace(indices=kept.indices[::-1]), pairs

    drawn = [
        np.arange(48, dtype=np.float32).reshape(12, 4),
        np.arange(12, dtype=np.float32),
        np.ones(12, bool),
        np.zeros(12, np.int32),
    ]
    assert FAMILIES["selection"].check(*drawn) == "some kept"
    monkeypatch.setattr(fuzz_ops, "_selection", lambda: broken)
    with pytest.raises(AssertionError, match="^nms: "):
        FAMILIES["selection"].check(*drawn)


# --- nothing there


def boxes(n):
    return jnp.tile(jnp.array([[0.0, 0, 10, 10]]), (n, 1))


def zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


def nothing(*valid):
    return not np.concatenate([np.ravel(v) for v in valid]).any()


@pytest.mark.parametrize("n", [0, 1])
def test_selection_from_no_box_or_one(n):
    common = {"iou_threshold": 0.5, "max_outputs": 2}
    kept = [
        rj.top_k(zeros(n), 2),
        rj.nms(boxes(n), zeros(n), **common),
        rj.soft_nms(boxes(n), zeros(n) + 1, max_outputs=2),
        rj.multiclass_nms(boxes(n), zeros(n, 1), **common),
    ]
    for result in kept:
        assert result.valid.tolist() == [n == 1, False]
        assert result.indices.tolist() == [n - 1, -1]
    assert nothing(rj.multiclass_nms(boxes(n), zeros(n, 0), **common).valid)


@pytest.mark.parametrize("anchors, objects", [(0, 0), (0, 2), (1, 0), (1, 2)])
def test_targets_of_no_anchor_or_no_object(anchors, objects):
    targets = rj.anchor_targets(KEY, boxes(anchors), boxes(objects), None, (20, 20))
    positive = anchors == 1 and objects > 0
    assert targets.labels.tolist() == [int(positive)] * anchors
    assert targets.sampled.tolist() == [True] * anchors
    assert targets.gt_iou.tolist() == [float(positive)] * objects
    assert targets.deltas.tolist() == [[0.0] * 4] * anchors


@pytest.mark.parametrize("proposals, objects", [(0, 1), (1, 0), (1, 1)])
def test_rois_of_no_proposal_or_no_object(proposals, objects):
    labels = zeros(objects, dtype=jnp.int32)
    drawn = rj.roi_targets(
        KEY,
        boxes(proposals),
        None,
        boxes(objects),
        labels,
        None,
        positive_fraction=1.0,
    )
    expected = 0 if objects else -1
    assert drawn.labels.tolist() == [expected] * (proposals + objects)
    assert drawn.valid.all()


def test_without_any_row_there_are_no_rois_to_draw():
    with pytest.raises(ValueError, match="one row at least"):
        labels = zeros(0, dtype=jnp.int32)
        rj.roi_targets(KEY, boxes(0), None, boxes(0), labels, None)


def test_maps_of_no_cell():
    assert rj.grid_anchors((0, 0)).shape == (0, 4)
    levels = rj.pyramid_anchors([(0, 0), (1, 1)], sizes=[(8,), (16,)], strides=[4, 8])
    assert [x.shape for x in levels] == [(0, 4), (3, 4)]
    with pytest.raises(ValueError, match=r"anchors\[0\] is empty"):
        empty = [levels[0]], [zeros(0)], [zeros(0, 4)]
        rj.generate_proposals(*empty, (9, 9), pre_nms_top_n=2, post_nms_top_n=2)
    with pytest.raises(ValueError, match=r"not empty, got \(0, 0, 2\)"):
        rj.roi_pool(zeros(0, 0, 2), boxes(1), output_size=2, spatial_scale=1.0)


def test_no_roi_is_pooled_and_none_detected():
    def align(features):
        options = {"spatial_scale": 0.5, "sampling_ratio": 2, "aligned": True}
        return rj.roi_align(features, boxes(0), output_size=2, **options)

    pooled, pull = jax.vjp(align, jnp.ones((3, 3, 2)))
    assert pooled.shape == (0, 2, 2, 2)
    assert not pull(pooled)[0].any()
    logits, deltas = zeros(0, 3), zeros(0, 2, 4)
    found = rj.generate_detections(
        boxes(0), None, logits, deltas, (9, 9), max_detections=2
    )
    assert nothing(found.valid) and found.labels.tolist() == [-1, -1]


@pytest.mark.parametrize("found, objects", [(0, 0), (0, 2), (2, 0)])
def test_evaluation_of_nothing(found, objects):
    def rows(n):
        return boxes(n), zeros(n), zeros(n, dtype=jnp.int32), jnp.ones(n, bool)

    (b, scores, labels, valid), (gt, _, gt_labels, gt_valid) = map(
        rows, (found, objects)
    )
    for match in (match_detections, match_voc_detections):
        matches = match(b, scores, labels, valid, gt, gt_labels, gt_valid)
        assert nothing(matches.hit) and matches.hit.shape[-1] == found
    recall = average_recall(b[None], valid[None], gt[None], gt_valid[None])
    assert recall.average[0].tolist() == [0.0 if objects else -1.0] * 5


# --- a great many


@pytest.mark.slow
def test_ten_thousand_objects_in_an_image():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 700, (10_000, 2))
    extent = rng.uniform(4, 60, (10_000, 2))
    objects = np.concatenate([corner, corner + extent], axis=1).astype(np.float32)
    anchors = rj.grid_anchors((50, 50), scales=(1, 2), stride=16)
    assign = jax.jit(
        lambda key, gt: rj.anchor_targets(key, anchors, gt, None, (800, 800))
    )
    draw = jax.jit(
        lambda key, gt: rj.roi_targets(
            key, anchors, None, gt, jnp.zeros(len(gt), int), None
        )
    )
    memory = assign.lower(KEY, objects).compile().memory_analysis()
    pairs = 4 * len(anchors) * len(objects)
    assert memory.temp_size_in_bytes < pairs / 100
    targets, rois = assign(KEY, objects), draw(KEY, objects)
    assert targets.sampled.sum() == 256
    assert np.isfinite(targets.deltas).all()
    assert rois.valid.all() and (rois.labels >= 0).sum() == 128


def test_a_sample_of_a_hundred_thousand_needs_no_square_of_it():
    labels = jnp.where(jnp.arange(300_000) % 2 == 0, 1, 0)
    draw = jax.jit(
        lambda key: rj.sample_balanced(
            key, labels, size=100_000, positive_fraction=0.25
        )
    )
    memory = draw.lower(KEY).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1e9  # comparing all with all: 4e10
    mask = np.asarray(draw(KEY))
    assert (mask[::2].sum(), mask[1::2].sum()) == (25_000, 75_000)


# --- a whole network


CONFIG = RPNConfig(
    backbone="small_resnet",
    sizes=((16.0, 32.0),),
    head_channels=8,
    convention=dataclasses.replace(
        TORCHVISION,
        proposals=dataclasses.replace(
            TORCHVISION.proposals, test_pre_nms=30, test_post_nms=10
        ),
    ),
)


@pytest.fixture(scope="module")
def network():
    model = rpn(CONFIG)
    params = model.init(KEY, image_size=(32, 32))
    loss = jax.jit(lambda *x: model.loss(*x)[0])
    return params, jax.jit(model.propose), loss


@pytest.mark.parametrize("where", ["image", "params"])
def test_of_nan_nothing_is_proposed_and_the_loss_is_nan(network, where):
    params, propose, loss = network
    images = np.zeros((2, 32, 32, 3), np.float32)
    sizes = np.full((2, 2), 32, np.int32)
    batch = Batch(
        images=images,
        image_sizes=sizes,
        boxes=np.tile(np.array([[4, 4, 20, 20]], np.float32), (2, 1, 1)),
        valid=np.ones((2, 1), bool),
        ignore=np.zeros((2, 1), bool),
        scales=np.ones((2, 2), np.float32),
        image_ids=np.arange(2, dtype=np.int32),
        labels=np.zeros((2, 1), np.int32),
    )
    assert propose(params, images, sizes).valid.any()
    assert np.isfinite(loss(KEY, params, batch))
    if where == "image":
        images = np.full_like(images, np.nan)
    else:
        params = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    found = propose(params, images, sizes)
    assert nothing(found.valid, found.boxes, found.scores)
    assert (np.asarray(found.levels) == -1).all()
    assert np.isnan(loss(KEY, params, batch._replace(images=images)))
