from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpn_jax.models.conv import Conv1x1, StemConv, conv2d, max_pool3x3


def reference_pool(x, padding):
    """Loops over windows: values, and which input each window takes (the first)."""
    batch, height, width, channels = x.shape
    (top, bottom), (left, right) = padding
    h = (height + top + bottom - 3) // 2 + 1
    w = (width + left + right - 3) // 2 + 1
    values = np.full((batch, h, w, channels), -np.inf, x.dtype)
    gradient = np.zeros_like(x)
    for b, i, j, c in np.ndindex(values.shape):
        source = None
        for row in range(2 * i - top, 2 * i - top + 3):
            for column in range(2 * j - left, 2 * j - left + 3):
                inside = 0 <= row < height and 0 <= column < width
                if inside and x[b, row, column, c] > values[b, i, j, c]:
                    values[b, i, j, c] = x[b, row, column, c]
                    source = b, row, column, c
        if source:
            gradient[source] += (i + 1) * (j + 2)
    return values, gradient


PADDINGS = [
    ((1, 1), (1, 1)),
    ((0, 1), (0, 0)),
    ((0, 0), (0, 1)),
    ((0, 0), (0, 0)),
    ((2, 1), (0, 2)),
]


@partial(jax.jit, static_argnames="padding")
def pool_with_gradient(x, padding):
    pooled, backward = jax.vjp(lambda x: max_pool3x3(x, padding), x)
    _, rows, columns, _ = pooled.shape
    weights = (jnp.arange(rows)[:, None] + 1) * (jnp.arange(columns) + 2)
    weights = jnp.broadcast_to(weights[None, :, :, None], pooled.shape)
    return pooled, backward(weights.astype(x.dtype))[0]


@given(st.sampled_from([(5, 8), (8, 3)]), st.sampled_from(PADDINGS), st.integers(0))
def test_pool_takes_the_first_maximum_and_sends_the_gradient_there(size, padding, seed):
    # Small integers: ties everywhere.
    x = np.random.default_rng(seed).integers(-2, 3, (1, *size, 2)).astype(np.float32)
    pooled, gradient = pool_with_gradient(x, padding)
    values, wanted = reference_pool(x, padding)
    np.testing.assert_array_equal(pooled, values)
    np.testing.assert_array_equal(gradient, wanted)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pool_equals_linen_forward_and_backward(padding, dtype, getkey):
    x = jax.random.normal(getkey(), (2, 9, 12, 5), dtype)

    def linen(x):
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)

    wanted, wanted_back = jax.vjp(linen, x)
    pooled, back = jax.vjp(jax.jit(lambda x: max_pool3x3(x, padding)), x)
    np.testing.assert_array_equal(pooled, wanted)
    cotangent = jax.random.normal(getkey(), wanted.shape).astype(dtype)
    tolerance = 1e-6 if dtype == jnp.float32 else 3e-2  # sums in another order
    np.testing.assert_allclose(
        back(cotangent)[0].astype(jnp.float32),
        wanted_back(cotangent)[0].astype(jnp.float32),
        atol=tolerance,
        rtol=tolerance,
    )


def test_pool_passes_nan_on():
    x = jnp.zeros((1, 6, 6, 1)).at[0, 4, 4, 0].set(jnp.nan)
    pooled = max_pool3x3(x, ((1, 1), (1, 1)))[0, :, :, 0]
    np.testing.assert_array_equal(jnp.isnan(pooled), np.arange(9).reshape(3, 3) == 8)


def assert_same_convolution(ours, linen, x, getkey):
    """The same parameters give the same values and gradients, by weights and input."""
    params = ours.init(getkey(), x)
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == jax.tree.map(jnp.shape, linen.init(getkey(), x))

    def loss(module):
        return lambda params, x: jnp.sum(module.apply(params, x) ** 2)

    value, grads = jax.value_and_grad(loss(ours), (0, 1))(params, x)
    wanted, wanted_grads = jax.value_and_grad(loss(linen), (0, 1))(params, x)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        grads,
        wanted_grads,
    )


def test_conv1x1_equals_a_convolution_with_the_same_parameters(getkey):
    x = jax.random.normal(getkey(), (2, 5, 7, 6))
    assert_same_convolution(Conv1x1(4), nn.Conv(4, (1, 1)), x, getkey)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("sides", [(8, 9), (3, 6)])
def test_stem_conv_equals_a_convolution_with_the_same_parameters(
    stride, padding, sides, getkey
):
    x = jax.random.normal(getkey(), (2, *sides, 3))
    linen = nn.Conv(4, (3, 3), strides=stride, padding=padding)
    ours = StemConv(4, stride=stride, padding=padding)
    assert (
        ours.apply(ours.init(getkey(), x), x).shape
        == linen.apply(linen.init(getkey(), x), x).shape
    )
    assert_same_convolution(ours, linen, x, getkey)


@pytest.mark.parametrize("side", [8, 9])
def test_conv2d_pads_both_sides(side, getkey):
    # XLA's "SAME" would pad an even side at its end alone.
    x = jnp.zeros((1, side, side, 1)).at[0, 0, 0].set(1)
    conv = conv2d(1, stride=2)
    params = jax.tree.map(jnp.ones_like, conv.init(getkey(), x))
    y = conv.apply(params, x)
    assert y.shape == (1, (side + 1) // 2, (side + 1) // 2, 1)
    assert y[0, 0, 0, 0] == 2 and y[0, 1, 1, 0] == 1  # the pixel and the bias; bias
