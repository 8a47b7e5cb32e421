"""Several processes on this machine, which stand for several hosts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from rpn_jax.pretrained import load_params_npz
from rpn_jax.training.hosts import HostsConfig, join_hosts
from rpn_jax.training.metrics import read_metrics

TRAIN = (
    "shapes --steps 6 --batch 4 --lr 0.02 --data.train 16 --data.val 5 "
    "--data.resize.max-size 64 --data.max-boxes 20 --model.head-channels 8 "
    "--model.convention.proposals.test-pre-nms 50 "
    "--model.convention.proposals.test-post-nms 20 --save-every 2 --eval.batch 2"
).split()


@contextmanager
def started(count, script, *arguments, devices=1):
    """Start `count` processes of one run, and end them whatever happens."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    cache = jax.config.values["jax_compilation_cache_dir"]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    hosts = f"--hosts.coordinator localhost:{port} --hosts.count {count}".split()
    if count == 1:
        hosts = ["--hosts.join", "off"]
    processes = []
    try:
        for index in range(count):
            own = ["--hosts.index", str(index)] if count > 1 else []
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", f"experiments.{script}"]
                    + [*map(str, arguments), *hosts, *own],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def run(count, script, *arguments, devices=1):
    """Run to the end; return the exit codes and what was printed."""
    with started(count, script, *arguments, devices=devices) as processes:
        outputs = [process.communicate(timeout=300) for process in processes]
        codes = [process.returncode for process in processes]
    return codes, [out for out, _ in outputs], [err for _, err in outputs]


def losses(folder):
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    codes, _, errors = run(1, "train", *TRAIN, "--workdir", folder)
    assert codes == [0], errors
    return folder


def assert_same_training(folder, other):
    np.testing.assert_allclose(losses(folder), losses(other), rtol=1e-5)
    ours, theirs = (
        jax.tree.leaves(load_params_npz(f / "weights.npz")[0]) for f in (folder, other)
    )
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_several_processes_train_as_one_does(alone, tmp_path, count, devices):
    options = ["--workdir", tmp_path, "--fsdp"]
    codes, outputs, errors = run(count, "train", *TRAIN, *options, devices=devices)
    assert codes == [0] * count, errors
    assert_same_training(tmp_path, alone)
    assert "4 devices in" in outputs[0] and "AR@100" in outputs[0]
    for out in outputs[1:]:  # the first speaks for all; Gloo speaks anyway
        assert all(line.startswith("[Gloo]") for line in out.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_count_each_image_once(alone, tmp_path, count):
    """Five images over two or four processes: some get one more than others."""
    options = ["--out", tmp_path, "--eval.batch", "2"]
    codes, _, errors = run(count, "evaluate", alone / "weights.npz", *options)
    assert codes == [0] * count, errors
    found = json.loads((tmp_path / "recall.json").read_text())["figures"]
    wanted = json.loads((alone / "results.json").read_text())
    assert found == {k: v for k, v in wanted.items() if k != "step"}
    assert found["AR@100"] > 0


@pytest.mark.slow
def test_asked_to_stop_all_stop_at_one_step_and_any_number_goes_on(alone, tmp_path):
    long = [*TRAIN, "--workdir", tmp_path, "--optimizer.schedule", "constant"]
    with started(2, "train", *long, "--steps", "100000") as processes:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            time.sleep(0.2)
            if (tmp_path / "metrics.jsonl").exists() and len(losses(tmp_path)) > 3:
                break
        processes[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [143, 143], outputs
    assert "the same command goes on from here" in outputs[0][0]
    stopped = len(losses(tmp_path))
    assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
    more = [*long, "--steps", str(stopped + 3)]
    codes, outputs, errors = run(1, "train", *more)
    assert codes == [0], errors
    assert f"resumed from step {stopped}" in outputs[0]
    whole = tmp_path / "whole"
    more[more.index("--workdir") + 1] = whole
    assert run(1, "train", *more)[0] == [0]
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-3)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(tmp_path):
    long = [*TRAIN, "--workdir", tmp_path, "--steps", "100000"]
    with started(2, "train", *long) as processes:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            time.sleep(0.2)
            if (tmp_path / "metrics.jsonl").exists() and len(losses(tmp_path)) > 3:
                break
        processes[1].kill()
        processes[0].communicate(timeout=120)
        assert processes[0].returncode not in (0, None)


def test_hosts_are_named_wholly_or_not_at_all():
    with pytest.raises(ValueError, match="coordinator, count and index belong"):
        join_hosts(HostsConfig(coordinator="localhost:1"))


@pytest.mark.parametrize(
    ("config", "environment", "joins"),
    [
        (HostsConfig(), {}, False),
        (HostsConfig(join="on"), {}, True),
        (HostsConfig(), {"SLURM_STEP_NUM_TASKS": "2"}, True),
        (HostsConfig(), {"SLURM_STEP_NUM_TASKS": "1"}, False),
        (HostsConfig(), {"OMPI_COMM_WORLD_SIZE": "4"}, True),
        (HostsConfig(), {"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        (HostsConfig(), {"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        (HostsConfig(join="off"), {"SLURM_STEP_NUM_TASKS": "2"}, False),
        (HostsConfig(coordinator="a:1", count=2, index=1), {}, True),
    ],
)
def test_processes_join_where_there_are_several(
    monkeypatch, config, environment, joins
):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *named, **_: calls.append(named)
    )
    join_hosts(config)
    named = (config.coordinator, config.count, config.index)
    assert calls == ([named] if joins else [])
