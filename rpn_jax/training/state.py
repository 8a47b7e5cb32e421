"""What a training run carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class TrainState(NamedTuple):
    """Everything that a step reads and writes; a pytree, donated to the next step.

    Attributes:
        step: int32 scalar, the number of completed updates.
        params: the whole variables dict; only its collection `params` is trained.
        opt_state: the optimizer's state of `params["params"]`.
        ema: moving average of `params["params"]`, or None.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    ema: Any = None


def create_state(
    params: Any, optimizer: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
    """Start a run from `params`, a variables dict."""
    trained = params["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(trained),
        # A copy: a donated state must not hold one buffer twice.
        ema=jax.tree.map(jnp.array, trained) if ema else None,
    )


def inference_params(state: TrainState) -> Any:
    """Return the variables to evaluate with: the moving average where one is kept."""
    return state.params if state.ema is None else {**state.params, "params": state.ema}
