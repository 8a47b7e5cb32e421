"""Batches without `vmap`: on CPU a loop over the images is the faster batch."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.custom_batching import custom_vmap


def image_by_image(function: Callable) -> Callable:
    """Make `vmap` of a function a loop, in which each device takes its own images."""
    call = custom_vmap(function)

    @call.def_vmap
    def rule(size, batched, *args):
        def choose(chosen, otherwise):
            """Put what is batched back among the arguments that are not."""
            chosen = iter(chosen)
            return (
                next(chosen) if b else x
                for x, b in zip(otherwise, batched, strict=True)
            )

        def loop(*args):
            images = [x for x, b in zip(args, batched, strict=True) if b]
            return lax.map(lambda image: call(*choose(image, args)), images)

        # An axis that is split over an explicit mesh cannot be looped over as a whole.
        specs = [jax.typeof(x).sharding.spec for x in args]
        axes = [s[0] for s, b in zip(specs, batched, strict=True) if b and s[0]]
        if axes:
            split = tuple(jax.P(axes[0]) if b else jax.P() for b in batched)
            loop = jax.shard_map(loop, in_specs=split, out_specs=jax.P(axes[0]))
        result = loop(*args)
        return result, jax.tree.map(lambda _: True, result)

    return call


def map_images(function: Callable, shared: Any, *args: Any) -> Any:
    """Map function(shared, *args) over the images in args.

    On a mesh with an axis "data" each device maps over its own images: on CPU some ops
    go image by image, and over a sharded axis that would gather the whole batch.
    """
    mapped = jax.vmap(function, in_axes=(None, *(0 for _ in args)))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "data" not in mesh.axis_names or mesh.manual_axes:
        return mapped(shared, *args)
    split = jax.P("data")
    return jax.shard_map(
        mapped,
        mesh=mesh,
        in_specs=(jax.P(), *(split for _ in args)),
        out_specs=split,
    )(shared, *args)
