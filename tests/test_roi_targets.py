import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpn_jax import roi_targets
from tests import reference

KEY = jax.random.key(0)


@functools.cache
def compiled(items):
    return jax.jit(functools.partial(roi_targets, **dict(items)))


def run(boxes, gt_boxes, labels, **options):
    boxes, gt_boxes = np.float32(boxes), np.float32(gt_boxes)
    valid, labels = np.ones(len(gt_boxes), bool), np.array(labels, np.int32)
    targets = compiled(tuple(options.items()))
    return targets(KEY, boxes, None, gt_boxes, labels, valid)


def test_by_hand():
    found = run([[0, 0, 10, 5], [0, 0, 10, 4], [40, 40, 50, 50]], [[0, 0, 10, 10]], [7])
    # The first overlaps by exactly a half; the object itself is the fourth RoI.
    assert found.boxes.shape == (4, 4)
    np.testing.assert_array_equal(found.valid, [True, True, True, True])
    np.testing.assert_array_equal(found.labels, [7, 7, -1, -1])
    on_object = sorted(found.boxes[:2].tolist())
    assert on_object == [[0, 0, 10, 5], [0, 0, 10, 10]]


def test_the_share_of_positives_is_of_the_sample_wanted():
    """As torchvision's sampler: 128 of 512, though there are 41 RoIs."""
    near = np.tile([[0.0, 0, 10, 9]], (20, 1))
    far = np.tile([[30.0, 30, 40, 40]], (20, 1))
    found = run(np.concatenate([near, far]), [[0, 0, 10, 10]], [2])
    assert int((found.labels == 2).sum()) == 21
    assert int((found.valid & (found.labels == -1)).sum()) == 20
    few = run(np.concatenate([near, far]), [[0, 0, 10, 10]], [2], sample_size=40)
    assert int((few.labels == 2).sum()) == 10
    assert int((few.valid & (few.labels == -1)).sum()) == 20


def test_a_roi_at_the_threshold_is_on_the_object():
    found = run(
        [[0, 0, 10, 5], [0, 0, 10, 4]], [[0, 0, 10, 10]], [7], positive_fraction=1.0
    )
    at = {
        tuple(map(float, b)): n for b, n in zip(found.boxes, found.labels, strict=True)
    }
    assert at[0, 0, 10, 5] == 7 and at[0, 0, 10, 10] == 7
    assert at[0, 0, 10, 4] == -1


def test_deltas_take_a_roi_to_its_object():
    found = run([[0, 0, 8, 10]], [[0, 0, 10, 10]], [0], positive_fraction=1.0)
    row = int(np.flatnonzero(np.asarray(found.boxes)[:, 2] == 8)[0])
    wanted = [10 * 1 / 8, 0, 5 * np.log(10 / 8), 0]
    np.testing.assert_allclose(found.deltas[row], wanted, rtol=1e-5, atol=1e-6)


def test_no_object_leaves_background():
    found = run(np.random.default_rng(0).uniform(0, 9, (6, 4)), np.zeros((0, 4)), [])
    assert (found.labels == -1).all() and (found.deltas == 0).all()
    assert found.valid.sum() == 6


def test_regions_to_ignore_are_neither_rois_nor_background():
    boxes, gt = np.float32([[0, 0, 4, 4], [50, 50, 60, 60]]), np.float32([[0, 0, 9, 9]])
    yes = np.array([True])
    found = roi_targets(KEY, boxes, None, gt, np.array([0]), yes, yes)
    np.testing.assert_array_equal(found.valid, [True, False, False])
    np.testing.assert_array_equal(found.boxes[0], boxes[1])


def scene(seed, count=12, objects=3):
    rng = np.random.default_rng(seed)
    gt = rng.uniform(0, 40, (objects, 2))
    gt = np.concatenate([gt, gt + rng.uniform(4, 30, (objects, 2))], 1)
    near = gt[rng.integers(0, objects, count)] + rng.normal(0, 4, (count, 4))
    return near.astype(np.float32), gt.astype(np.float32), rng.integers(0, 5, objects)


@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1, 7, 20]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_counts_and_labels_against_plain_numpy(seed, size, share):
    boxes, gt, labels = scene(seed)
    found = run(boxes, gt, labels, sample_size=size, positive_fraction=share)
    rois = np.concatenate([boxes, gt])
    iou = np.array([[reference.iou(a, b) for b in gt] for a in rois])
    on_object = iou.max(axis=1) >= 0.5
    positives = min(on_object.sum(), int(size * share))
    drawn = min(size, len(rois), positives + (~on_object).sum())
    assert (found.labels >= 0).sum() == positives
    assert found.valid.sum() == drawn
    for box, label, valid in zip(*found[:2], found.valid, strict=True):
        if not valid:
            assert (box == 0).all() and label == -1
            continue
        row = np.flatnonzero((rois == np.asarray(box)).all(axis=1))[0]
        assert label == (labels[iou[row].argmax()] if on_object[row] else -1)


def test_padding_changes_nothing_whatever_it_holds():
    boxes, gt, labels = scene(1)
    padded = np.concatenate([boxes, np.full((3, 4), np.nan, np.float32)])
    valid = np.arange(15) < 12
    wanted = run(boxes, gt, labels, sample_size=100, positive_fraction=1.0)
    found = roi_targets(
        KEY, padded, valid, gt, labels, None, sample_size=100, positive_fraction=1.0
    )

    def rows(targets):
        arrays = np.concatenate([targets.boxes, targets.deltas], 1)
        labelled = np.concatenate([arrays, np.asarray(targets.labels)[:, None]], 1)
        return sorted(map(tuple, labelled[np.asarray(targets.valid)]))

    assert rows(found) == rows(wanted)
    assert np.isfinite(found.deltas).all()


def test_jit_equals_eager_and_vmap_a_loop():
    scenes = [scene(n) for n in range(3)]
    arrays = [np.stack(x) for x in zip(*scenes, strict=True)]

    def one(boxes, gt, labels):
        return roi_targets(KEY, boxes, None, gt, labels, None, sample_size=8)

    together = jax.jit(jax.vmap(one))(*arrays)
    for i, each in enumerate(scenes):
        for a, b in zip(together, one(*each), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="gt_labels must have shape"):
        roi_targets(KEY, jnp.zeros((2, 4)), None, jnp.zeros((1, 4)), jnp.zeros(3), None)
