import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rpn_jax.models import frozen_mask, stop_frozen
from rpn_jax.training.optimizer import OptimizerConfig, make_optimizer

PARAMS = {
    "backbone": {"res2_0": {"kernel": jnp.ones(3)}, "res3_0": {"kernel": jnp.ones(2)}},
    "rpn": {"rpn_conv": {"kernel": jnp.ones(4)}},
}


def test_beginnings_of_paths_are_frozen():
    mask = frozen_mask(PARAMS, ["backbone/res2", "rpn"])
    assert mask["backbone"]["res2_0"]["kernel"] and mask["rpn"]["rpn_conv"]["kernel"]
    assert not mask["backbone"]["res3_0"]["kernel"]


def test_a_beginning_of_nothing_is_named():
    with pytest.raises(ValueError, match=r"'backbone/res4'.*backbone/res2_0"):
        frozen_mask(PARAMS, ["backbone/res2", "backbone/res4"])


def test_no_gradient_reaches_what_is_frozen():
    def loss(params):
        variables = stop_frozen({"params": params}, ["backbone/res2"])
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(variables))

    grads = jax.grad(loss)(PARAMS)
    np.testing.assert_array_equal(grads["backbone"]["res2_0"]["kernel"], 0)
    np.testing.assert_array_equal(grads["backbone"]["res3_0"]["kernel"], 2)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_nothing_moves_what_is_frozen_not_even_decay(name):
    config = OptimizerConfig(name=name, weight_decay=0.5, warmup=1)
    optimizer = make_optimizer(config, lr=0.1, steps=10, freeze=["backbone/res2"])
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    after = optax.apply_updates(PARAMS, updates)
    np.testing.assert_array_equal(after["backbone"]["res2_0"]["kernel"], 1)
    assert (after["backbone"]["res3_0"]["kernel"] < 1).all()
    assert (after["rpn"]["rpn_conv"]["kernel"] < 1).all()
