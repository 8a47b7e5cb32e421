"""The compiled training step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rpn_jax.training.mesh import replicated
from rpn_jax.training.state import TrainState

LossFn = Callable[[jax.Array, Any, Any], tuple[jax.Array, dict[str, jax.Array]]]


def make_train_step(
    loss: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    mesh: Mesh,
    rate: optax.Schedule | None = None,
    ema: float = 0.0,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Compile `step(state, batch) -> (state, metrics)`; `state` is donated.

    Step `n` draws from `fold_in(key, n)`, so that a resumed run draws what an
    undisturbed one would have drawn.

    Args:
        loss: `loss(key, params, batch) -> (scalar, metrics)`, as `RPN.loss`.
        optimizer: an optax transformation; it sees `params["params"]` alone.
        key: the run's base key.
        mesh: the mesh that batches are split over; the state is whole on each device.
        rate: the schedule, for the metric `lr`; the optimizer has its own.
        ema: decay of the moving average, used where the state holds one.

    Returns:
        The jitted step. Its metrics are those of `loss`, `grad_norm` (the global norm
        of the gradient before clipping) and `lr`.
    """

    def train_step(state: TrainState, batch: Any):
        def objective(trained):
            variables = {**state.params, "params": trained}
            return loss(jax.random.fold_in(key, state.step), variables, batch)

        trained = state.params["params"]
        (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(trained)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        average = state.ema
        if average is not None:
            # A young average follows closely, or it would remember the random start.
            decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
            average = optax.incremental_update(trained, average, 1 - decay)
        norm = optax.tree_utils.tree_norm(grads)
        metrics = {**metrics, "loss": value, "grad_norm": norm}
        if rate is not None:
            metrics["lr"] = rate(state.step)
        params = {**state.params, "params": trained}
        return TrainState(state.step + 1, params, opt_state, average), metrics

    whole = replicated(mesh)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(whole, whole))
