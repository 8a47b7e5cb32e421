"""Measure the stages beside other implementations: time, memory, compilation, result.

usage: python -m experiments.benchmark [--only REGEX] [--runs 15] [--out DIR] [--quick]
           [--peer NAME=PYTHON ...] [--without NAME ...]

Each participant runs in a process of its own: this project, plain NumPy, torchvision,
torchvision under torch.compile, and keras-hub on JAX. A peer takes part where PYTHON
(default: this one) can import it, else the report says that it is absent; so

    python -m experiments.benchmark --peer torchvision=PYTHON1 --peer keras-hub=PYTHON2

needs no common environment (torch.compile takes torchvision's). `--only nms/rpn` picks
cases by name, `--quick` runs tiny ones to see that everything works. DIR (default
`runs/benchmark`) gets `benchmark.md`, `benchmark.json` and `benchmark.png`.

How to read it. Before anything is timed all results are compared with plain NumPy, of
whole networks with those of rpn_jax: kept indices and labels must be equal, numbers
within 1e-5. A peer that differs is shown as "wrong" beside its time; if rpn_jax differs
the exit code is 1. Samples of the participants take turns, in another order each round,
after a pause in which the threads of the one before come to rest; a sample is the mean
of a block of calls of 20 ms or one call. "ratio" is our median over the peer's: below 1
we are faster. Arrays lie on the device beforehand, and compilation is not in the times.
Trust ratios and minima on a machine that does other work; the load is given at the
start and the end. On a GPU torchvision runs there too, and the growth of resident
memory says nothing.
"""

import argparse
import datetime
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.config import UsageError, exit_with
from experiments.peers.cases import Case, all_cases
from experiments.peers.client import MODULES, OURS, REFERENCE, Worker
from experiments.peers.compare import compare
from experiments.peers.report import line, summary, write

PAUSE = 0.05  # seconds between participants, for threads that spin
BLOCK = 0.02  # seconds of calls in a sample


def main(argv: Sequence[str]) -> int:
    """Measure as the command line says; return 1 if our own result is wrong."""
    args = parse(argv)
    runs = 2 if args.quick else args.runs
    cases = [c for c in all_cases(args.quick) if re.search(args.only, c.name)]
    if not cases:
        raise UsageError(f"--only {args.only}: there is no such case")
    workers = start(dict(args.peer), args.without)
    report = {
        "machine": machine(workers[0].about),
        "participants": {
            w.name: {"absent": w.absent} if w.absent else w.about for w in workers
        },
        "rows": [],
    }
    for name, who in report["participants"].items():
        print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in who.items()))
    present = [w for w in workers if not w.absent]
    try:
        for case in cases:
            row = measure(case, present, runs)
            report["rows"].append(row)
            print(line(row), flush=True)
            report["machine"]["load at the end"] = load()
            write(report, args.out)  # each time, so that an interruption costs little
    finally:
        for worker in workers:
            worker.close()
    print(f"written to {args.out}")
    wrong = [r["case"] for r in report["rows"] if not sound(r["results"][OURS])]
    for name in wrong:
        print(f"rpn_jax is WRONG in {name}")
    return 1 if wrong else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="regular expression")
    parser.add_argument("--runs", type=int, default=15, help="samples of each case")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--quick", action="store_true", help="tiny cases, 2 samples")
    parser.add_argument(
        "--peer", action="append", default=[], type=named_python, metavar="NAME=PYTHON"
    )
    peers = sorted(set(MODULES) - {OURS, REFERENCE})
    parser.add_argument("--without", action="append", default=[], choices=peers)
    args = parser.parse_args(argv)
    if args.runs < 2:
        parser.error("--runs must be at least 2")
    return args


def named_python(text: str) -> tuple[str, str]:
    """Read `NAME=PYTHON`."""
    name, _, python = text.partition("=")
    if name not in MODULES or name == OURS or not python:
        known = ", ".join(name for name in MODULES if name != OURS)
        raise argparse.ArgumentTypeError(f"NAME=PYTHON is wanted, NAME one of {known}")
    return name, python


def start(pythons: dict[str, str], without: Sequence[str]) -> list[Worker]:
    """Start the participants, ours first: its device decides that of the others."""
    ours = Worker(OURS)
    if ours.absent:
        raise UsageError(f"rpn_jax does not run: {ours.absent}")
    if "torchvision" in pythons:
        pythons = {"torch.compile": pythons["torchvision"], **pythons}
    device = ours.about["platform"]
    names = [name for name in MODULES if name != OURS and name not in without]
    return [ours] + [
        Worker(name, pythons.get(name, sys.executable), device) for name in names
    ]


def measure(case: Case, workers: Sequence[Worker], runs: int) -> dict:
    """Prepare a case with everybody, compare the results, then time in turns."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        arrays, outputs = Path(folder, "arrays.npz"), {}
        np.savez(arrays, allow_pickle=False, **case.make())
        for worker in workers:
            file = Path(folder, f"{worker.name}.npz")
            reply = worker.ask(
                do="prepare",
                stage=case.stage,
                arrays=str(arrays),
                options=case.options,
                outputs=str(file),
            )
            if "absent" in reply:
                continue
            results[worker.name] = reply
            if "error" not in reply:
                with np.load(file) as saved:
                    outputs[worker.name] = dict(saved)
    # Plain NumPy has no networks: there the peers are compared with this project.
    reference = outputs.get(OURS if case.stage == "network" else REFERENCE)
    for name, output in outputs.items():
        if reference is not None:
            results[name]["check"] = str(compare(output, reference))
        else:  # a training step: its weights are random
            finite = all(np.isfinite(x).all() and x.all() for x in output.values())
            results[name]["check"] = "finite" if finite else "wrong: not finite"
    # Plain NumPy is a reference everywhere, and a way to do it for NMS alone.
    timed = [w for w in workers if w.name in outputs]
    if case.stage != "nms":
        timed = [w for w in timed if w.name != REFERENCE]
    sample(timed, results, max(2, runs // 3) if case.slow else runs)
    results.pop(REFERENCE, None) if case.stage != "nms" else None
    return {"case": case.name, "note": case.note, "x": case.x, "results": results}


def sample(workers: Sequence[Worker], results: dict, runs: int) -> None:
    """Let the workers take turns, and describe each one's samples in its result."""
    turns, order = random.Random(0), list(workers)
    seconds = {worker.name: [] for worker in workers}
    for _ in range(runs):
        turns.shuffle(order)
        for worker in order:
            time.sleep(PAUSE)
            reply = worker.ask(do="sample", seconds=BLOCK)
            if "error" in reply:
                results[worker.name]["error"] = reply["error"]
            else:
                seconds[worker.name].append(reply["seconds"])
    for name, taken in seconds.items():
        if len(taken) == runs:
            results[name] |= {"samples": taken, **summary(taken)}


def sound(result: dict) -> bool:
    """Tell whether a result is there and right."""
    return "error" not in result and "wrong" not in result["check"]


def machine(about: dict) -> dict:
    """Describe when and where this runs."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "device": about["device"],
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load at the start": load(),
    }


def processor() -> str:
    """Name the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return re.findall(r"model name\s*: (.*)", text)[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def load() -> str:
    """Tell the load averages of 1, 5 and 15 minutes."""
    return " ".join(f"{x:.2f}" for x in os.getloadavg())


if __name__ == "__main__":
    exit_with(main)
