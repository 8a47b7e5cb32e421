"""Metrics of a run: JSON lines, a progress line, TensorBoard on request."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax


class NonFiniteError(FloatingPointError):
    """A metric is NaN or infinite; the message names the step and the parts."""


class MetricsWriter:
    """Writes each step's metrics when the next step is under way.

    Reading a metric waits for its step to finish; read one step late, this costs the
    device nothing. Each line says its `seconds` too, from one step to the next.

    Args:
        file: JSON lines, an object a line with `step`. Lines after step `start` are
            removed: the run will write them again. None writes nothing, to TensorBoard
            neither: of several processes one does.
        start: completed updates at the start of this run.
        steps: updates at its end, for the ETA.
        batch: images a step, for images per second.
        log_every: steps from one progress line to the next.
        tensorboard: folder of event files, or None.
    """

    def __init__(
        self,
        file: str | Path | None,
        *,
        start: int,
        steps: int,
        batch: int,
        log_every: int = 20,
        tensorboard: str | Path | None = None,
    ):
        if file is not None:
            truncate(file, start)
        # Nothing is written to nowhere, and the loss is looked at all the same.
        self._file = open(file or os.devnull, "a", encoding="utf-8")
        self._steps, self._batch, self._log_every = steps, batch, log_every
        self._pending: tuple[int, Mapping[str, jax.Array], float] | None = None
        self._clock = self._shown_at = time.perf_counter()
        self._shown = start
        self._board = None
        if tensorboard is not None and file is not None:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(tensorboard), purge_step=start + 1)

    def step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Take the metrics of update number `step` (from 1), write the one before.

        Raises:
            NonFiniteError: a loss or the gradient of the step before is not finite.
        """
        self.flush()
        now = time.perf_counter()
        self._pending, self._clock = (step, metrics, now - self._clock), now

    def flush(self, figures: Mapping[str, float] | None = None) -> None:
        """Wait for the step taken last and write it; see `step` for errors.

        Args:
            figures: more to write on its line, such as the recall measured after it.
        """
        if self._pending is None:
            return
        (step, metrics, seconds), self._pending = self._pending, None
        row = {k: float(v) for k, v in jax.device_get(dict(metrics)).items()}
        check_finite(step, row)
        row |= {"seconds": round(seconds, 6), **(figures or {})}
        # JSON has no NaN: the recall of objects that there are none of is null.
        line = {k: v if math.isfinite(v) else None for k, v in row.items()}
        self._file.write(json.dumps({"step": step, **line}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, step)
        if step % self._log_every == 0 or step == self._steps:
            print(self._progress(step, row), flush=True)

    def _progress(self, step: int, metrics: Mapping[str, float]) -> str:
        now = time.perf_counter()
        seconds = (now - self._shown_at) / max(step - self._shown, 1)
        self._shown_at, self._shown = now, step
        losses = "  ".join(
            f"{k.removeprefix('loss_')} {v:.4f}"
            for k, v in metrics.items()
            if k.startswith("loss")
        )
        eta = duration(seconds * (self._steps - step))
        speed = self._batch / seconds
        return f"step {step}/{self._steps}  {losses}  {speed:.1f} images/s  ETA {eta}"

    def close(self) -> None:
        """Close the files; what is pending is dropped, so `flush` first."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Raise `NonFiniteError` where a loss or the gradient norm is NaN or infinite."""
    bad = [k for k, v in metrics.items() if not math.isfinite(v)]
    # The sum and the gradient follow from the parts: named where no part explains them.
    parts = [k for k in bad if k.startswith("loss_")]
    parts = parts or [k for k in ("loss", "grad_norm") if k in bad]
    if parts:
        raise NonFiniteError(
            f"step {step}: " + ", ".join(f"{k} is {metrics[k]}" for k in parts)
        )


def read_metrics(file: str | Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, leaving out a last line cut short by a kill."""
    rows = []
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def truncate(file: str | Path, step: int) -> None:
    """Remove the lines after `step` from a metrics file, if there is one."""
    file = Path(file)
    if not file.exists():
        return
    rows = [row for row in read_metrics(file) if row["step"] <= step]
    part = file.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(part, file)


def duration(seconds: float) -> str:
    """Write a time as m:ss, or h:mm:ss.

    >>> duration(62), duration(3600)
    ('1:02', '1:00:00')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
