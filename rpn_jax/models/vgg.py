"""VGG16, the trunk of the first Faster R-CNN.

Simonyan and Zisserman, Very Deep Convolutional Networks (2014), configuration D.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rpn_jax.models.conv import conv2d, widen

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""(channels, convolutions) of conv1 to conv5; a 2 x 2 max pool lies between them."""


class VGG16(nn.Module):
    """VGG16 up to conv5_3: one map of 512 channels at stride 16.

    Attributes:
        remat: Recompute each stage in the backward pass.
        dtype: Compute type; parameters stay float32.
    """

    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each returned map."""
        return (16,)

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Compute the feature map.

        Args:
            x: `[B, H, W, 3]` normalised images.

        Returns:
            A 1-tuple: float32 `[B, H // 16, W // 16, 512]`.
        """
        x = x.astype(self.dtype)
        stage = nn.remat(_Stage) if self.remat else _Stage
        for number, (features, count) in enumerate(STAGES, start=1):
            if number > 1:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = stage(features, count, dtype=self.dtype, name=f"conv{number}")(x)
        return (widen(x),)


class _Stage(nn.Module):
    features: int
    count: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for n in range(1, self.count + 1):
            x = nn.relu(conv2d(self.features, dtype=self.dtype, name=f"conv{n}")(x))
        return x
