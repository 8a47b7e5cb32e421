import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpn_jax import generate_detections
from tests import reference

SIZE = (40, 50)


def scene(seed, count=12, classes=3, background=True):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 30, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(2, 20, (count, 2))], 1)
    logits = rng.normal(0, 2, (count, classes + 1))
    deltas = rng.normal(0, 1, (count, classes + background, 4))
    return tuple(x.astype(np.float32) for x in (boxes, logits, deltas))


@functools.cache
def compiled(background, most):
    options = {"background": background, "max_detections": most}
    return jax.jit(functools.partial(generate_detections, **options))


def plain(boxes, logits, deltas, *, first, most, threshold=0.05, overlap=0.5):
    """The definition, in loops: [(score, class, box)] best first."""
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = exp / exp.sum(axis=1, keepdims=True)
    classes = scores.shape[1] - 1
    background = deltas.shape[1] == classes + 1
    found = []
    for c in range(classes):
        candidates = []
        for roi, box in enumerate(boxes):
            score = scores[roi, c + first]
            dx, dy, dw, dh = deltas[roi, c + (first and background)] / [10, 10, 5, 5]
            w, h = box[2:] - box[:2]
            cx, cy = box[:2] + [w / 2, h / 2] + [dx * w, dy * h]
            w, h = w * np.exp(dw), h * np.exp(dh)
            corners = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
            corners = np.clip(corners, 0, [SIZE[1], SIZE[0]] * 2)
            if score > threshold:
                candidates.append((score, roi, corners.astype(np.float32)))
        kept = []
        for score, roi, box in sorted(candidates, key=lambda x: (-x[0], x[1])):
            if all(reference.iou(box, k[3]) <= overlap for k in kept):
                kept.append((score, roi, c, box))
        found += kept
    found.sort(key=lambda x: (-x[0], x[1], x[2]))
    return [(score, c, box) for score, _, c, box in found[:most]]


@given(
    seed=st.integers(0, 10_000),
    first=st.booleans(),
    background=st.booleans(),
    most=st.sampled_from([3, 40]),
)
def test_against_plain_loops(seed, first, background, most):
    arrays = scene(seed, background=background)
    detect = compiled("first" if first else "last", most)
    found = detect(arrays[0], None, *arrays[1:], SIZE)
    wanted = plain(*arrays, first=first, most=most)
    assert found.valid.sum() == len(wanted)
    for i, (score, label, box) in enumerate(wanted):
        np.testing.assert_allclose(found.scores[i], score, rtol=1e-5)
        assert found.labels[i] == label
        np.testing.assert_allclose(found.boxes[i], box, atol=1e-3)


def test_a_score_of_exactly_the_threshold_is_left_out():
    logits = jnp.zeros((1, 2))  # a probability of exactly 0.5
    for threshold, kept in ((0.5, 0), (0.4999, 1)):
        found = generate_detections(
            jnp.array([[0.0, 0, 9, 9]]),
            None,
            logits,
            jnp.zeros((1, 1, 4)),
            SIZE,
            score_threshold=threshold,
        )
        assert found.valid.sum() == kept


def test_small_boxes_are_left_out_after_clipping():
    boxes = jnp.array([[-5.0, 0, 0.5, 9], [0, 0, 9, 9]])
    logits = jnp.tile(jnp.array([[0.0, 5.0]]), (2, 1))
    found = generate_detections(
        boxes, None, logits, jnp.zeros((2, 1, 4)), SIZE, min_size=1.0, max_detections=2
    )
    np.testing.assert_array_equal(found.valid, [True, False])
    np.testing.assert_array_equal(found.boxes[0], boxes[1])


def test_inclusive_boxes_as_py_faster_rcnn_has_them():
    # There RoIs are [0, 0, 19, 19] and [11, 0, 30, 19]: 20 pixels a side. Its decoding
    # puts x2 at ctr + w / 2 = 20 and 31; with "+1" they share 10 x 21 of 672 pixels.
    rois = jnp.array([[0.0, 0, 20, 20], [11, 0, 31, 20]])
    logits = jnp.array([[0.0, 5.0], [0.0, 4.0]])

    def detect(rois, **options):
        zeros = jnp.zeros((2, 1, 4))
        return generate_detections(rois, None, logits, zeros, SIZE, **options)

    iou = 10 * 21 / (2 * 21 * 21 - 10 * 21)
    assert 0.3 < iou < 0.4
    options = {"inclusive": True, "max_detections": 2}
    found = detect(rois, nms_threshold=0.4, **options)
    np.testing.assert_array_equal(found.boxes, [[0, 0, 21, 21], [11, 0, 32, 21]])
    assert detect(rois, nms_threshold=0.3, **options).valid.tolist() == [True, False]
    # Outside, the last pixel is what is left.
    height, width = SIZE
    outside = detect(rois + 200, nms_threshold=0.4, **options)
    assert outside.boxes[0].tolist() == [width - 1, height - 1, width, height]


def test_padding_changes_nothing_whatever_it_holds():
    boxes, logits, deltas = scene(3)
    junk = [
        np.concatenate([x, np.full((2, *x.shape[1:]), np.nan, np.float32)])
        for x in (boxes, logits, deltas)
    ]
    valid = np.arange(14) < 12
    wanted = generate_detections(boxes, None, logits, deltas, SIZE)
    found = generate_detections(junk[0], valid, *junk[1:], SIZE)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_padded_rows_are_zeros_and_minus_ones():
    found = generate_detections(
        jnp.zeros((3, 4)),
        jnp.zeros(3, bool),
        jnp.zeros((3, 2)),
        jnp.ones((3, 1, 4)),
        SIZE,
    )
    assert not found.valid.any() and (found.labels == -1).all()
    assert (found.boxes == 0).all() and (found.scores == 0).all()


def test_jit_equals_eager_and_vmap_a_loop():
    scenes = [scene(n) for n in range(3)]
    arrays = [np.stack(x) for x in zip(*scenes, strict=True)]

    def one(boxes, logits, deltas):
        return generate_detections(boxes, None, logits, deltas, SIZE, max_detections=9)

    together = jax.jit(jax.vmap(one))(*arrays)
    for i, each in enumerate(scenes):
        for a, b in zip(together, one(*each), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-5)


def test_gradients_reach_logits_and_deltas_and_are_finite():
    boxes, logits, deltas = scene(5)

    def total(logits, deltas):
        found = generate_detections(boxes, None, logits, deltas, SIZE)
        return found.boxes.sum() + found.scores.sum()

    for grad in jax.grad(total, argnums=(0, 1))(logits, deltas):
        assert np.isfinite(grad).all() and (np.asarray(grad) != 0).any()


@pytest.mark.parametrize(
    ("logits", "deltas", "message"),
    [
        ((3, 3), (2, 2, 4), "deltas must be \\[3, 2 or 3, 4\\]"),
        ((), (3, 2, 4), "logits must be \\[3, classes \\+ 1\\]"),
        ((2, 3), (3, 2, 4), "logits must be \\[3, classes \\+ 1\\]"),
    ],
)
def test_wrong_input_is_named(logits, deltas, message):
    with pytest.raises(ValueError, match=message):
        generate_detections(
            jnp.zeros((3, 4)), None, jnp.zeros(logits), jnp.zeros(deltas), SIZE
        )
