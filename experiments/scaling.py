"""Measure how a training run scales with devices, and what they say to each other.

usage: python -m experiments.scaling CONFIG [--devices 1 2 4 8] [--steps 20]
                                            [--out DIR] [--field value ...]

Measures images/s of the input alone, by threads and worker processes; and for each
number of devices, the batch of CONFIG split over them, of the compiled step alone (one
batch that lies on them) and of both together. Reads each step's collectives from the
compiled program. DIR gets `scaling.json`, where every CONFIG has its entry, and
`scaling.md`, made from it, with the formula for other machines.

On a CPU the devices are simulated: they share its cores, so that images/s cannot grow.
There the collectives are what is shown.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.benchmark import load, machine
from experiments.collectives import Collective, collectives
from experiments.config import (
    TrainConfig,
    UsageError,
    classes_of,
    exit_with,
    parse_config,
    use_compilation_cache,
)
from experiments.cost import AHEAD, Program, compiled, read_input, time_steps
from experiments.data import open_source, train_batches
from experiments.scaling_report import (
    collective_table,
    input_table,
    markdown,
    step_table,
)
from experiments.train import setup
from rpn_jax.training.mesh import data_mesh, put_batch

WAYS = ((1, 0), (2, 0), (4, 0), (4, 1), (4, 2))
"""How the input is read: threads (of each worker), worker processes."""

LEAST = 60
"""Batches of input to time at least."""


class InputRate(NamedTuple):
    """Images/s of the input alone.

    Attributes:
        threads: of the process, or of each worker.
        workers: processes that read; 0: the one that trains.
        rate: images/s.
    """

    threads: int
    workers: int
    rate: float


class StepRate(NamedTuple):
    """What was found on a number of devices.

    Attributes:
        devices: how many.
        batch: images a step, over all.
        size: (height, width) that those of the first batch were padded to.
        compile: seconds.
        alone: images/s of the step.
        together: images/s of the step and its input.
        arguments: bytes of its arguments, on each device.
        temporaries: bytes that it needs beside, likewise.
        collectives: by kind.
    """

    devices: int
    batch: int
    size: tuple[int, int]
    compile: float
    alone: float
    together: float
    arguments: int
    temporaries: int
    collectives: list[Collective]


def main(argv: Sequence[str]) -> int:
    """Measure as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.scaling CONFIG",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=20, help="to time, of each kind")
    parser.add_argument("--out", type=Path, help="folder for scaling.json, scaling.md")
    args, rest = parser.parse_known_args(argv)
    config = parse_config(rest)
    check_devices(max(args.devices))
    use_compilation_cache()

    about = machine({"device": jax.devices()[0].device_kind})
    about |= {"jax": jax.__version__, "options": " ".join(rest[1:])}
    inputs = [rate._asdict() for rate in measure_input(config, args.steps)]
    print(input_table(inputs), flush=True)
    steps = []
    for devices in args.devices:
        found = measure_steps(config, devices, args.steps)
        talk = [c._asdict() for c in found.collectives]
        steps.append({**found._asdict(), "collectives": talk})
    print(f"\n{step_table(steps)}\n\n{collective_table(steps)}")
    about["load at the end"] = load()
    if args.out:
        write(args.out, rest[0], about, inputs, steps)
    return 0


def check_devices(number: int) -> None:
    """Have a CPU pass for so many devices, unless it does for more already.

    Raises:
        UsageError: there are fewer devices.
    """
    if jax.config.values["jax_num_cpu_devices"] < number:
        try:
            jax.config.update("jax_num_cpu_devices", number)
        except RuntimeError:  # too late, the devices are in use
            pass
    if number > jax.device_count():
        raise UsageError(f"--devices {number}: there are {jax.device_count()}")


def measure_input(config: TrainConfig, batches: int) -> Iterator[InputRate]:
    """Read at least so many batches in each of `WAYS`; nothing else runs meanwhile."""
    source = open_source(config.data, "train", classes=classes_of(config.model))
    for threads, workers in WAYS:
        way = dataclasses.replace(config.data, threads=threads, workers=workers)
        data = train_batches(source, way, batch=config.batch, seed=config.seed)
        # Workers read ahead, each for itself, and start one after the other: what they
        # have in store must not be what is timed.
        read = read_input(data, max(batches, LEAST), ahead=2 * AHEAD * (workers + 1))
        data.close()
        yield InputRate(threads, workers, config.batch / read.seconds)


def measure_steps(config: TrainConfig, devices: int, steps: int) -> StepRate:
    """Time the step alone, then with its input; read its program."""
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(config, workdir=Path(folder))
        run = setup(config, data_mesh(devices))
    programs: dict[tuple[int, int], tuple[Program, Any]] = {}

    def program(batch: Any) -> tuple[Program, Any]:
        size = batch.images.shape[1:3]
        if size not in programs:
            programs[size] = compiled("training step", run.train_step, state, batch)
        return programs[size]

    mesh, state, metrics = run.mesh, run.state, None
    with closing(run.batches(0)) as data:
        batch = put_batch(mesh, next(data))
        size = batch.images.shape[1:3]
        about, step = program(batch)
        state, times = time_steps(step, state, batch, most=steps, seconds=60)
        for _ in range(AHEAD):  # what lies ready, of every size
            program(put_batch(mesh, next(data)))
        start = time.perf_counter()
        for _ in range(steps):
            batch = put_batch(mesh, next(data))
            state, new = program(batch)[1](state, batch)
            jax.block_until_ready(metrics)  # as training does, which writes them
            metrics = new
        jax.block_until_ready(metrics)
        together = (time.perf_counter() - start) / steps
    return StepRate(
        devices,
        config.batch,
        size,
        about.compile,
        config.batch / statistics.median(times),
        config.batch / together,
        about.arguments,
        about.temporaries,
        collectives(step.as_text()),
    )


def write(folder: Path, name: str, about: dict, inputs: list, steps: list) -> None:
    """Set the entry of a config in `scaling.json`, and make the page anew from it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scaling.json"
    entries = json.loads(file.read_text()) if file.exists() else {}
    entries[name] = {"about": about, "input": inputs, "step": steps}
    file.write_text(json.dumps(entries, indent=2) + "\n")
    (folder / "scaling.md").write_text(markdown(json.loads(file.read_text())))
    print(f"written to {folder / 'scaling.json'} and {folder / 'scaling.md'}")


if __name__ == "__main__":
    exit_with(main)
