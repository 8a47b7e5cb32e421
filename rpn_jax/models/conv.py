"""The convolutions and the pool of all models, in forms that run fast on a CPU too."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

he_init = nn.initializers.he_uniform()


def widen(x: jax.Array) -> jax.Array:
    """Turn what a network computed into float32; float64 stays."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


class Conv1x1(nn.Module):
    """1 x 1 convolution of `[..., C]` maps, computed as one matrix product.

    The kernel is stored `[1, 1, C, features]` as any other convolution's, so that
    weights load unchanged; XLA's CPU backend is much slower at it as a convolution.
    """

    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = he_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., C]` to `[..., features]` in the compute dtype."""
        return _product(self, x, size=1)


class StemConv(nn.Module):
    """3 x 3 convolution of images, computed as one matrix product over patches.

    With three channels a patch has 27 numbers: XLA's CPU backend takes three times as
    long as a convolution, forward and backward.
    """

    features: int
    stride: int = 2
    padding: int = 1
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = he_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, C]` to `[B, h, w, features]` in the compute dtype."""
        pad = (self.padding, self.padding)
        x = jnp.pad(x.astype(self.dtype), ((0, 0), pad, pad, (0, 0)))
        height, width = (side - 2 for side in x.shape[1:3])
        patches = [
            x[:, i : i + height : self.stride, j : j + width : self.stride]
            for i in range(3)
            for j in range(3)
        ]
        return _product(self, jnp.concatenate(patches, axis=-1), size=3)


def _product(module: Conv1x1 | StemConv, x: jax.Array, *, size: int) -> jax.Array:
    """Multiply the rows of `[..., size * size * C]` by the kernel; add the bias."""
    shape = (size, size, x.shape[-1] // size**2, module.features)
    kernel = module.param("kernel", module.kernel_init, shape, jnp.float32)
    # As a matrix: with more axes XLA transposes both sides of the weight gradient.
    rows = x.reshape(-1, x.shape[-1]).astype(module.dtype)
    rows = rows @ kernel.reshape(-1, module.features).astype(module.dtype)
    if module.use_bias:
        zeros = nn.initializers.zeros
        bias = module.param("bias", zeros, (module.features,), jnp.float32)
        rows = rows + bias[None].astype(module.dtype)
    return rows.reshape(*x.shape[:-1], module.features)


def conv2d(
    features: int,
    *,
    size: int = 3,
    stride: int = 1,
    dilation: int = 1,
    padding: int | None = None,
    groups: int = 1,
    use_bias: bool = True,
    kernel_init: Initializer = he_init,
    dtype: DTypeLike = jnp.float32,
    name: str | None = None,
) -> nn.Conv:
    """Square convolution, padded alike on all sides as PyTorch pads.

    By default by as much as keeps the size at stride 1.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        kernel_dilation=dilation,
        padding=dilation * (size // 2) if padding is None else padding,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=dtype,
        name=name,
    )


def max_pool3x3(x: jax.Array, padding: tuple[tuple[int, int], ...]) -> jax.Array:
    """3 x 3 max pool of stride 2 over `[B, H, W, C]`.

    The same values and gradients as `nn.max_pool`'s; ties go to the first position of
    a window, row by row. XLA's CPU backend spends more time in the backward pass of its
    pool (select-and-scatter) than in all convolutions of SqueezeNet; here columns are
    pooled, then rows, the position of each maximum is kept from the forward pass, and
    the backward pass only gathers. Reverse mode only.

    Args:
        x: `[B, H, W, C]` floats.
        padding: `((top, bottom), (left, right))` cells of -inf.

    Returns:
        `[B, h, w, C]` with `h = (H + top + bottom - 3) // 2 + 1`, likewise `w`.
    """
    rows, columns = padding
    return _pool(_pool(x, 2, columns), 1, rows)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _pool(x: jax.Array, axis: int, padding: tuple[int, int]) -> jax.Array:
    """Take the maximum of three in steps of two along an axis; the first of ties."""
    return _pool_forward(x, axis, padding)[0]


def _pool_forward(x, axis, padding):
    pads = [padding if n == axis else (0, 0) for n in range(x.ndim)]
    padded = jnp.pad(x, pads, constant_values=-jnp.inf)
    last = 2 * ((padded.shape[axis] - 3) // 2)
    best, *others = (
        lax.slice_in_dim(padded, n, n + last + 1, 2, axis) for n in range(3)
    )
    position = jnp.zeros_like(best, jnp.uint8)
    for n, other in enumerate(others, start=1):
        better = (other > best) | jnp.isnan(other)  # NaN must show, not vanish
        best = jnp.where(better, other, best)
        position = jnp.where(better, jnp.uint8(n), position)
    return best, (position, x.shape[axis])


def _pool_backward(axis, padding, residuals, grad):
    position, size = residuals
    pairs = (size + 1) // 2
    zero = jnp.zeros((), grad.dtype)
    sums = [zero, zero]  # of the even and of the odd places of x
    for n in range(3):
        # Place n of window i is 2 i + n - padding of x: one of pair i + shift.
        shift, parity = divmod(n - padding[0], 2)
        edges = [(0, 0, 0)] * grad.ndim
        edges[axis] = (shift, pairs - shift - grad.shape[axis], 0)
        part = jnp.where(position == n, grad, 0)
        sums[parity] = sums[parity] + lax.pad(part, zero, edges)
    shape = [2 * pairs if n == axis else s for n, s in enumerate(grad.shape)]
    whole = jnp.stack(sums, axis + 1).reshape(shape)
    return (lax.slice_in_dim(whole, 0, size, axis=axis),)


_pool.defvjp(_pool_forward, _pool_backward)
