"""ResNet and ResNeXt trunks with frozen batch norm, as detectors use them.

He et al., Deep Residual Learning (2015); Xie et al., Aggregated Residual
Transformations (2017). Stages are called res2 to res5, at strides 4 to 32.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rpn_jax.models.conv import Conv1x1, conv2d, max_pool3x3, widen
from rpn_jax.models.norm import FrozenBatchNorm

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
"""Blocks of res2 to res5. 18 and 34 have basic blocks, 50 and 101 bottlenecks."""

# With trained norms the last of a block may start at 0. A frozen one would stay there;
# a quarter keeps a trunk of random weights in range, however deep.
last_scale = nn.initializers.constant(0.25)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, or a bottleneck of 1 x 1, 3 x 3 and 1 x 1.

    Attributes:
        features: Channels out.
        width: Channels of the bottleneck's 3 x 3 convolution; None: a basic block.
        stride: Of the whole block.
        dilation: Of the bottleneck's 3 x 3 convolution.
        groups: Likewise.
        stride_in_1x1: Whether the stride is in the bottleneck's first convolution (as
            first published) or in its second.
        epsilon: Of the batch norms.
        dtype: Compute type.
    """

    features: int
    width: int | None = None
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    stride_in_1x1: bool = False
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, C]` to `[B, ceil(H / stride), ..., features]`."""
        conv = partial(conv2d, use_bias=False, dtype=self.dtype)
        norm = partial(FrozenBatchNorm, epsilon=self.epsilon, dtype=self.dtype)

        def conv1x1(x: jax.Array, features: int, stride: int, name: str) -> jax.Array:
            module = Conv1x1(features, use_bias=False, dtype=self.dtype, name=name)
            return module(x[:, ::stride, ::stride])

        if self.width is None:
            y = conv(self.features, stride=self.stride, name="conv1")(x)
            y = nn.relu(norm(name="norm1")(y))
            y = conv(self.features, name="conv2")(y)
            y = norm(name="norm2", scale_init=last_scale)(y)
        else:
            first, second = self.stride, 1
            if not self.stride_in_1x1:
                first, second = second, first
            y = nn.relu(norm(name="norm1")(conv1x1(x, self.width, first, "conv1")))
            y = conv(
                self.width,
                stride=second,
                dilation=self.dilation,
                groups=self.groups,
                name="conv2",
            )(y)
            y = nn.relu(norm(name="norm2")(y))
            y = conv1x1(y, self.features, 1, "conv3")
            y = norm(name="norm3", scale_init=last_scale)(y)
        if self.stride > 1 or x.shape[-1] != self.features:
            x = conv1x1(x, self.features, self.stride, "shortcut")
            x = norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet trunk.

    Attributes:
        depth: A key of `DEPTHS`.
        stages: Stages whose maps are returned; none after the last of them is built.
        groups: Of the 3 x 3 convolutions; 32 makes a ResNeXt.
        group_width: Channels a group in res2.
        stride_in_1x1: See `ResidualBlock`.
        dilated: Whether res5 keeps the resolution of res4 and dilates instead ("DC5").
        epsilon: Of the batch norms.
        remat: Recompute the blocks in the backward pass instead of keeping what they
            made: less memory, a third more time.
        dtype: Compute type; parameters stay float32.
    """

    depth: int = 50
    stages: tuple[str, ...] = ("res2", "res3", "res4", "res5")
    groups: int = 1
    group_width: int = 64
    stride_in_1x1: bool = False
    dilated: bool = False
    epsilon: float = 1e-5
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each returned map."""
        strides = {"res2": 4, "res3": 8, "res4": 16, "res5": 16 if self.dilated else 32}
        return tuple(strides[stage] for stage in self.stages)

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Compute the feature maps.

        Args:
            x: `[B, H, W, 3]` normalised images.

        Returns:
            For each of `stages` its map, float32 `[B, ceil(H / stride), ceil(W /
            stride), C]`.
        """
        x = conv2d(64, size=7, stride=2, use_bias=False, dtype=self.dtype, name="stem")(
            x
        )
        norm = FrozenBatchNorm(epsilon=self.epsilon, dtype=self.dtype, name="stem_norm")
        x = max_pool3x3(nn.relu(norm(x)), ((1, 1), (1, 1)))
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        maps = {}
        for number in range(2, 6):
            stage = f"res{number}"
            for n, options in enumerate(self.blocks(number)):
                x = block(**options, dtype=self.dtype, name=f"{stage}_{n}")(x)
            maps[stage] = widen(x)
            if stage == self.stages[-1]:
                break
        return tuple(maps[stage] for stage in self.stages)

    def blocks(self, number: int) -> list[dict]:
        """Return the options of each block of stage `number`, 2 to 5."""
        scale = 2 ** (number - 2)
        dilated = self.dilated and number == 5
        basic = self.depth < 50
        options = {
            "features": (64 if basic else 256) * scale,
            "width": None if basic else self.groups * self.group_width * scale,
            "dilation": 2 if dilated else 1,
            "groups": self.groups,
            "stride_in_1x1": self.stride_in_1x1,
            "epsilon": self.epsilon,
        }
        stride = 1 if number == 2 or dilated else 2
        count = DEPTHS[self.depth][number - 2]
        return [options | {"stride": stride if n == 0 else 1} for n in range(count)]
