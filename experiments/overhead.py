"""Measure what the training loop costs beyond its compiled step.

usage: python -m experiments.overhead CONFIG [--steps 100] [--field value ...]

Runs so many steps of the loop, images read anew for each, between two halves of as many
steps of the compiled step alone, on one batch that lies on the device. Prints the
medians and by how much the loop's exceeds the step's.
"""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import jax

from experiments.config import exit_with, parse_config, use_compilation_cache
from experiments.train import setup
from rpn_jax.training.mesh import put_batch
from rpn_jax.training.metrics import MetricsWriter, read_metrics


def main(argv: Sequence[str]) -> int:
    """Measure as the command line says; return the exit code."""
    config = parse_config(argv, "overhead")
    use_compilation_cache()
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(config, workdir=Path(folder))
        mesh, state, train_step, batches, _ = setup(config)
        data = batches(0)
        batch = put_batch(mesh, next(data))
        state, _ = train_step(state, batch)  # compiles

        def alone(state, steps: int):
            times = []
            for _ in range(steps):
                start = time.perf_counter()
                state, metrics = jax.block_until_ready(train_step(state, batch))
                times.append(time.perf_counter() - start)
            return state, times

        state, before = alone(state, config.steps // 2)
        file = Path(folder) / "metrics.jsonl"
        # What was read ahead by now is used up first, and not counted.
        ahead, steps = 10, config.steps + 10
        with MetricsWriter(file, start=0, steps=steps, batch=config.batch) as writer:
            for step in range(1, steps + 1):
                state, metrics = train_step(state, put_batch(mesh, next(data)))
                writer.step(step, metrics)
            writer.flush()
        loop = median(row["seconds"] for row in read_metrics(file)[ahead:])
        _, after = alone(state, config.steps // 2)
        data.close()
    step = median(before + after)
    print(
        f"median of {config.steps}: loop {1e3 * loop:.1f} ms, step alone "
        f"{1e3 * step:.1f} ms, {100 * (loop / step - 1):+.1f} %"
    )
    return 0


if __name__ == "__main__":
    exit_with(main)
