"""A trace of a few training steps, for the tools that show where time goes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax

from experiments.config import TrainConfig

WARM_UP = 10
"""Steps at the start of a run that are not traced: they compile, and fill queues."""


class Trace:
    """Traces the `config.profile` steps after the first ten, or the last of fewer.

    The trace lies in `workdir/profile` at the end of a `with` block around the steps.

    Args:
        config: of the run.
        first: number of its first step.
    """

    def __init__(self, config: TrainConfig, *, first: int):
        steps = min(config.profile, config.steps + 1 - first)
        start = min(first + WARM_UP, config.steps + 1 - steps)
        self._steps = range(start, start + steps)
        self._folder = config.workdir / "profile"
        self._running = False

    def step(self, number: int) -> AbstractContextManager[Any]:
        """Return a context to run step `number` in; starts and ends the trace."""
        if number not in self._steps:
            self._stop()
            return nullcontext()
        if not self._running:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def _stop(self) -> None:
        if not self._running:
            return
        self._running = False
        # Dispatch runs ahead of the devices: what is traced has to be done.
        jax.block_until_ready(jax.live_arrays())
        jax.profiler.stop_trace()
        steps = f"steps {self._steps[0]} to {self._steps[-1]}"
        print(
            f"profile     {self._folder}: {steps}. Open its perfetto_trace.json.gz in "
            "https://ui.perfetto.dev, or the folder in TensorBoard or xprof "
            f"(pip install xprof; xprof {self._folder})"
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop()
