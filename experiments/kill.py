"""Kill a run again and again, and see that it ends as if nothing had happened.

usage: python -m experiments.kill [--kills 20] [--seed 0] [--out FILE] [--workdir DIR]

Trains a small network on synthetic scenes undisturbed, then the same run in another
folder, killed by SIGKILL at random moments: between two steps or within one, while a
checkpoint is written, while one is read. Started again after each, it must end with the
same losses and the same weights, bit for bit. Prints what it was doing when it was
killed, and exits with 1 where anything differs.
"""

import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

from experiments.config import exit_with
from rpn_jax.training.metrics import read_metrics

RUN = (
    "shapes --steps 120 --batch 2 --lr 0.02 --data.train 16 --data.val 4 "
    "--data.resize.max-size 64 --data.max-boxes 20 --model.head-channels 8 "
    "--model.convention.proposals.test-pre-nms 50 "
    "--model.convention.proposals.test-post-nms 20 --eval.batch 2 --save-every 3"
).split()
MOMENTS = ("training", "saving", "resuming")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How often to kill, and where.

    Attributes:
        kills: how often.
        seed: of the moments.
        workdir: folder of both runs; it must not hold any yet.
        out: json file of the result, or none.
    """

    kills: int = 20
    seed: int = 0
    workdir: Path = Path("runs/kill")
    out: Path | None = None


def main(argv: Sequence[str]) -> int:
    """Kill as the command line says; return 1 where the ends differ."""
    options = tyro.cli(Options, args=argv, prog="python -m experiments.kill")
    whole, killed = options.workdir / "whole", options.workdir / "killed"
    start_run(whole).wait()
    rng = random.Random(options.seed)
    phases: Counter[str] = Counter()
    for n in range(options.kills):
        phase = kill_once(killed, MOMENTS[n % len(MOMENTS)], rng)
        phases[phase] += 1
        print(f"kill {n + 1}/{options.kills}: {phase}", flush=True)
    start_run(killed).wait()
    equal = same_end(whole, killed)
    result = {"kills": dict(phases), "seed": options.seed, "same_end": equal}
    print(json.dumps(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if equal else 1


def start_run(folder: Path) -> subprocess.Popen:
    """Start the run, or the rest of it; it prints to `<folder>.log`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "w") as log:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "experiments.train", *RUN]
            + ["--workdir", str(folder)],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def kill_once(folder: Path, moment: str, rng: random.Random) -> str:
    """Start the run and kill it at about `moment`; return what it was doing."""
    checkpoints, metrics = folder / "checkpoints", folder / "metrics.jsonl"

    def written() -> bool:
        """Tell whether a checkpoint is being written, or was when the run was killed.

        What earlier kills left lies there until the run has started.
        """
        folders = checkpoints.glob("*.orbax-checkpoint-tmp")
        return any(modified(p) > begin for p in folders)

    def steps() -> int:
        return len(read_metrics(metrics)) if metrics.exists() else 0

    before, more, log = steps(), rng.randint(1, 8), folder.with_suffix(".log")
    begin, process = time.time(), start_run(folder)
    due = {
        "training": lambda: steps() >= before + more,
        "saving": lambda: steps() > before and written(),
        "resuming": lambda: "to train on" in log.read_text(),
    }[moment]
    while process.poll() is None and not due():
        time.sleep(0.002)
    # The first instant of it is not the only one.
    time.sleep(rng.uniform(0, {"training": 0.1, "saving": 0.02, "resuming": 1}[moment]))
    if process.poll() is not None:
        return "after its end"
    process.kill()
    process.wait()
    if written():
        return "saving"
    resumed = "resumed from" in log.read_text() or not any(checkpoints.glob("[0-9]*"))
    return "training" if resumed else "resuming"


def modified(path: Path) -> float:
    """Return when a file was modified; 0 where it is gone by now."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def same_end(folder: Path, other: Path) -> bool:
    """Tell whether two runs have the same losses and weights, bit for bit."""
    losses = [
        [(row["step"], row["loss"]) for row in read_metrics(f / "metrics.jsonl")]
        for f in (folder, other)
    ]
    with (
        np.load(folder / "weights.npz") as a,
        np.load(other / "weights.npz") as b,
    ):
        arrays = set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)
    return arrays and losses[0] == losses[1] and len(losses[0]) > 0


if __name__ == "__main__":
    exit_with(main)
