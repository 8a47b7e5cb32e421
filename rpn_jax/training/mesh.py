"""Devices as one axis, `data`: batches are split over it, the state is whole."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


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


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Place this process's part of a batch, split by its first axis.

    Args:
        mesh: from `data_mesh`.
        batch: a tree of NumPy arrays `[B, ...]`, `B` a multiple of the devices here.

    Returns:
        The tree as global arrays, sharded over `data`.
    """
    split = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(split, x), batch
    )
