"""The RPN head and the one function that flattens its outputs.

B batch, H W cells of a map, A anchors a cell, C channels. Maps are NHWC.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rpn_jax.models.conv import Conv1x1, conv2d, widen

_init = nn.initializers.normal(0.01)


class RPNHead(nn.Module):
    """Score each anchor and predict its four offsets, from one feature map.

    A 3 x 3 convolution with ReLU (`rpn_conv`), then two sister 1 x 1 convolutions
    (`rpn_cls_score`, `rpn_bbox_pred`). Call the same instance on every level to
    share the weights. Weights start normal(0, 0.01), biases 0 (Ren et al., 2015).

    Attributes:
        num_anchors: Anchors a cell, A.
        channels: Channels of `rpn_conv`; None takes the map's.
        logits_per_anchor: 1 (sigmoid) or 2 (softmax over background, foreground).
        num_convs: Number of 3 x 3 convolutions; the later are `rpn_conv_1` and on.
        dtype: Compute type; parameters and outputs stay float32.
    """

    num_anchors: int
    channels: int | None = None
    logits_per_anchor: int = 1
    num_convs: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Compute the head's outputs on one map.

        Args:
            x: `[B, H, W, C]` features.

        Returns:
            Scores `[B, H, W, A * logits_per_anchor]` and deltas `[B, H, W, 4 A]`,
            float32. Channels run anchor by anchor: logit k of anchor a is channel
            `a * logits_per_anchor + k`, delta k is channel `4 a + k`.
        """
        if self.logits_per_anchor not in (1, 2):
            raise ValueError(
                f"logits_per_anchor must be 1 or 2, got {self.logits_per_anchor}"
            )
        channels = x.shape[-1] if self.channels is None else self.channels
        for n in range(self.num_convs):
            name = f"rpn_conv_{n}" if n else "rpn_conv"
            conv = conv2d(channels, kernel_init=_init, dtype=self.dtype, name=name)
            x = nn.relu(conv(x))

        def predict(features: int, name: str) -> jax.Array:
            conv = Conv1x1(features, kernel_init=_init, dtype=self.dtype, name=name)
            return widen(conv(x))

        scores = predict(self.num_anchors * self.logits_per_anchor, "rpn_cls_score")
        return scores, predict(self.num_anchors * 4, "rpn_bbox_pred")


def flatten_levels(
    scores: Sequence[jax.Array],
    deltas: Sequence[jax.Array],
    *,
    logits_per_anchor: int = 1,
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Flatten head outputs to one row an anchor, in the order rows, columns, anchors.

    Args:
        scores: Per level `[B, H, W, A * logits_per_anchor]`.
        deltas: Per level `[B, H, W, 4 A]`.
        logits_per_anchor: 1 or 2.

    Returns:
        Per level the logits, `[B, H * W * A]`, or `[B, H * W * A, 2]` with two
        logits an anchor (background, foreground), and the deltas
        `[B, H * W * A, 4]`.

    Raises:
        ValueError: If the numbers of levels differ.

    Example:
        >>> logits, offsets = flatten_levels([jnp.zeros((2, 4, 5, 3))],
        ...                                  [jnp.zeros((2, 4, 5, 12))])
        >>> logits[0].shape, offsets[0].shape
        ((2, 60), (2, 60, 4))
    """
    if len(scores) != len(deltas):
        raise ValueError(
            f"scores and deltas must have the same number of levels, got "
            f"{len(scores)} and {len(deltas)}"
        )
    shape = (-1,) if logits_per_anchor == 1 else (-1, logits_per_anchor)
    logits = tuple(s.reshape(s.shape[0], *shape) for s in scores)
    return logits, tuple(d.reshape(d.shape[0], -1, 4) for d in deltas)
