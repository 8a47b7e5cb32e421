"""Several processes of one run: how they find each other and end together.

JAX does the distribution: `jax.distributed` joins the processes, after which
`jax.devices()` are those of all of them. The file system must be a shared one, for the
work folder is one.
"""

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, Literal

import jax
from jax.experimental import multihost_utils

HEARTBEAT_SECONDS = 60
"""After so long without a sign of life a process is given up, and the others end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """How the processes of a run find each other.

    Attributes:
        join: "auto" joins where a coordinator is named, or Slurm, Open MPI or a list of
            TPU hosts in the environment says that there are several processes; "on"
            joins always, and JAX finds out by itself what is not named; "off" never.
        coordinator: HOST:PORT, an address of process 0 that all processes reach.
        count: processes in all.
        index: of this one, from 0.
    """

    join: Literal["auto", "on", "off"] = "auto"
    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


def join_hosts(config: HostsConfig) -> None:
    """Join the other processes of the run, before anything is computed.

    Raises:
        ValueError: a coordinator without a count and an index, or the reverse.
        RuntimeError: the others were not found in time.
    """
    named = (config.coordinator, config.count, config.index)
    if any(x is not None for x in named) and None in named:
        raise ValueError(
            "coordinator, count and index belong together: HOST:PORT of process 0, the "
            f"number of processes, and which of them this is; got {named}"
        )
    if config.join == "off" or (config.join == "auto" and not _are_several(config)):
        return
    jax.distributed.initialize(*named, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def _are_several(config: HostsConfig) -> bool:
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    return (
        config.coordinator is not None
        or any(int(os.environ.get(name) or 1) > 1 for name in counts)
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    )


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Let process 0 alone print; what goes wrong is said by whoever it happens to."""
    if jax.process_index() == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def leave_at_once(code: int) -> None:
    """End this process of several, which has failed, without waiting for the others.

    They fail in turn, at the next step that needs this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Stop:
    """Tells whether the run was asked to stop, by SIGTERM or the first Ctrl-C.

    Of several processes all are told at the same step, whichever of them was asked
    (SIGTERM only, for which JAX listens then).

    Attributes:
        code: what to exit with, 128 and the number of the signal; 0 before.
    """

    code = 0

    def __enter__(self):
        """Catch the signals."""
        signals = [signal.SIGTERM, signal.SIGINT] if jax.process_count() == 1 else []
        self._before = {s: signal.signal(s, self._ask) for s in signals}
        return self

    def __exit__(self, *_: Any):
        """Leave the signals to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def at(self, step: int) -> bool:
        """Tell whether to stop after `step`; each process asks at every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(
            step
        ):
            self.code = 128 + signal.SIGTERM
        return self.code > 0

    def _ask(self, number: int, _):
        self.code = 128 + number
        if number == signal.SIGINT:  # a second one interrupts at once
            signal.signal(number, signal.default_int_handler)
