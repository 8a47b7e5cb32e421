"""The same training whatever the number of devices and how the state lies on them."""

import jax
import numpy as np
import pytest

from rpn_jax.data import Resize, ShapesSource, make_dataset
from rpn_jax.faster_rcnn import FasterRCNNConfig, make_network
from rpn_jax.rpn import RPNConfig
from rpn_jax.training.mesh import data_mesh, gather, put_batch, state_shardings
from rpn_jax.training.optimizer import OptimizerConfig, make_optimizer
from rpn_jax.training.state import create_state
from rpn_jax.training.step import make_train_step

SIZE = 64


def network(dtype="float32", detector=False):
    config = RPNConfig(
        backbone="small_resnet", sizes=((16.0, 32.0),), head_channels=8, dtype=dtype
    )
    if detector:
        classes = ShapesSource(1, seed=0, size=SIZE).classes
        config = FasterRCNNConfig(rpn=config, classes=classes, box_features=16)
    return make_network(config)


def train(model, devices, steps, *, fsdp=False, accumulate=1, dtype="float32"):
    """Return the losses of `steps` steps, the final state and the compiled program."""
    mesh = data_mesh(devices)
    optimizer = make_optimizer(OptimizerConfig(warmup=5), lr=0.02, steps=50)
    params = model.init(jax.random.key(0), image_size=(SIZE, SIZE))
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    state = create_state(params, optimizer)
    shardings = state_shardings(mesh, state, fsdp=fsdp)
    state = jax.device_put(state, shardings)
    step = make_train_step(
        model.loss,
        optimizer,
        key=jax.random.key(1),
        mesh=mesh,
        shardings=shardings if fsdp else None,
        accumulate=accumulate,
    )
    data = make_dataset(
        ShapesSource(32, seed=0, size=SIZE),
        batch=8,
        buckets=((SIZE, SIZE),),
        max_boxes=20,
        resize=Resize(max_size=SIZE),
    )
    losses = []
    for _ in range(steps):
        batch = put_batch(mesh, next(data))
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    data.close()
    return np.array(losses), gather(mesh, state), step.lower(state, batch)


def test_fsdp_splits_what_is_large_and_trains_the_same():
    model = network()
    mesh = data_mesh(8)
    params = jax.eval_shape(
        lambda k: model.init(k, image_size=(64, 64)), jax.random.key(0)
    )
    shardings = state_shardings(mesh, params, fsdp=True)
    for x, sharding in zip(
        jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True
    ):
        share = np.prod(sharding.shard_shape(x.shape)) / x.size
        assert share == (1 / 8 if x.size >= 2**12 else 1)
    whole, state, _ = train(model, 8, 3)
    split, other, lowered = train(model, 8, 3, fsdp=True)
    np.testing.assert_allclose(split, whole, rtol=1e-6)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_their_mean():
    model = network()
    losses, _, _ = train(model, 1, 2, accumulate=2)
    again, _, _ = train(model, 4, 2, accumulate=2, fsdp=True)
    np.testing.assert_allclose(again, losses, rtol=1e-6)
    # Each part draws its own sample: near the whole batch's loss, and not equal to it.
    whole, _, _ = train(model, 1, 1)
    assert 0 < abs(losses[0] - whole[0]) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("detector", [False, True])
def test_loss_does_not_depend_on_the_number_of_devices(detector):
    model = network(detector=detector)
    alone, _, _ = train(model, 1, 50)
    assert alone[-10:].mean() < alone[:10].mean()
    for devices in (2, 4, 8):
        losses, _, _ = train(model, devices, 50)
        np.testing.assert_allclose(losses[0], alone[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(losses[49], alone[49], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_with_the_network_in_float64_nothing_but_roundings_is_left():
    with jax.enable_x64(True):
        model = network("float64")
        alone, _, _ = train(model, 1, 50, dtype="float64")
        for devices, fsdp in ((2, False), (4, True), (8, False)):
            losses, _, _ = train(model, devices, 50, fsdp=fsdp, dtype="float64")
            np.testing.assert_allclose(losses, alone, rtol=0, atol=1e-9)
