"""Checkpoints of a run; all that the project knows of Orbax lies here.

A checkpoint holds `params`, `ema` and `optimizer`, each readable alone. It appears
under its step only when it is whole, so that a run killed while saving resumes from the
one before. Where the input stood follows from the step: batch n belongs to step n.
"""

import contextlib
import gc
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from rpn_jax.faster_rcnn import FasterRCNNConfig
from rpn_jax.rpn import RPNConfig
from rpn_jax.training.state import TrainState


class CheckpointError(OSError):
    """A checkpoint cannot be written or read; the message says which and why."""


def best_figure(config: RPNConfig | FasterRCNNConfig) -> str:
    """Name the figure by which a checkpoint is best: a detector's is AP."""
    return "AP" if isinstance(config, FasterRCNNConfig) else "AR@100"


class Checkpoints:
    """Keeps a run's last two and its best checkpoints in one folder.

    Two, so that there is one to go on from if the last is damaged. Where a run has
    several processes, each makes its own object and calls the same methods, and the
    folder is one that all of them see.

    Args:
        folder: made if absent.
        metric: name of the figure by which a checkpoint is best; higher is better.
        read_only: leave the folder alone: a run may be saving to it.
    """

    def __init__(
        self, folder: str | Path, *, metric: str = "AR@100", read_only: bool = False
    ):
        # Orbax reports each file that it writes, and what fails three times over.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._folder, self._metric = Path(folder).absolute(), metric
        self._read_only = read_only
        self._open()

    def _open(self) -> None:
        if not self._read_only:
            self._clear_half_written()
        keep = ocp.training.preservation_policies
        self._orbax = ocp.training.Checkpointer(
            str(self._folder),
            # Orbax's annotations of the policy and of json values are too narrow.
            preservation_policy=keep.AnyPreservationPolicy(  # type: ignore
                [
                    keep.LatestN(2),
                    keep.BestN(
                        get_metric_fn=lambda metrics: metrics[self._metric],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
        )

    def _clear_half_written(self) -> None:
        """Remove what a kill left.

        Orbax would do so in a thread that its `close` does not wait for, and which then
        finds gone what the next one to open the folder has removed. The other processes
        need not wait: what is saved begins with the first one.
        """
        if jax.process_index() == 0:
            for half in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half)

    @property
    def last(self) -> int | None:
        """Step of the newest checkpoint, None where there is none."""
        return None if self._orbax.latest is None else self._orbax.latest.step

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the highest metric, None before any was measured.

        Of equals the later one.
        """
        self.wait()
        scored = [
            (c.metrics[self._metric], c.step)  # type: ignore
            for c in self._orbax.checkpoints
            if c.metrics
        ]
        return max(scored)[1] if scored else None

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Save in the background, under the number of completed updates.

        Args:
            state: the run's state; it may be donated as soon as this returns.
            metrics: figures measured at this step.

        Raises:
            CheckpointError: this or the checkpoint before could not be written.
        """
        items = {"params": state.params, "optimizer": state.opt_state}
        if state.ema is not None:
            items["ema"] = state.ema
        with self._writing():
            self._orbax.save_checkpointables_async(
                int(state.step),
                items,
                force=True,
                metrics=metrics,  # type: ignore
            )

    def restore(self, like: TrainState) -> TrainState:
        """Load the newest checkpoint that is whole onto the devices of `like`.

        Newer ones that are damaged are named on the way and put into a folder beside,
        `<folder>_damaged`, for the run will write them again.

        Args:
            like: a state of the same run, arrays or their shapes with shardings; the
                number of devices, and how the state is split over them, may differ
                from that of the saving run.

        Raises:
            CheckpointError: there is none, or none is whole.
        """
        abstract = jax.tree.map(_abstract, like)
        items = {"params": abstract.params, "optimizer": abstract.opt_state}
        if like.ema is not None:
            items["ema"] = abstract.ema
        damaged = []
        for step in sorted((c.step for c in self._orbax.checkpoints), reverse=True):
            loaded = self._try_to_load(step, items)
            if loaded is None:
                damaged.append(step)
                continue
            self._put_aside(damaged)
            return TrainState(
                jax.device_put(jax.numpy.int32(step), like.step.sharding),
                loaded["params"],
                loaded["optimizer"],
                loaded.get("ema"),
            )
        raise CheckpointError(
            f"{self._folder} holds no checkpoint that is whole; remove it to start the "
            "run anew"
        )

    def _try_to_load(self, step: int, items: dict[str, Any]) -> dict[str, Any] | None:
        with _quiet():
            try:
                return self._orbax.load_checkpointables(step, items)
            except Exception as error:  # of many kinds, from the file system to zstd
                print(f"{self._folder / str(step)} is damaged: {_reason(error)}")
        return None

    def _put_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        self._orbax.close()
        if jax.process_index() == 0:
            aside = self._folder.with_name(f"{self._folder.name}_damaged")
            aside.mkdir(exist_ok=True)
            for step in steps:
                name = f"{step}-{time.time_ns()}"
                os.replace(self._folder / str(step), aside / name)
        multihost_utils.sync_global_devices("damaged checkpoints are put aside")
        self._open()

    def restore_params(self, like: Any, *, step: int, ema: bool = False) -> Any:
        """Load the variables to infer with from the checkpoint of `step`.

        Args:
            like: a variables dict, or its shapes.
            step: `best` or `last`.
            ema: take the moving average, which the run must have kept.

        Raises:
            CheckpointError: it is damaged.
        """
        self.wait()
        like = jax.tree.map(_abstract, like)
        items = {"params": like}
        if ema:
            items["ema"] = like["params"]
        loaded = self._try_to_load(step, items)
        if loaded is None:
            raise CheckpointError(f"{self._folder / str(step)} cannot be read")
        return (
            {**loaded["params"], "params": loaded["ema"]} if ema else loaded["params"]
        )

    def wait(self) -> None:
        """Wait for what is still being written.

        Raises:
            CheckpointError: it could not be written.
        """
        with self._writing():
            self._orbax.wait()

    def close(self) -> None:
        """Wait for what is still being written and close; errors as of `wait`."""
        with self._writing():
            self._orbax.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what Orbax raises, of many kinds, into one sentence."""
        try:
            yield
        except Exception as error:
            whole = [p.name for p in self._folder.glob("*") if p.name.isdecimal()]
            newest = max(whole, key=int, default=None)
            last = f"that of step {newest} is" if newest else "none yet is"
            raise CheckpointError(
                f"a checkpoint could not be written to {self._folder}; {last} whole: "
                f"{_reason(error)}"
            ) from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _abstract(x):
    sharding = getattr(x, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _reason(error: BaseException) -> str:
    """Find what went wrong first, in the words of the file system or of tensorstore."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    # Behind the bracket tensorstore goes on with all its settings.
    text = str(error).split(" [tensorstore_spec")[0]
    return f"{type(error).__name__}: {text}".splitlines()[0][:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what Orbax's unfinished tasks say when a load fails."""
    logger = logging.getLogger("asyncio")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
            gc.collect()  # they speak when they are collected
        finally:
            logger.setLevel(level)
