"""Matching, sampling and coding together: what the head must learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax import anchor_targets, box_iou, decode_boxes
from rpn_jax.conventions import DETECTRON2, PY_FASTER_RCNN, TORCHVISION, options

KEY = jax.random.key(0)
ANCHORS = np.array(
    [
        [0, 0, 10, 10],
        [2, 0, 12, 10],
        [30, 30, 50, 50],
        [-5, 0, 5, 10],
        [54, 40, 64, 50],
    ],
    np.float32,
)
OBJECT = np.array([[0, 0, 10, 9]], np.float32)
SIZE = (50, 64)


@functools.cache
def compiled(items):
    return jax.jit(functools.partial(anchor_targets, **dict(items)))


def run(*args, gt_ignore=None, **rule):
    return compiled(tuple(sorted(rule.items())))(*args, gt_ignore=gt_ignore)


@pytest.mark.parametrize("image", [0, 1, 2])
def test_labels_and_offsets_as_torchvision(golden, image):
    z = golden("assign_targets")
    rule = options(TORCHVISION.targets)
    # All are drawn, so all are coded.
    rule |= {"sample_size": len(z["anchors"]), "positive_fraction": 1.0}
    found = run(KEY, z["anchors"], z[f"gt_{image}"], None, z["image_size"], **rule)
    np.testing.assert_array_equal(found.labels, z["tv_labels"][image])
    rows = z["tv_pos_index"][:, 0] == image
    positive = z["tv_pos_index"][rows, 1]
    np.testing.assert_allclose(
        np.asarray(found.deltas)[positive],
        z["tv_regression_targets_pos"][rows],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("image", [0, 1, 2])
@pytest.mark.parametrize("boundary", [np.inf, 0.0])
def test_labels_as_detectron2_also_without_straddling_anchors(golden, image, boundary):
    z = golden("assign_targets")
    rule = options(DETECTRON2.targets) | {"boundary": boundary}
    found = run(KEY, z["anchors"], z[f"gt_{image}"], None, z["image_size"], **rule)
    name = "d2_labels_all_sampled" + ("" if np.isinf(boundary) else "_inside_only")
    np.testing.assert_array_equal(found.labels, z[name][image])


def test_by_hand():
    found = run(KEY, ANCHORS, OBJECT, None, SIZE)
    # IoU with the object: 0.9, 0.61 (between), 0, 45 / 145 (between), 0
    assert found.labels.tolist() == [1, -1, 0, -1, 0]
    assert found.sampled.tolist() == [True, False, True, False, True]
    np.testing.assert_allclose(found.gt_iou, [0.9], rtol=1e-6)
    np.testing.assert_array_equal(found.boxes[0], OBJECT[0])
    expected = [0, (4.5 - 5) / 10, 0, np.log(9 / 10)]
    np.testing.assert_allclose(found.deltas[0], expected, rtol=1e-6)
    assert (found.deltas[1:] == 0).all() and (found.boxes[1:] == 0).all()


def test_an_anchor_outside_is_no_objects_best_under_the_first_rule():
    # Only the straddling anchor overlaps the object; the rule decides who stands in.
    anchors = np.array([[-5, 0, 5, 10], [0, 0, 30, 30]], np.float32)
    target = np.array([[0, 0, 5, 10]], np.float32)
    rule = {"boundary": 0.0, "boundary_first": True}
    assert run(KEY, anchors, target, None, SIZE, **rule).labels.tolist() == [-1, 1]
    rule["boundary_first"] = False
    assert run(KEY, anchors, target, None, SIZE, **rule).labels.tolist() == [-1, 0]


def test_an_edge_exactly_on_the_border_is_inside_for_py_faster_rcnn_only():
    anchors = np.array([[54, 40, 64, 50]], np.float32)
    target = anchors.copy()
    first = options(PY_FASTER_RCNN.targets)
    assert run(KEY, anchors, target, None, SIZE, **first).labels.tolist() == [1]
    after = first | {"boundary_first": False}
    assert run(KEY, anchors, target, None, SIZE, **after).labels.tolist() == [-1]


def test_only_positives_that_were_drawn_are_coded():
    anchors = np.tile(ANCHORS[:1], (9, 1))
    found = run(KEY, anchors, OBJECT, None, SIZE, sample_size=8)
    assert (found.labels == 1).all() and found.sampled.sum() == 4
    sampled = np.asarray(found.sampled)
    assert (found.boxes[sampled] == OBJECT[0]).all()
    assert (found.deltas[sampled, 3] < 0).all()
    assert (found.boxes[~sampled] == 0).all() and (found.deltas[~sampled] == 0).all()


def test_no_object_at_all_leaves_negatives_and_zeros():
    for boxes, valid in (
        (np.zeros((0, 4)), None),
        (np.full((3, 4), np.nan), [False] * 3),
    ):
        valid = None if valid is None else np.array(valid)
        found = run(KEY, ANCHORS, boxes.astype(np.float32), valid, SIZE)
        assert (found.labels == 0).all() and found.sampled.all()
        assert (found.deltas == 0).all() and (found.boxes == 0).all()
        assert (found.gt_iou == 0).all()


def test_padded_boxes_change_nothing_whatever_they_hold():
    alone = run(KEY, ANCHORS, OBJECT, None, SIZE)
    padded = np.concatenate([OBJECT, [[np.nan, np.inf, -1, 3], [0, 0, 10, 10]]])
    valid = np.array([True, False, False])
    among = run(KEY, ANCHORS, padded.astype(np.float32), valid, SIZE)
    for a, b in zip(alone[:4], among[:4], strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_box_without_area_teaches_nothing():
    flat = np.array([[3, 3, 3, 8]], np.float32)
    found = run(KEY, ANCHORS, flat, None, SIZE, low_quality_above=-1.0)
    assert (found.labels == 0).all()
    assert np.isfinite(found.deltas).all()


def test_negatives_within_a_crowd_are_left_out():
    crowd = np.array([[25, 25, 60, 60]], np.float32)
    ignore = np.array([True])
    found = run(KEY, ANCHORS, crowd, None, SIZE, gt_ignore=ignore)
    assert found.labels.tolist() == [0, 0, -1, 0, -1]
    assert (found.gt_iou == 0).all()


def test_decoding_the_offsets_gives_the_object(golden):
    z = golden("assign_targets")
    found = run(KEY, z["anchors"], z["gt_0"], None, z["image_size"])
    positive = np.asarray(found.sampled) & (np.asarray(found.labels) == 1)
    boxes = decode_boxes(found.deltas[positive], z["anchors"][positive])
    overlap = box_iou(boxes, found.boxes[positive])
    np.testing.assert_allclose(np.diag(overlap), 1, atol=1e-4)


def test_the_sample_has_the_size_and_share_asked_for(golden):
    z = golden("assign_targets")
    rule = {"sample_size": 32, "positive_fraction": 0.25, "low_quality_above": -1.0}
    found = run(KEY, z["anchors"], z["gt_0"], None, z["image_size"], **rule)
    labels, sampled = np.asarray(found.labels), np.asarray(found.sampled)
    assert (labels == 1).sum() > 8
    assert (sampled & (labels == 1)).sum() == 8
    assert (sampled & (labels == 0)).sum() == 24
    assert not (sampled & (labels == -1)).any()


def test_vmap_equals_a_loop_and_jit_equals_eager(golden):
    z = golden("assign_targets")
    boxes = np.stack([z["gt_0"], z["gt_0"][::-1]])
    anchors = z["anchors"][::7]
    keys = jax.random.split(KEY, 2)
    function = functools.partial(anchor_targets, sample_size=64)
    many = jax.jit(jax.vmap(function, in_axes=(0, None, 0, None, None)))(
        keys, anchors, boxes, None, z["image_size"]
    )
    for i in (0, 1):
        one = jax.jit(function)(keys[i], anchors, boxes[i], None, z["image_size"])
        for a, b in zip(one, many, strict=True):
            # The last bits of a difference or a logarithm may depend on the program.
            np.testing.assert_allclose(np.asarray(a), np.asarray(b[i]), atol=1e-6)
    eager = function(keys[0], anchors, boxes[0], None, z["image_size"])
    np.testing.assert_array_equal(eager.labels, many.labels[0])
    np.testing.assert_array_equal(eager.sampled, many.sampled[0])


@pytest.mark.parametrize(
    ("boxes", "valid", "message"),
    [
        (np.zeros((2, 5)), None, r"gt_boxes must be \[N, 4\]"),
        (np.zeros((2, 4)), np.zeros(2), "gt_valid must be boolean"),
        (np.zeros((2, 4)), np.zeros(3, bool), r"gt_valid must have shape \(2,\)"),
    ],
)
def test_wrong_input_is_named(boxes, valid, message):
    with pytest.raises(ValueError, match=message):
        anchor_targets(KEY, jnp.asarray(ANCHORS), boxes, valid, SIZE)
