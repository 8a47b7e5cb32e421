import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpn_jax.training.mesh import data_mesh, put_batch, replicated
from rpn_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from rpn_jax.training.state import create_state, inference_params
from rpn_jax.training.step import make_train_step
from tests.training import fake


def setup(devices=1, ema=0.0, loss=fake.loss):
    mesh = data_mesh(devices)
    config = OptimizerConfig(warmup=2)
    optimizer = make_optimizer(config, lr=0.1, steps=10)
    state = create_state(fake.init(jax.random.key(0)), optimizer, ema=ema > 0)
    step = make_train_step(
        loss,
        optimizer,
        key=jax.random.key(1),
        mesh=mesh,
        rate=learning_rate(config, lr=0.1, steps=10),
        ema=ema,
    )
    return jax.device_put(state, replicated(mesh)), step, mesh


def batches(mesh, size=(8, 8), seed=0):
    rng = np.random.default_rng(seed)
    while True:
        images = rng.integers(0, 255, (8, *size, 3), dtype=np.uint8)
        yield put_batch(mesh, {"images": images})


def test_loss_falls_and_metrics_are_complete():
    state, step, mesh = setup()
    data = batches(mesh)
    losses = []
    for _ in range(10):
        state, metrics = step(state, next(data))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] / 2
    assert set(metrics) == {"loss", "loss_objectness", "loss_box", "grad_norm", "lr"}
    assert int(state.step) == 10


def test_frozen_collections_stay_out_of_the_optimizer():
    state, step, mesh = setup()
    before = np.asarray(state.params["constants"]["c"])
    state, _ = step(state, next(batches(mesh)))
    np.testing.assert_array_equal(state.params["constants"]["c"], before)
    shapes = {x.shape for x in jax.tree.leaves(state.opt_state)}
    assert (3,) not in shapes


def test_one_compilation_a_bucket():
    state, step, mesh = setup()
    for size in [(8, 8), (8, 16)] * 3:
        state, _ = step(state, next(batches(mesh, size)))
    assert step._cache_size() == 2


def test_state_is_donated():
    state, step, mesh = setup()
    weight = state.params["params"]["w"]
    step(state, next(batches(mesh)))
    assert weight.is_deleted()


def test_the_draw_depends_on_the_step_alone():
    state, step, mesh = setup()
    batch = next(batches(mesh))
    copy = jax.tree.map(jnp.array, state)
    later = copy._replace(step=copy.step + 1)
    _, first = step(state, batch)
    _, again = step(jax.tree.map(jnp.array, later), batch)
    _, third = step(later, batch)
    assert float(first["loss_box"]) != float(again["loss_box"])
    assert float(third["loss_box"]) == float(again["loss_box"])


@pytest.mark.parametrize("devices", [2, 8])
def test_result_does_not_depend_on_the_number_of_devices(devices):
    results = []
    for n in (1, devices):
        state, step, mesh = setup(n)
        data = batches(mesh)
        for _ in range(3):
            state, _ = step(state, next(data))
        results.append(np.asarray(state.params["params"]["w"]))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_moving_average_follows_and_is_what_inference_uses():
    state, step, mesh = setup(ema=0.5)
    first = np.asarray(state.params["params"]["w"])
    state, _ = step(state, next(batches(mesh)))
    new = np.asarray(state.params["params"]["w"])
    # The first decay is 1/10, however slow the average becomes.
    wanted = 0.1 * first + 0.9 * new
    used = inference_params(state)
    np.testing.assert_allclose(used["params"]["w"], wanted, rtol=1e-5)
    np.testing.assert_array_equal(
        used["constants"]["c"], state.params["constants"]["c"]
    )
