import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.test_util import check_grads

import rpn_jax as rj
from tests import reference, strategies

ANCHOR = jnp.array([10.0, 20, 30, 60])  # 20 wide, 40 high
FILES = ("boxcoder_w1_1_1_1", "boxcoder_w10_10_5_5")
each_file = pytest.mark.parametrize("file", FILES)
each_peer = pytest.mark.parametrize("peer", ["tv", "d2"])


def weights(arrays) -> tuple:
    return tuple(arrays["weights"].tolist())


def test_encode_by_hand():
    # The centre moves by (5, -4), the width doubles, the height halves.
    box = jnp.array([5.0, 26, 45, 46])
    deltas = rj.encode_boxes(box, ANCHOR)
    expected = [5 / 20, -4 / 40, math.log(2), -math.log(2)]
    np.testing.assert_allclose(deltas, expected, rtol=1e-6)


def test_weights_multiply_the_deltas():
    box = jnp.array([5.0, 26, 45, 46])
    deltas = rj.encode_boxes(box, ANCHOR, weights=(10, 10, 5, 5))
    expected = [10 * 5 / 20, -10 * 4 / 40, 5 * math.log(2), -5 * math.log(2)]
    np.testing.assert_allclose(deltas, expected, rtol=1e-6)


def test_zero_deltas_give_the_anchor():
    assert rj.decode_boxes(jnp.zeros(4), ANCHOR).tolist() == ANCHOR.tolist()


def test_growth_is_clamped_from_above_only():
    deltas = jnp.array([[0.0, 0, 9, -9]])
    box = np.asarray(rj.decode_boxes(deltas, ANCHOR[None]))[0]
    np.testing.assert_allclose(box[2] - box[0], 20 * 1000 / 16, rtol=1e-5)
    np.testing.assert_allclose(box[3] - box[1], 40 * math.exp(-9), rtol=1e-2)


def test_growth_may_be_left_free():
    deltas = jnp.array([[0.0, 0, 5, 0]])
    box = rj.decode_boxes(deltas, ANCHOR[None], max_log_scale=math.inf)[0]
    np.testing.assert_allclose(box[2] - box[0], 20 * math.exp(5), rtol=1e-5)


@each_file
@each_peer
def test_encode_equals_the_peer(golden, file, peer):
    arrays = golden(file)
    ours = rj.encode_boxes(arrays["gt"], arrays["proposals"], weights=weights(arrays))
    np.testing.assert_allclose(ours, arrays[f"{peer}_encode"], rtol=1e-5, atol=1e-6)


@each_file
@each_peer
@pytest.mark.parametrize("size", ["small", "big"])
def test_decode_equals_the_peer(golden, file, peer, size):
    arrays = golden(file)
    ours = rj.decode_boxes(
        arrays[f"deltas_{size}"],
        arrays["proposals"],
        weights=weights(arrays),
        max_log_scale=float(arrays["clamp"]),
    )
    theirs = arrays[f"{peer}_decode_{size}"]
    # Relative to the box: a coordinate near 0 is the difference of two large ones.
    largest = np.abs(theirs).max(axis=1, keepdims=True)
    np.testing.assert_allclose(ours / largest, theirs / largest, rtol=0, atol=1e-6)


@each_file
@each_peer
def test_decode_of_several_classes_equals_the_peer(golden, file, peer):
    arrays = golden(file)
    deltas = arrays["deltas_multi"].reshape(50, 3, 4)
    anchors = np.broadcast_to(arrays["proposals_multi"][:, None], deltas.shape)
    ours = rj.decode_boxes(deltas, anchors, weights=weights(arrays))
    theirs = arrays[f"{peer}_decode_multi"].reshape(50, 3, 4)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-3)


@given(strategies.real_boxes(6), strategies.real_boxes(6))
def test_equals_the_reference(boxes, anchors):
    deltas = np.asarray(jax.jit(rj.encode_boxes)(boxes, anchors))
    decoded = np.asarray(jax.jit(rj.decode_boxes)(deltas, anchors))
    for box, anchor, delta, back in zip(boxes, anchors, deltas, decoded, strict=True):
        np.testing.assert_allclose(
            delta, reference.encode(box, anchor), rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(
            back, reference.decode(delta, anchor), rtol=1e-4, atol=1e-3
        )


@jax.jit
def there_and_back(boxes, anchors):
    deltas = rj.encode_boxes(boxes, anchors)
    return rj.decode_boxes(deltas, anchors, max_log_scale=math.inf)


@given(strategies.real_boxes(6), strategies.real_boxes(6))
def test_decode_undoes_encode(boxes, anchors):
    back = there_and_back(boxes, anchors)
    np.testing.assert_allclose(back, boxes, atol=2e-3)


def test_gradients_are_those_of_the_formula():
    box = jnp.array([[5.0, 26, 45, 46]])
    check_grads(rj.encode_boxes, (box, ANCHOR[None]), order=1, modes=["rev"], rtol=0.02)
    deltas = jnp.array([[0.1, -0.2, 0.3, -0.4]])
    check_grads(
        rj.decode_boxes, (deltas, ANCHOR[None]), order=1, modes=["rev"], rtol=0.02
    )


def test_gradient_of_a_clamped_side_is_zero():
    grad = jax.grad(lambda d: rj.decode_boxes(d, ANCHOR).sum())(
        jnp.array([0.0, 0, 9, 1])
    )
    assert grad[2] == 0


def test_half_precision_in_gives_float32_out():
    deltas = jnp.zeros((1, 4), jnp.bfloat16)
    assert rj.decode_boxes(deltas, ANCHOR[None]).dtype == jnp.float32
    assert rj.encode_boxes(ANCHOR.astype(jnp.bfloat16), ANCHOR).dtype == jnp.float32


@pytest.mark.parametrize("op", [rj.encode_boxes, rj.decode_boxes])
def test_shapes_must_agree(op):
    with pytest.raises(ValueError, match=r"anchors.*\(3, 4\).*\(2, 4\)"):
        op(jnp.zeros((3, 4)), jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"4\], got shape \(3, 5\)"):
        op(jnp.zeros((3, 5)), jnp.zeros((3, 5)))
