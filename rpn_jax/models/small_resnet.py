"""A small residual network with group norm, to train from scratch.

He et al., Deep Residual Learning (2015); Wu and He, Group Normalization (2018). Group
norm needs no batch statistics: the batch may be small, the features of an image do not
depend on the others, and there is no state beside the parameters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rpn_jax.models.conv import Conv1x1, StemConv, conv2d, widen


class Block(nn.Module):
    """Two 3 x 3 convolutions with group norm and a shortcut."""

    features: int
    stride: int = 1
    groups: int = 8
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, C]` to `[B, ceil(H / stride), ..., features]`."""

        def conv(stride: int, name: str) -> nn.Conv:
            return conv2d(
                self.features,
                stride=stride,
                use_bias=False,
                dtype=self.dtype,
                name=name,
            )

        def norm(name: str, **options) -> nn.GroupNorm:
            return nn.GroupNorm(self.groups, dtype=self.dtype, name=name, **options)

        y = nn.relu(norm("norm1")(conv(self.stride, "conv1")(x)))
        # The last scale starts at zero: each block starts as its shortcut.
        y = conv(1, "conv2")(y)
        y = norm("norm2", scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = Conv1x1(self.features, dtype=self.dtype, name="shortcut")(
                x[:, :: self.stride, :: self.stride]
            )
        return nn.relu(x + y)


class SmallResNet(nn.Module):
    """Residual trunk of a few stages, each after the first at half the resolution.

    A 3 x 3 stem convolution of stride 2, then stage n at stride `4 * 2**n`.

    Attributes:
        widths: Channels of each stage.
        blocks: Residual blocks of each stage.
        stem: Channels of the stem.
        strides: Strides of the maps to return, each one of a stage's.
        groups: Groups of each norm; divides every width.
        dtype: Compute type; parameters stay float32.
    """

    widths: tuple[int, ...] = (32, 64, 96)
    blocks: tuple[int, ...] = (1, 1, 1)
    stem: int = 16
    strides: tuple[int, ...] = (16,)
    groups: int = 8
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Compute the feature maps.

        Args:
            x: `[B, H, W, 3]` normalised images.

        Returns:
            For each of `strides` its stage's map, float32 `[B, ceil(H / stride),
            ceil(W / stride), width]`.
        """
        available = tuple(4 * 2**n for n in range(len(self.widths)))
        if len(self.blocks) != len(self.widths):
            raise ValueError(
                f"blocks and widths must have one entry a stage each, got "
                f"{self.blocks} and {self.widths}"
            )
        if not self.strides or not set(self.strides) <= set(available):
            raise ValueError(f"strides must be among {available}, got {self.strides}")
        x = StemConv(self.stem, use_bias=False, dtype=self.dtype, name="stem")(x)
        x = nn.relu(nn.GroupNorm(self.groups, dtype=self.dtype, name="stem_norm")(x))
        maps = {}
        for stage, (features, count) in enumerate(
            zip(self.widths, self.blocks, strict=True)
        ):
            for n in range(count):
                x = Block(
                    features,
                    stride=2 if n == 0 else 1,
                    groups=self.groups,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{n + 1}",
                )(x)
            maps[available[stage]] = widen(x)
        return tuple(maps[stride] for stride in self.strides)
