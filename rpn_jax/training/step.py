"""The compiled training step."""

import contextlib
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
    shardings: Any = None,
    rate: optax.Schedule | None = None,
    ema: float = 0.0,
    accumulate: int = 1,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Compile `step(state, batch) -> (state, metrics)`; `state` is donated.

    Step `n` draws from `fold_in(key, n)`, so that a resumed run draws what an
    undisturbed one would have drawn.

    Args:
        loss: `loss(key, params, batch) -> (scalar, metrics)`, as `RPN.loss`.
        optimizer: an optax transformation; it sees `params["params"]` alone.
        key: the run's base key.
        mesh: the mesh that batches are split over.
        shardings: how the state lies on it, from `state_shardings`; None: whole on
            each device. Split parameters are gathered when the step begins, and each
            device updates its share.
        rate: the schedule, for the metric `lr`; the optimizer has its own.
        ema: decay of the moving average, used where the state holds one.
        accumulate: parts that a batch is taken in, one after the other, to save
            memory; each has images of every device. Loss, metrics and gradient are
            the means of those of the parts.

    Returns:
        The jitted step. Its metrics are those of `loss`, `grad_norm` (the global norm
        of the gradient before clipping) and `lr`.
    """
    whole = replicated(mesh)

    def use_mesh():
        """Let each device match, propose and pool for its own images."""
        if mesh.size == 1:
            return contextlib.nullcontext()
        return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)

    constrain = jax.lax.with_sharding_constraint

    def gradient(key, params, batch):
        def objective(trained):
            return loss(key, {**params, "params": trained}, batch)

        (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(
            params["params"]
        )
        return {**metrics, "loss": value}, grads

    def mean_gradient(key, params, batch):
        def part(n):
            # Every accumulate-th image: each device keeps the images that it has.
            images = jax.tree.map(lambda x: x[:, n], parts)
            return gradient(jax.random.fold_in(key, n), params, images)

        def add(total, n):
            return jax.tree.map(jnp.add, total, part(n)), None

        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]), batch)
        shapes = jax.eval_shape(part, 0)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, jnp.arange(accumulate))
        return jax.tree.map(lambda x: x / accumulate, total)

    def train_step(state: TrainState, batch: Any):
        key_now = jax.random.fold_in(key, state.step)
        params = state.params if shardings is None else constrain(state.params, whole)
        find = gradient if accumulate == 1 else mean_gradient
        with use_mesh():
            metrics, grads = find(key_now, params, batch)
        if shardings is not None:
            grads = constrain(grads, shardings.params["params"])
        trained = state.params["params"]
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        average = state.ema
        if average is not None:
            # A young average follows closely, or it would remember the random start.
            decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
            average = optax.incremental_update(trained, average, 1 - decay)
        metrics["grad_norm"] = optax.tree_utils.tree_norm(grads)
        if rate is not None:
            metrics["lr"] = rate(state.step)
        params = {**state.params, "params": trained}
        return TrainState(state.step + 1, params, opt_state, average), metrics

    outputs = (whole if shardings is None else shardings, whole)
    return jax.jit(train_step, donate_argnums=0, out_shardings=outputs)
