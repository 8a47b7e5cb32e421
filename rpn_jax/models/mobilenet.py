"""MobileNetV3-large, a trunk for small devices, with frozen batch norm.

Howard et al., Searching for MobileNetV3 (2019), table 1.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rpn_jax.models.conv import Conv1x1, StemConv, conv2d, widen
from rpn_jax.models.norm import FrozenBatchNorm


class Bneck(NamedTuple):
    """A row of table 1: kernel size, widths, squeeze-and-excite, h-swish, stride."""

    kernel: int
    expand: int
    features: int
    excite: bool
    swish: bool
    stride: int


BNECKS = (
    Bneck(3, 16, 16, False, False, 1),
    Bneck(3, 64, 24, False, False, 2),
    Bneck(3, 72, 24, False, False, 1),
    Bneck(5, 72, 40, True, False, 2),
    Bneck(5, 120, 40, True, False, 1),
    Bneck(5, 120, 40, True, False, 1),
    Bneck(3, 240, 80, False, True, 2),
    Bneck(3, 200, 80, False, True, 1),
    Bneck(3, 184, 80, False, True, 1),
    Bneck(3, 184, 80, False, True, 1),
    Bneck(3, 480, 112, True, True, 1),
    Bneck(3, 672, 112, True, True, 1),
    Bneck(5, 672, 160, True, True, 2),
    Bneck(5, 960, 160, True, True, 1),
    Bneck(5, 960, 160, True, True, 1),
)


class InvertedResidual(nn.Module):
    """Widen, convolve each channel alone, weigh the channels, narrow.

    Attributes:
        row: What the block is made of.
        epsilon: Of the batch norms.
        dtype: Compute type.
    """

    row: Bneck
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, C]` to `[B, ceil(H / stride), ..., features]`."""
        row = self.row
        activate = nn.hard_swish if row.swish else nn.relu

        def norm(x: jax.Array, name: str) -> jax.Array:
            return FrozenBatchNorm(self.epsilon, dtype=self.dtype, name=name)(x)

        def conv1x1(x: jax.Array, features: int, name: str) -> jax.Array:
            module = Conv1x1(features, use_bias=False, dtype=self.dtype, name=name)
            return module(x)

        y = x
        if row.expand != x.shape[-1]:
            y = activate(norm(conv1x1(y, row.expand, "expand"), "expand_norm"))
        y = conv2d(
            row.expand,
            size=row.kernel,
            stride=row.stride,
            groups=row.expand,
            use_bias=False,
            dtype=self.dtype,
            name="depthwise",
        )(y)
        y = activate(norm(y, "depthwise_norm"))
        if row.excite:
            y = y * self.excite(y)
        y = norm(conv1x1(y, row.features, "project"), "project_norm")
        return x + y if x.shape == y.shape and row.stride == 1 else y

    def excite(self, x: jax.Array) -> jax.Array:
        """Weigh the channels `[B, H, W, C]` by their means: `[B, 1, 1, C]` in 0..1."""
        channels = x.shape[-1]
        mean = widen(x).mean(axis=(1, 2), keepdims=True)
        narrow = Conv1x1(_multiple_of_8(channels / 4), dtype=self.dtype, name="squeeze")
        back = Conv1x1(channels, dtype=self.dtype, name="excite")
        return nn.hard_sigmoid(back(nn.relu(narrow(mean))))


class MobileNetV3(nn.Module):
    """MobileNetV3-large up to its last 1 x 1 convolution.

    Attributes:
        epsilon: Of the batch norms: 1e-5 in detectors, 1e-3 in its classifier.
        remat: Recompute the blocks in the backward pass.
        dtype: Compute type; parameters stay float32.
    """

    epsilon: float = 1e-5
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each returned map."""
        return (32, 32)

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Compute the feature maps.

        Args:
            x: `[B, H, W, 3]` normalised images.

        Returns:
            Two maps at stride 32, float32: 160 channels at the start of the last
            resolution, 960 after the last convolution; those that torchvision's
            detectors take.
        """
        x = StemConv(16, use_bias=False, dtype=self.dtype, name="stem")(x)
        norm = FrozenBatchNorm(self.epsilon, dtype=self.dtype, name="stem_norm")
        x = nn.hard_swish(norm(x))
        block = nn.remat(InvertedResidual) if self.remat else InvertedResidual
        maps = []
        for number, row in enumerate(BNECKS, start=1):
            name = f"bneck{number}"
            x = block(row, self.epsilon, dtype=self.dtype, name=name)(x)
            if row.features == 160 and row.stride == 2:
                maps.append(x)
        x = Conv1x1(960, use_bias=False, dtype=self.dtype, name="last")(x)
        norm = FrozenBatchNorm(self.epsilon, dtype=self.dtype, name="last_norm")
        maps.append(nn.hard_swish(norm(x)))
        return tuple(widen(m) for m in maps)


def _multiple_of_8(channels: float) -> int:
    """Round to a multiple of 8, never down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
