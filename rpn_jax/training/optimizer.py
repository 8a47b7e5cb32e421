"""Optimizers and learning-rate schedules, in the terms of the detection recipes.

`sgd` is the update of the peers' recipes, in their order: clip the raw gradient by its
global norm, add the weight decay to it, accumulate momentum (`m = momentum * m + g`),
subtract `lr * m`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from rpn_jax.models import frozen_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How parameters follow their gradients.

    Attributes:
        name: the update rule.
        momentum: SGD momentum (AdamW uses 0.9 and 0.999).
        weight_decay: L2 penalty on every parameter (AdamW: decoupled).
        clip_norm: largest global norm of the raw gradient; 0 turns clipping off.
        warmup: steps of linear warm-up; the first step has rate `lr / warmup`.
        schedule: `cosine` falls to 0 at the last step; `steps` multiplies by `gamma`
            at each of `milestones`.
        milestones: shares of the run, as in detectron2's 60k and 80k of 90k.
        gamma: factor at a milestone.
        ema: decay of the moving average of the parameters; 0 keeps none. With an
            average, evaluation and inference use it.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 10.0
    warmup: int = 50
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    gamma: float = 0.1
    ema: float = 0.0


def learning_rate(config: OptimizerConfig, *, lr: float, steps: int) -> optax.Schedule:
    """Build the schedule `step -> rate`; `step` counts completed updates, from 0.

    Cosine: `lr * min(1, (step + 1) / warmup) * (1 + cos(pi * step / steps)) / 2`.

    Example:
        >>> rate = learning_rate(OptimizerConfig(warmup=4), lr=0.1, steps=100)
        >>> print(f"{rate(0):.3f} {rate(50):.3f} {rate(100):.3f}")
        0.025 0.050 0.000
    """

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        factor = jnp.minimum(1.0, (step + 1) / max(config.warmup, 1))
        if config.schedule == "cosine":
            factor *= 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1.0)))
        elif config.schedule == "steps":
            passed = sum((step >= share * steps) for share in config.milestones)
            factor *= config.gamma ** jnp.asarray(passed, jnp.float32)
        return lr * factor

    return rate


def make_optimizer(
    config: OptimizerConfig, *, lr: float, steps: int, freeze: Sequence[str] = ()
) -> optax.GradientTransformation:
    """Build the optax transformation that `config` describes.

    Args:
        config: how parameters follow their gradients.
        lr: highest learning rate.
        steps: updates of the whole run.
        freeze: beginnings of the paths of parameters that stay as they are, weight
            decay included.
    """
    rate = learning_rate(config, lr=lr, steps=steps)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "adamw":
        parts += [optax.adamw(rate, weight_decay=config.weight_decay)]
    else:
        parts += [
            optax.add_decayed_weights(config.weight_decay),
            optax.trace(config.momentum),
            optax.scale_by_learning_rate(rate),
        ]
    optimizer = optax.chain(*parts)
    if not freeze:
        return optimizer

    def labels(params):
        mask = frozen_mask(params, freeze)
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", mask)

    return optax.partition(
        {"trained": optimizer, "frozen": optax.set_to_zero()}, labels
    )
