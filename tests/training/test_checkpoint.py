import shutil

import jax
import numpy as np
import pytest

from rpn_jax.training.checkpoint import Checkpoints
from rpn_jax.training.mesh import data_mesh, replicated
from tests.training.test_step import batches, setup


def run(folder, steps, *, until=None, devices=1, ema=0.0):
    """Train to `steps`, saving every 2, resuming if `folder` holds a run."""
    state, step, mesh = setup(devices, ema)
    data = batches(mesh)
    with Checkpoints(folder) as checkpoints:
        position = 0
        if checkpoints.last is not None:
            state, position = checkpoints.restore(state)
        for _ in range(position):
            next(data)
        for n in range(int(state.step) + 1, (until or steps) + 1):
            state, _ = step(state, next(data))
            if n % 2 == 0:
                checkpoints.save(state, n)
    return state


def leaves(state):
    return [np.asarray(x) for x in jax.tree.leaves(state)]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_ends_bit_for_bit_as_an_undisturbed_one(tmp_path, ema):
    whole = run(tmp_path / "a", 7, ema=ema)
    run(tmp_path / "b", 7, until=5, ema=ema)
    resumed = run(tmp_path / "b", 7, ema=ema)
    for x, y in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_state_restores_onto_another_number_of_devices(tmp_path):
    saved = run(tmp_path, 2, devices=8)
    like, _, mesh = setup(2)
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(like)
    for x, y in zip(leaves(saved), leaves(restored), strict=True):
        np.testing.assert_array_equal(x, y)
    for x in jax.tree.leaves(restored):
        assert x.sharding.is_equivalent_to(replicated(mesh), x.ndim)


def test_last_and_best_are_kept(tmp_path):
    state, step, mesh = setup()
    data = batches(mesh)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last is None and checkpoints.best is None
        for figure in (None, 0.5, 0.3, None, None):
            state, _ = step(state, next(data))
            metrics = None if figure is None else {"AR@100": figure}
            checkpoints.save(state, {}, metrics)
        checkpoints.wait()
        assert (checkpoints.last, checkpoints.best) == (5, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "5"]


def test_weights_load_without_the_rest(tmp_path):
    state, step, mesh = setup(ema=0.5)
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = step(state, next(batches(mesh)))
        checkpoints.save(state, {"any": [1, "position"]})
        like = jax.eval_shape(lambda: state.params)
        plain = checkpoints.restore_params(like, step=1)
        averaged = checkpoints.restore_params(like, step=1, ema=True)
        _, position = checkpoints.restore(state)
    np.testing.assert_array_equal(plain["params"]["w"], state.params["params"]["w"])
    np.testing.assert_array_equal(averaged["params"]["w"], state.ema["w"])
    assert position == {"any": [1, "position"]}


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path):
    run(tmp_path, 4)
    half = tmp_path / "6.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "4", half)
    (half / "commit_success.txt").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last == 4
    run(tmp_path, 6)
    assert [p.name for p in tmp_path.iterdir()] == ["6"]


def test_mesh_takes_so_many_devices():
    assert data_mesh(4).size == 4 and data_mesh().size == 8
