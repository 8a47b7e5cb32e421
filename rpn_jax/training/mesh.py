"""Devices as one axis, `data`: batches are split over it, the state is if asked to."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

SMALLEST_SPLIT = 2**12
"""Elements below which splitting an array saves nothing worth a message."""


def data_mesh(devices: int | None = None) -> Mesh:
    """Build the mesh over `devices` devices (default: all of every process)."""
    count = jax.device_count() if devices is None else devices
    # Auto: under Explicit axes the weight gradient of a convolution needs an output
    # sharding, which Linen cannot pass on.
    return jax.make_mesh(
        (count,),
        ("data",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:count],
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, state: Any, *, fsdp: bool) -> Any:
    """Say how each array of a training state lies on the mesh.

    Args:
        mesh: from `data_mesh`.
        state: a tree of arrays or of their shapes.
        fsdp: split each large array along its longest axis that the number of devices
            divides (of equals the last), so that a device holds its share of the
            parameters, the optimizer's state and the average; else all of them.

    Returns:
        A tree of shardings like `state`.
    """

    def one(x) -> NamedSharding:
        axes = [i for i, n in enumerate(x.shape) if n % mesh.size == 0]
        if not fsdp or not axes or np.prod(x.shape) < SMALLEST_SPLIT:
            return replicated(mesh)
        longest = max(axes, key=lambda i: (x.shape[i], i))
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))

    return jax.tree.map(one, state)


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Place this process's part of a batch, split by its first axis.

    Args:
        mesh: from `data_mesh`.
        batch: a tree of NumPy arrays `[B, ...]`, `B` a multiple of this process's
            devices; as many in every process.

    Returns:
        The tree as global arrays, sharded over `data`.
    """
    split = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(split, x), batch
    )


def gather(mesh: Mesh, tree: Any) -> Any:
    """Make every array whole on every device; each process has to call this."""
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
