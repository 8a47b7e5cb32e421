import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from rpn_jax.faster_rcnn import FasterRCNNConfig
from rpn_jax.rpn import RPNConfig
from rpn_jax.training.checkpoint import CheckpointError, Checkpoints, best_figure
from rpn_jax.training.mesh import data_mesh, replicated
from tests.training.test_step import batches, setup


def run(folder, steps, *, until=None, devices=1, ema=0.0):
    """Train to `steps`, saving every 2, resuming if `folder` holds a run."""
    state, step, mesh = setup(devices, ema)
    data = batches(mesh)
    with Checkpoints(folder) as checkpoints:
        if checkpoints.last is not None:
            state = checkpoints.restore(state)
        for _ in range(int(state.step)):
            next(data)
        for n in range(int(state.step) + 1, (until or steps) + 1):
            state, _ = step(state, next(data))
            if n % 2 == 0:
                checkpoints.save(state)
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
        restored = checkpoints.restore(like)
    for x, y in zip(leaves(saved), leaves(restored), strict=True):
        np.testing.assert_array_equal(x, y)
    for x in jax.tree.leaves(restored):
        assert x.sharding.is_equivalent_to(replicated(mesh), x.ndim)


def test_the_last_two_and_the_best_are_kept(tmp_path):
    state, step, mesh = setup()
    data = batches(mesh)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last is None and checkpoints.best is None
        for figure in (None, 0.5, 0.3, None, None):
            state, _ = step(state, next(data))
            metrics = None if figure is None else {"AR@100": figure}
            checkpoints.save(state, metrics)
        checkpoints.wait()
        assert (checkpoints.last, checkpoints.best) == (5, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4", "5"]


def test_a_detector_is_best_by_its_precision(tmp_path):
    state, step, mesh = setup()
    data, detector = batches(mesh), FasterRCNNConfig(rpn=RPNConfig())
    with Checkpoints(tmp_path, metric=best_figure(detector)) as checkpoints:
        for recall, precision in ((0.5, 0.1), (0.4, 0.3), (0.4, 0.2), (0.4, 0.1)):
            state, _ = step(state, next(data))
            checkpoints.save(state, {"AR@100": recall, "AP": precision})
        checkpoints.wait()
        assert checkpoints.best == 2
    assert best_figure(detector.rpn) == "AR@100"


def test_weights_load_without_the_rest(tmp_path):
    state, step, mesh = setup(ema=0.5)
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = step(state, next(batches(mesh)))
        checkpoints.save(state)
        like = jax.eval_shape(lambda: state.params)
        plain = checkpoints.restore_params(like, step=1)
        averaged = checkpoints.restore_params(like, step=1, ema=True)
    np.testing.assert_array_equal(plain["params"]["w"], state.params["params"]["w"])
    np.testing.assert_array_equal(averaged["params"]["w"], state.ema["w"])


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path):
    run(tmp_path, 4)
    half = tmp_path / "6.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "4", half)
    (half / "commit_success.txt").unlink()
    with Checkpoints(tmp_path, read_only=True):
        assert half.exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last == 4
        assert not half.exists()
    run(tmp_path, 6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "6"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run saved after steps 2 and 4, and its states then."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    states = {2: leaves(run(folder, 2)), 4: leaves(run(folder, 4))}
    return folder, states


def restore(folder):
    like, _, _ = setup()
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(like)


def damage(file, how):
    if how == "deleted":
        file.unlink()
    elif how == "emptied":
        file.write_bytes(b"")
    else:
        file.write_bytes(file.read_bytes()[:-3])


# Orbax's unfinished tasks may complain when they are collected, much later.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "emptied", "cut"])
def test_a_damaged_checkpoint_is_never_taken_for_a_whole_one(saved, how, tmp_path):
    whole, states = saved
    files = [p.relative_to(whole) for p in (whole / "4").rglob("*") if p.is_file()]
    assert len(files) > 10
    refused = 0
    for n, file in enumerate(files):
        folder = tmp_path / str(n)
        shutil.copytree(whole, folder)
        damage(folder / file, how)
        state = restore(folder)
        # Not every file is needed; what is restored is right in any case.
        refused += int(state.step) == 2
        for x, y in zip(leaves(state), states[int(state.step)], strict=True):
            np.testing.assert_array_equal(x, y)
    assert refused > 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named_and_put_aside(saved, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved[0], folder)
    shutil.rmtree(folder / "4" / "params" / "d")
    state = restore(folder)
    assert int(state.step) == 2
    out = capsys.readouterr().out
    assert f"{folder / '4'} is damaged: " in out and len(out.splitlines()) == 1
    (aside,) = (tmp_path / "checkpoints_damaged").iterdir()
    assert aside.name.startswith("4-")
    whole = run(tmp_path / "other", 6)
    again = run(folder, 6)  # step 4 is saved anew
    for x, y in zip(leaves(whole), leaves(again), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_a_whole_checkpoint_nothing_is_restored(saved, tmp_path, capsys):
    shutil.copytree(saved[0], tmp_path, dirs_exist_ok=True)
    for step in ("2", "4"):
        shutil.rmtree(tmp_path / step / "params" / "d")
    with pytest.raises(CheckpointError, match="no checkpoint that is whole; remove it"):
        restore(tmp_path)
    assert len(capsys.readouterr().out.splitlines()) == 2
    params = setup()[0].params
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="4 cannot be read"):
            checkpoints.restore_params(params, step=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4"]


FULL = """
import resource, signal, sys
import jax, numpy as np
from rpn_jax.training.checkpoint import CheckpointError, Checkpoints
from rpn_jax.training.state import TrainState

def state(step, size):
    params = {"params": {"w": values(size)}}
    return TrainState(jax.numpy.int32(step), params, {"momentum": values(size)})

def values(size):
    return jax.random.normal(jax.random.key(0), (size,))

try:
    with Checkpoints(sys.argv[1]) as checkpoints:
        checkpoints.save(state(1, 10))
        checkpoints.wait()
        # The disk takes no more: a file may not grow beyond this.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        checkpoints.save(state(2, 1_000_000))
        checkpoints.wait()
except CheckpointError as error:
    print(error)
"""


def test_a_full_disk_stops_with_a_sentence_and_the_last_checkpoint_stays(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.match(
        f"a checkpoint could not be written to {tmp_path}; that of step 1 is whole: "
        ".*File too large",
        done.stdout,
    )
    assert len(done.stdout.splitlines()) == 1 and "Traceback" not in done.stderr
    assert (tmp_path / "1" / "commit_success.txt").exists()


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(OSError, match="/proc/rpn_jax"):
        Checkpoints("/proc/rpn_jax")


def test_mesh_takes_so_many_devices():
    assert data_mesh(4).size == 4 and data_mesh().size == 8
