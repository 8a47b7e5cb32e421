"""Batches without `vmap`: on CPU a loop over the images is the faster batch."""

import jax
from jax import lax
from jax.custom_batching import custom_vmap


def image_by_image(function):
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
