"""The convolutions and the pool of all models, in forms that run fast on a CPU too."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn.initializers import Initializer

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
    dtype: jnp.dtype = jnp.float32
    kernel_init: Initializer = he_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., C]` to `[..., features]` in the compute dtype."""
        shape = (1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        # As a matrix: with more axes XLA transposes both sides of the weight gradient.
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        rows = rows @ kernel[0, 0].astype(self.dtype)
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), jnp.float32)
            rows = rows + bias[None].astype(self.dtype)
        return rows.reshape(*x.shape[:-1], self.features)


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
    dtype: jnp.dtype = jnp.float32,
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


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool3x3(x: jax.Array, padding: tuple[tuple[int, int], ...]) -> jax.Array:
    """3 x 3 max pool of stride 2 over `[B, H, W, C]`.

    The same values and gradients as `nn.max_pool`'s; ties go to the first position of
    a window, row by row. XLA's CPU backend spends more time in the backward pass of its
    pool (select-and-scatter) than in all convolutions of SqueezeNet; here the position
    of each maximum is kept from the forward pass, and the backward pass, some five
    times faster, only gathers. Reverse mode only.

    Args:
        x: `[B, H, W, C]` floats.
        padding: `((top, bottom), (left, right))` cells of -inf.

    Returns:
        `[B, h, w, C]` with `h = (H + top + bottom - 3) // 2 + 1`, likewise `w`.
    """
    return _pool_forward(x, padding)[0]


def _pool_forward(x, padding):
    h, w = (
        (s + sum(pad) - 3) // 2 + 1
        for s, pad in zip(x.shape[1:3], padding, strict=True)
    )
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    best = padded[:, : 2 * h - 1 : 2, : 2 * w - 1 : 2]
    position = jnp.zeros_like(best, jnp.uint8)
    for n in range(1, 9):
        i, j = divmod(n, 3)
        other = padded[:, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2]
        better = (other > best) | jnp.isnan(other)  # NaN must show, not vanish
        best = jnp.where(better, other, best)
        position = jnp.where(better, jnp.uint8(n), position)
    return best, (position, x.shape[1:3])


def _pool_backward(padding, residuals, grad):
    position, sides = residuals

    def part(n: int) -> jax.Array:
        """What goes to place n of the windows, by row and column pairs of the input."""
        later = [(k // 2, 1 - k // 2) for k in divmod(n, 3)]
        return jnp.pad(jnp.where(position == n, grad, 0), ((0, 0), *later, (0, 0)))

    # Window o reads the padded rows 2 o, 2 o + 1 and 2 o + 2: an odd row is read by one
    # window, an even row by its own and by the one before; columns likewise.
    even = [part(0) + part(2) + part(6) + part(8), part(1) + part(7)]
    odd = [part(3) + part(5), part(4)]
    pairs = jnp.stack([jnp.stack(even, axis=3), jnp.stack(odd, axis=3)], axis=2)
    b, h, _, w, _, c = pairs.shape
    edges = [
        (-pad[0], pad[0] + side - size, 0)  # cuts the padding off, fills unread rows
        for pad, side, size in zip(padding, sides, (2 * h, 2 * w), strict=True)
    ]
    zero = jnp.zeros((), grad.dtype)
    padded = pairs.reshape(b, 2 * h, 2 * w, c)
    return (lax.pad(padded, zero, ((0, 0, 0), *edges, (0, 0, 0))),)


max_pool3x3.defvjp(_pool_forward, _pool_backward)
