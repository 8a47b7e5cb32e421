"""Batch normalisation that is not trained: a factor and an offset a channel."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike


class FrozenBatchNorm(nn.Module):
    """Normalise by stored statistics, then scale and shift.

    `(x - mean) / sqrt(var + epsilon) * scale + bias`, channel by channel.

    Detectors are trained on few images at a time, so that their batch norms keep the
    statistics and the affine parameters of ImageNet. All four vectors lie in the
    collection `constants`, which no optimizer sees.

    Attributes:
        epsilon: Added to the variance. Weights belong to the epsilon that they were
            trained with: 1e-5 in most files, 0 in torchvision's first detectors.
        scale_init: Initial scale.
        dtype: Compute type; the vectors stay float32.
    """

    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., C]` to the same shape in the compute dtype."""

        def vector(name: str, init: Initializer) -> jax.Array:
            shape, key = x.shape[-1:], jax.random.key(0)  # no initial value is random
            value = self.variable("constants", name, init, key, shape, jnp.float32)
            return value.value

        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, bias = vector("scale", self.scale_init), vector("bias", zeros)
        mean, var = vector("mean", zeros), vector("var", ones)
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * factor
        return x.astype(self.dtype) * factor.astype(self.dtype) + offset.astype(
            self.dtype
        )
