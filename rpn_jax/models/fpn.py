"""Feature pyramid: coarse maps with much context are added to fine ones.

Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rpn_jax.models.conv import Conv1x1, conv3x3


class FPN(nn.Module):
    """Bring the maps of a trunk to one number of channels, from the coarsest down.

    Each map passes a 1 x 1 convolution (`lateral`); the coarser result, every cell
    repeated, is added to it; a 3 x 3 convolution (`output`) smooths the sum.

    Attributes:
        bottom_up: The trunk; its maps run from fine to coarse, each half the last.
        channels: Channels of every map returned.
        smooth: Whether the 3 x 3 convolutions are there. Without them the head's own
            3 x 3 convolution has to do, at half the parameters.
        dtype: Compute type; parameters stay float32.
    """

    bottom_up: nn.Module
    channels: int = 256
    smooth: bool = True
    dtype: jnp.dtype = jnp.float32

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each returned map: those of the trunk."""
        return self.bottom_up.strides  # type: ignore[attr-defined]

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Compute the feature maps.

        Args:
            x: `[B, H, W, 3]` normalised images.

        Returns:
            For each map of the trunk float32 `[B, h, w, channels]`, fine to coarse.
        """
        finest = self.strides[0]
        if self.strides != tuple(finest * 2**n for n in range(len(self.strides))):
            raise ValueError(
                f"each map must be half the last one's size, got strides {self.strides}"
            )
        maps = []
        above = None
        for level, features in reversed(list(enumerate(self.bottom_up(x)))):
            lateral = Conv1x1(self.channels, dtype=self.dtype, name=f"lateral{level}")
            y = lateral(features)
            if above is not None:
                # An odd side was rounded up when it was halved: cut what is too much.
                above = above.repeat(2, axis=1).repeat(2, axis=2)
                y = y + above[:, : y.shape[1], : y.shape[2]]
            above = y
            if self.smooth:
                y = conv3x3(self.channels, dtype=self.dtype, name=f"output{level}")(y)
            maps.append(y.astype(jnp.float32))
        return tuple(reversed(maps))
