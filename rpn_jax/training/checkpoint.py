"""Checkpoints of a run; all that the project knows of Orbax lies here.

A checkpoint holds `params`, `ema` and `optimizer`, each readable alone, and says where
the input stood. It appears under its step only when it is whole, so that a run killed
while saving resumes from the one before.
"""

import logging
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from rpn_jax.training.state import TrainState


class Checkpoints:
    """Keeps a run's last and best checkpoints in one folder.

    Args:
        folder: made if absent.
        metric: name of the figure by which a checkpoint is best; higher is better.
        read_only: leave the folder alone: a run may be saving to it.
    """

    def __init__(
        self, folder: str | Path, *, metric: str = "AR@100", read_only: bool = False
    ):
        # Orbax reports each file that it writes; the run has its own progress line.
        logging.getLogger("absl").setLevel(logging.WARNING)
        keep = ocp.training.preservation_policies
        self._metric = metric
        self._orbax = ocp.training.Checkpointer(
            str(Path(folder).absolute()),
            # Orbax's annotations of the policy and of json values are too narrow.
            preservation_policy=keep.AnyPreservationPolicy(  # type: ignore
                [
                    keep.LatestN(1),
                    keep.BestN(
                        get_metric_fn=lambda metrics: metrics[metric],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=not read_only,
        )

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

    def save(
        self, state: TrainState, data: Any, metrics: dict[str, float] | None = None
    ) -> None:
        """Save in the background, under the number of completed updates.

        Args:
            state: the run's state; it may be donated as soon as this returns.
            data: where the input stands, as JSON-able values.
            metrics: figures measured at this step.
        """
        items = {"params": state.params, "optimizer": state.opt_state}
        if state.ema is not None:
            items["ema"] = state.ema
        self._orbax.save_checkpointables_async(
            int(state.step),
            items,
            force=True,
            metrics=metrics,  # type: ignore
            custom_metadata={"data": data},
        )

    def restore(self, like: TrainState) -> tuple[TrainState, Any]:
        """Load the newest checkpoint onto the devices that `like` lies on.

        Args:
            like: a state of the same run, arrays or their shapes with shardings; the
                number of devices may differ from that of the saving run.

        Returns:
            The state, and where the input stood.
        """
        abstract = jax.tree.map(_abstract, like)
        items = {"params": abstract.params, "optimizer": abstract.opt_state}
        if like.ema is not None:
            items["ema"] = abstract.ema
        step = self.last
        if step is None:
            raise ValueError("there is no checkpoint to restore")
        loaded = self._orbax.load_checkpointables(step, items)
        state = TrainState(
            jax.device_put(jax.numpy.int32(step), like.step.sharding),
            loaded["params"],
            loaded["optimizer"],
            loaded.get("ema"),
        )
        found = self._orbax.checkpointables_metadata(step).custom_metadata
        return state, found["data"]  # type: ignore

    def restore_params(self, like: Any, *, step: int, ema: bool = False) -> Any:
        """Load the variables to infer with from the checkpoint of `step`.

        Args:
            like: a variables dict, or its shapes.
            step: `best` or `last`.
            ema: take the moving average, which the run must have kept.
        """
        self.wait()
        like = jax.tree.map(_abstract, like)
        items = {"params": like}
        if ema:
            items["ema"] = like["params"]
        loaded = self._orbax.load_checkpointables(step, items)
        return (
            {**loaded["params"], "params": loaded["ema"]} if ema else loaded["params"]
        )

    def wait(self) -> None:
        """Wait for what is still being written."""
        self._orbax.wait()

    def close(self) -> None:
        """Wait for what is still being written and close."""
        self._orbax.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _abstract(x):
    sharding = getattr(x, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
