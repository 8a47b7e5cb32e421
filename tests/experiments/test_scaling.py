import json
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import scaling
from experiments.config import TrainConfig, UsageError
from experiments.scaling_report import collective_table, markdown, seconds
from rpn_jax.training.mesh import replicated

TALK = [
    {"kind": "all-reduce", "count": 2, "bytes": 1000, "looped": False},
    {"kind": "all-gather", "count": 3, "bytes": 500, "looped": True},
    {"kind": "collective-permute", "count": 1, "bytes": 100, "looped": False},
]
STEP = {
    "devices": 8,
    "batch": 8,
    "size": [64, 32],
    "compile": 2.0,
    "alone": 40.0,
    "together": 30.0,
    "arguments": 2**20,
    "temporaries": 2**21,
    "collectives": TALK,
}
INPUT = {"threads": 4, "workers": 0, "rate": 200.0}


class Data:
    """Batches without end, of two sizes in turn."""

    class Batch(NamedTuple):
        images: np.ndarray

    def __init__(self):
        self.read, self.closed = 0, False

    def __next__(self):
        self.read += 1
        return self.Batch(np.ones((8, 4 + 2 * (self.read % 2), 4, 3), np.float32))

    def close(self):
        self.closed = True


def test_the_step_is_timed_and_its_collectives_read(monkeypatch):
    data = Data()

    def setup(config, mesh):
        assert config.workdir.is_dir()  # one that does not stay
        whole = replicated(mesh)

        def step(state, batch):
            grad = jax.grad(lambda w: ((batch.images @ w) ** 2).sum())(state)
            return state - 1e-9 * grad, {"loss": grad.sum()}

        jitted = jax.jit(step, donate_argnums=0, out_shardings=(whole, whole))
        state = jax.device_put(jnp.ones((3, 5)), whole)
        run = {"mesh": mesh, "state": state, "train_step": jitted}
        return SimpleNamespace(**run, batches=lambda start: data)

    monkeypatch.setattr(scaling, "setup", setup)
    found = scaling.measure_steps(TrainConfig(batch=8), 4, 3)
    assert (found.devices, found.batch, found.size) == (4, 8, (6, 4))
    assert found.alone > 0 and found.together > 0 and found.temporaries >= 0
    (talk,) = found.collectives
    assert (talk.kind, talk.bytes) == ("all-reduce", 3 * 5 * 4)
    assert data.closed


def test_more_devices_than_there_are():
    with pytest.raises(UsageError, match="--devices 9: there are 8"):
        scaling.check_devices(9)


def test_time_on_the_wire():
    wanted = (2 * 7 / 8 * 1000 + 7 / 8 * 500 + 100) / 1e6
    assert seconds(TALK, 8, 1e6) == pytest.approx(wanted)
    assert seconds([], 8, 1e6) == 0


def test_a_loop_of_unknown_length_shows():
    assert "| 8 | all-gather | 3 or more | 500 |" in collective_table([STEP])


@pytest.mark.parametrize(("load", "busy"), [("0.10 1 1", False), ("2.00 1 1", True)])
def test_the_page_says_whether_the_machine_was_busy(load, busy):
    about = {"date": "2026-01-01", "load at the start": load}
    entry = {"about": about, "input": [INPUT], "step": [STEP]}
    page = markdown({"shapes": entry})
    assert ("other work was running" in page) == busy
    assert "| 8 | 8 | 64 x 32 | 40.0 | 30.0 | 2.0 | 1.0 | 2.0 |" in page
    assert "| none | 4 | 200.0 |" in page and "not measured" in page


def test_each_config_keeps_its_entry(tmp_path):
    about = {"load at the start": "0.10 1 1"}
    for name, rate in (("shapes", 1.0), ("bccd", 2.0), ("shapes", 3.0)):
        row = {**INPUT, "rate": rate}
        scaling.write(tmp_path, name, about, [row], [STEP])
    entries = json.loads((tmp_path / "scaling.json").read_text())
    rates = {name: e["input"][0]["rate"] for name, e in entries.items()}
    assert rates == {"shapes": 3.0, "bccd": 2.0}
    page = (tmp_path / "scaling.md").read_text()
    assert page == markdown(entries) and "## `bccd`" in page


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "WAYS", ((2, 0),))
    options = (
        "shapes --devices 2 --steps 2 --batch 2 --data.train 16 --data.val 4 "
        "--data.resize.max-size 64 --model.head-channels 8"
    ).split()
    assert scaling.main([*options, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| none | 2 | " in out and "| 2 | all-reduce | " in out
    entry = json.loads((tmp_path / "scaling.json").read_text())["shapes"]
    assert entry["step"][0]["devices"] == 2
