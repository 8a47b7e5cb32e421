"""Feed parsers and ops with broken and extreme input, and look for what breaks them.

usage: python -m experiments.fuzz [--cases N] [--seed S] [--only TARGET] [--out FILE]

A target of the parsers mutates valid input, hands it to the library, and says what
became of it: "read", "refused" with the error that is documented, and so on; one of the
ops draws extreme numbers and holds the results to the contract. Anything else is a
failure: another exception, a result that breaks a promise, or more than `--limit`
seconds. The cases are shared out among the targets. Case k of a run with seed S is the
first one of seed S + k, so that a failure comes again by

    python -m experiments.fuzz --only TARGET --seed SEED --cases 1

The exit code is 1 if there are failures.
"""

import dataclasses
import faulthandler
import json
import logging
import platform
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments import fuzz_data, fuzz_ops, fuzz_stages
from experiments.config import UsageError, exit_with
from experiments.fuzz_inputs import try_once

Target = Callable[[np.random.Generator, Path], str]
"""Runs one case, drawn from the generator, with a folder of its own to write to."""

FAMILIES = {**fuzz_ops.FAMILIES, **fuzz_stages.FAMILIES}
OPS: dict[str, Target] = {name: partial(try_once, x) for name, x in FAMILIES.items()}
TARGETS: dict[str, Target] = {**fuzz_data.TARGETS, **OPS}

COMPILING = 300
"""Seconds that a case of the ops may take longer, for the first one compiles."""

PACKAGES = ("rpn_jax", "jax", "numpy", "pillow", "safetensors", "tensorflow-datasets")


class Hang(BaseException):
    """A case took too long; no `except Exception` of a parser may swallow it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to run.

    Attributes:
        cases: in all, over all targets.
        seed: of the first case of each target.
        only: name of one target; empty: all.
        limit: seconds that a case may take.
        out: json file for the result.
    """

    cases: int = 100_000
    seed: int = 0
    only: str = ""
    limit: float = 20.0
    out: Path | None = None


def main(argv: Sequence[str]) -> int:
    """Run the cases as the command line says; return the exit code."""
    prog = "python -m experiments.fuzz"
    options = tyro.cli(Options, args=argv, prog=prog, description=__doc__)
    if options.only and options.only not in TARGETS:
        raise UsageError(f"--only is one of {', '.join(TARGETS)}")
    names = [options.only] if options.only else list(TARGETS)
    results = {}
    logging.disable()  # what is skipped is logged, thousands of times
    for which, name in enumerate(names):
        cases = len(range(which, options.cases, len(names)))
        limit = options.limit + (COMPILING if name in OPS else 0)
        result = run(TARGETS[name], cases, seed=options.seed, limit=limit)
        results[name] = result
        outcomes = ", ".join(f"{k} {n}" for k, n in result["outcomes"].items())
        speed = cases / max(result["seconds"], 1e-9)
        print(f"{name:<22}{cases:>8} cases {speed:>8.0f}/s   {outcomes}", flush=True)
        for failure in result["failures"]:
            print(f"  seed {failure['seed']}: {failure['error']}", flush=True)
    if options.out:
        report = {
            "cases": options.cases,
            "seed": options.seed,
            "limit_seconds": options.limit,
            "versions": {
                "python": platform.python_version(),
                **{package: version(package) for package in PACKAGES},
            },
            "targets": results,
        }
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if any(result["failures"] for result in results.values()) else 0


def run(target: Target, cases: int, *, seed: int, limit: float) -> dict[str, Any]:
    """Run cases of one target; return outcomes with counts, failures and seconds."""
    outcomes: Counter[str] = Counter()
    failures = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what they mend
        for case in range(seed, seed + cases):
            try:
                with _time_limit(limit):
                    outcome = target(np.random.default_rng(case), Path(folder))
            except (Exception, Hang) as error:
                outcome = "failure"
                text = f"{type(error).__name__}: {error}"
                failures.append({"seed": case, "error": text[:500]})
            outcomes[outcome] += 1
    return {
        "cases": cases,
        "seconds": round(time.perf_counter() - start, 2),
        "outcomes": dict(sorted(outcomes.items())),
        "failures": failures,
    }


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise Hang(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        # Compiled code that hangs never comes to the handler: this ends the process.
        faulthandler.dump_traceback_later(
            seconds + 60, exit=True, file=sys.__stderr__ or sys.stderr
        )
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    exit_with(main)
