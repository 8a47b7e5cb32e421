"""SqueezeNet 1.1, the trunk without its classifier.

Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer parameters (2016),
and the v1.1 of the authors' repository. Maps are NHWC.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rpn_jax.models.conv import Conv1x1, StemConv, conv2d, max_pool3x3, widen

FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256))
FIRES += ((64, 256),)
"""(squeeze, expand) channels of fire2 to fire9; a fire returns 2 x expand channels."""

STRIDES = {3: 4, 5: 8, 9: 16}
"""Stride of the maps that can be returned, by number of the fire."""


class Fire(nn.Module):
    """Squeeze to few channels by 1 x 1, expand by 1 x 1 and 3 x 3 side by side."""

    squeeze: int
    expand: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[B, H, W, C]` to `[B, H, W, 2 * expand]`."""
        x = nn.relu(Conv1x1(self.squeeze, dtype=self.dtype, name="squeeze1x1")(x))
        one = Conv1x1(self.expand, dtype=self.dtype, name="expand1x1")(x)
        three = conv2d(self.expand, dtype=self.dtype, name="expand3x3")(x)
        return nn.relu(jnp.concatenate([one, three], axis=-1))


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 up to fire9, whose map has 512 channels at stride 16.

    Attributes:
        strides: Of the maps to return: 4 (fire3, 128 channels), 8 (fire5, 256) or 16;
            nothing after the last of them is built.
        padding: "same" pads conv1 and the pools by 1 on all sides, so that a side of
            384 px gives 24 cells; "torchvision" pads nothing and rounds the pools'
            output sizes up, as its `squeezenet1_1` does (384 px give 23 cells).
        dtype: Compute type; parameters stay float32.
    """

    strides: tuple[int, ...] = (16,)
    padding: str = "same"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Compute the feature map.

        Args:
            x: `[B, H, W, 3]` normalised images.

        Returns:
            For each of `strides` its map: float32 `[B, ceil(H / stride),
            ceil(W / stride), channels]` with "same".
        """
        if self.padding not in ("same", "torchvision"):
            raise ValueError(
                f'padding must be "same" or "torchvision", got {self.padding!r}'
            )
        if not self.strides or not set(self.strides) <= set(STRIDES.values()):
            raise ValueError(
                f"strides must be among {tuple(STRIDES.values())}, got {self.strides}"
            )
        same = self.padding == "same"
        x = StemConv(64, padding=int(same), dtype=self.dtype, name="conv1")(x)
        x = nn.relu(_pool(x, same))  # the same as pooling after ReLU, and cheaper
        maps = {}
        for number, (squeeze, expand) in enumerate(FIRES, start=2):
            x = Fire(squeeze, expand, dtype=self.dtype, name=f"fire{number}")(x)
            if number in STRIDES:
                maps[STRIDES[number]] = widen(x)
            if STRIDES.get(number) == max(self.strides):
                break
            if number in (3, 5):
                x = _pool(x, same)
        return tuple(maps[stride] for stride in self.strides)


def _pool(x: jax.Array, same: bool) -> jax.Array:
    """3 x 3 max pool of stride 2, padded by 1 (same) or in PyTorch's ceil mode."""
    # An odd side fits whole windows; an even one needs a last row for the ceiling.
    rows, columns = ((1, 1) if same else (0, 1 - side % 2) for side in x.shape[1:3])
    return max_pool3x3(x, (rows, columns))
