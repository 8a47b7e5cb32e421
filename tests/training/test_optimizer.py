import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer


def test_cosine_follows_its_formula():
    rate = learning_rate(OptimizerConfig(warmup=50), lr=0.01, steps=600)
    for step in (0, 1, 48, 49, 50, 300, 599):
        wanted = (
            0.01
            * min(1, (step + 1) / 50)
            * (0.5 * (1 + math.cos(math.pi * step / 600)))
        )
        assert float(rate(step)) == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_steps_fall_at_their_milestones():
    config = OptimizerConfig(schedule="steps", warmup=0)
    rate = learning_rate(config, lr=1.0, steps=90)
    found = [round(float(rate(s)), 6) for s in (0, 59, 60, 79, 80, 89)]
    assert found == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_constant_warms_up():
    config = OptimizerConfig(schedule="constant", warmup=4)
    rate = learning_rate(config, lr=1.0, steps=10)
    assert [float(rate(s)) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_sgd_is_that_of_the_peers_recipe():
    """Clip the raw gradient, add decay, accumulate, step: written out in NumPy."""
    config = OptimizerConfig(clip_norm=10.0, weight_decay=0.1, momentum=0.9, warmup=3)
    optimizer = make_optimizer(config, lr=0.5, steps=8)
    rng = np.random.default_rng(0)
    p = {"a": rng.normal(size=5).astype("f4"), "b": np.float32(2.0)}
    params = jax.tree.map(jnp.asarray, p)
    state = optimizer.init(params)
    buffer = {"a": np.zeros(5), "b": 0.0}
    for step in range(8):
        scale = 20.0 if step % 2 else 0.1  # above and below the norm of 10
        g = {"a": scale * rng.normal(size=5).astype("f4"), "b": np.float32(scale)}
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, g), state, params)
        params = jax.tree.map(jnp.add, params, updates)

        norm = math.sqrt(sum(float(np.sum(np.square(x))) for x in g.values()))
        lr = 0.5 * min(1, (step + 1) / 3) * 0.5 * (1 + math.cos(math.pi * step / 8))
        for k in p:
            clipped = g[k] * min(1.0, 10.0 / (norm + 1e-6))
            buffer[k] = 0.9 * buffer[k] + clipped + 0.1 * p[k]
            p[k] = p[k] - lr * buffer[k]
            np.testing.assert_allclose(params[k], p[k], rtol=2e-5)


def test_adamw_moves_every_parameter_alike():
    optimizer = make_optimizer(
        OptimizerConfig(name="adamw", weight_decay=0.0, warmup=0, schedule="constant"),
        lr=0.1,
        steps=10,
    )
    params = {"a": jnp.ones(2)}
    grads = {"a": jnp.array([1e-3, 1.0])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.1, -0.1], rtol=1e-4)


def test_no_clipping_on_request():
    config = OptimizerConfig(
        clip_norm=0.0, weight_decay=0.0, warmup=0, schedule="constant"
    )
    optimizer = make_optimizer(config, lr=1.0, steps=1)
    params = {"a": jnp.zeros(1)}
    updates, _ = optimizer.update(
        {"a": jnp.full(1, 1e4)}, optimizer.init(params), params
    )
    assert float(updates["a"][0]) == -1e4
