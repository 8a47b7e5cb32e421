"""The second stage of a detector: from pooled RoIs to class scores and boxes.

R RoIs, P x Q bins, C channels.
"""

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rpn_jax.conventions import BoxInit
from rpn_jax.models.conv import conv2d, widen
from rpn_jax.models.norm import FrozenBatchNorm
from rpn_jax.models.resnet import ResidualBlock, ResNet


class Init(NamedTuple):
    """Initial weights of a fully connected layer of n inputs.

    Attributes:
        kernel: How it is drawn.
        bias: Drawn from U(+-bias / sqrt(n)).
    """

    kernel: nn.initializers.Initializer
    bias: float = 0.0


def _uniform(gain: float) -> nn.initializers.Initializer:
    """Draw from U(+-gain / sqrt(n)), n inputs."""
    return nn.initializers.variance_scaling(gain**2 / 3, "fan_in", "uniform")


_torch, _xavier = Init(_uniform(1.0), bias=1.0), Init(_uniform(math.sqrt(3)))
_normal = nn.initializers.normal
# Of hidden layers, class scores and deltas.
_INITS = {
    "torchvision": (_torch, _torch, _torch),
    "detectron2": (_xavier, Init(_normal(0.01)), Init(_normal(0.001))),
}


class Dense(nn.Module):
    """Fully connected layer on pooled maps or on vectors.

    The kernel of the first kind is stored `[P, Q, C, features]`, as of a convolution
    that covers the whole map: that is how torch's flattened channels come out right.
    """

    features: int
    init_weights: Init
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[R, ...]` to `[R, features]` in the compute dtype."""
        shape = (*x.shape[1:], self.features)
        kernel = self.param("kernel", self.init_weights.kernel, shape, jnp.float32)
        x = x.reshape(x.shape[0], -1).astype(self.dtype)
        limit = self.init_weights.bias / math.sqrt(x.shape[1])
        draw = partial(jax.random.uniform, minval=-limit, maxval=limit)
        bias = self.param("bias", draw, (self.features,), jnp.float32)
        kernel = kernel.reshape(-1, self.features).astype(self.dtype)
        return x @ kernel + bias[None].astype(self.dtype)


class TwoFC(nn.Module):
    """Two fully connected layers, `fc6` and `fc7` (Girshick, Fast R-CNN, 2015).

    Attributes:
        features: Of both.
        box_init: Initial weights, see `RoIConvention`.
        dtype: Compute type.
    """

    features: int = 1024
    box_init: BoxInit = "torchvision"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[R, P, Q, C]` to `[R, features]`."""
        hidden, *_ = _INITS[self.box_init]
        for name in ("fc6", "fc7"):
            x = nn.relu(Dense(self.features, hidden, self.dtype, name=name)(x))
        return x


class ConvFC(nn.Module):
    """Convolutions with frozen batch norm and one fully connected layer.

    The box head of torchvision's v2 (Li et al., Benchmarking Detection Transfer
    Learning with Vision Transformers, 2021).

    Attributes:
        convs: Number of 3 x 3 convolutions, each as wide as the maps.
        features: Of the fully connected layer.
        box_init: Its initial weights, see `RoIConvention`.
        dtype: Compute type.
    """

    convs: int = 4
    features: int = 1024
    box_init: BoxInit = "torchvision"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[R, P, Q, C]` to `[R, features]`."""
        for n in range(1, self.convs + 1):
            conv = conv2d(
                x.shape[-1], use_bias=False, dtype=self.dtype, name=f"conv{n}"
            )
            x = nn.relu(FrozenBatchNorm(dtype=self.dtype, name=f"norm{n}")(conv(x)))
        hidden, *_ = _INITS[self.box_init]
        return nn.relu(Dense(self.features, hidden, self.dtype, name="fc")(x))


class Res5(nn.Module):
    """The last stage of a ResNet on each RoI, and the mean over its cells.

    The second stage of C4 models (He et al., 2015, appendix A).

    Attributes:
        trunk: The ResNet that the stage belongs to.
        dtype: Compute type.
    """

    trunk: ResNet
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[R, P, Q, C]` to `[R, 2048]`, the output of res5 averaged."""
        for n, options in enumerate(self.trunk.blocks(5)):
            x = ResidualBlock(**options, dtype=self.dtype, name=f"res5_{n}")(x)
        return x.mean(axis=(1, 2))


class BoxPredictor(nn.Module):
    """Class scores and class-aware box deltas of each RoI.

    Attributes:
        scores: Number of class scores, the background's among them.
        boxes: Number of boxes a RoI.
        box_init: Initial weights, see `RoIConvention`.
        dtype: Compute type; outputs are float32.
    """

    scores: int
    boxes: int
    box_init: BoxInit = "torchvision"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map `[R, features]` to scores `[R, scores]` and deltas `[R, boxes, 4]`."""
        _, for_scores, for_deltas = _INITS[self.box_init]

        def predict(features: int, init: Init, name: str) -> jax.Array:
            return widen(Dense(features, init, self.dtype, name=name)(x))

        scores = predict(self.scores, for_scores, "cls_score")
        deltas = predict(4 * self.boxes, for_deltas, "bbox_pred")
        return scores, deltas.reshape(*deltas.shape[:-1], self.boxes, 4)
