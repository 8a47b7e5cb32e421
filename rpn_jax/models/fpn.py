"""Feature pyramid: coarse maps with much context are added to fine ones.

Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rpn_jax.models.conv import Conv1x1, conv2d, widen
from rpn_jax.models.norm import FrozenBatchNorm


class FPN(nn.Module):
    """Bring the maps of a trunk to one number of channels, from the coarsest down.

    Each map passes a 1 x 1 convolution (`lateral`); the coarser result, every cell
    repeated, is added to it; a 3 x 3 convolution (`output`) smooths the sum. Coarser
    levels still are made from the last of these.

    Attributes:
        bottom_up: The trunk; its maps run from fine to coarse, each half the last, or
            as large.
        channels: Channels of every map returned.
        smooth: Whether the 3 x 3 convolutions are there. Without them the head's own
            3 x 3 convolution has to do, at half the parameters.
        top: Number of coarser levels, each half the last.
        top_conv: Whether these are 3 x 3 convolutions of stride 2 (`top`; RetinaNet)
            or every second cell ("max pool" of one cell; Faster R-CNN).
        norm: Whether a frozen batch norm stands for the biases of the convolutions.
        dtype: Compute type; parameters stay float32.
    """

    bottom_up: nn.Module
    channels: int = 256
    smooth: bool = True
    top: int = 0
    top_conv: bool = False
    norm: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each returned map."""
        strides = self.bottom_up.strides  # type: ignore[attr-defined]
        return (*strides, *(strides[-1] * 2**n for n in range(1, self.top + 1)))

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Compute the feature maps.

        Args:
            x: `[B, H, W, 3]` normalised images.

        Returns:
            For each map of the trunk, and each level on top, float32
            `[B, h, w, channels]`, fine to coarse.
        """
        strides = self.strides
        for fine, coarse in zip(strides, strides[1:], strict=False):
            if coarse not in (fine, 2 * fine):
                raise ValueError(
                    "each map must be half the last one's size, or as large, got "
                    f"strides {strides}"
                )
        maps = []
        above = None
        for level, features in reversed(list(enumerate(self.bottom_up(x)))):
            lateral = Conv1x1(
                self.channels,
                use_bias=not self.norm,
                dtype=self.dtype,
                name=f"lateral{level}",
            )
            y = self._norm(lateral(features), f"lateral{level}_norm")
            if above is not None:
                if strides[level + 1] != strides[level]:
                    above = above.repeat(2, axis=1).repeat(2, axis=2)
                # An odd side was rounded up when it was halved: cut what is too much.
                y = y + above[:, : y.shape[1], : y.shape[2]]
            above = y
            if self.smooth:
                output = conv2d(
                    self.channels,
                    use_bias=not self.norm,
                    dtype=self.dtype,
                    name=f"output{level}",
                )
                y = self._norm(output(y), f"output{level}_norm")
            maps.insert(0, widen(y))
        for n in range(self.top):
            y = maps[-1]
            if self.top_conv:
                y = nn.relu(y) if n else y
                y = conv2d(self.channels, stride=2, dtype=self.dtype, name=f"top{n}")(y)
            else:
                y = y[:, ::2, ::2]
            maps.append(widen(y))
        return tuple(maps)

    def _norm(self, x: jax.Array, name: str) -> jax.Array:
        return FrozenBatchNorm(dtype=self.dtype, name=name)(x) if self.norm else x
