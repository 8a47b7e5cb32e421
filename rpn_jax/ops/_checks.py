"""Checks of shape and dtype, made at trace time; values are never looked at."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

ImageSize = ArrayLike | tuple[ArrayLike, ArrayLike]


def as_float(x: ArrayLike, name: str) -> jax.Array:
    """Turn real numbers of any precision into float32."""
    return as_real(x, name).astype(jnp.float32)


def as_real(x: ArrayLike, name: str) -> jax.Array:
    """Turn real numbers into float32, but keep float64, which only x64 has."""
    x = jnp.asarray(x)
    if not (
        jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)
    ):
        raise ValueError(f"{name} must hold real numbers, got dtype {x.dtype}")
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def as_boxes(x: ArrayLike, name: str, *, rank: int | None = None) -> jax.Array:
    """Turn boxes into float32 and check that the last dimension is 4."""
    x = as_float(x, name)
    wanted = "[..., 4]" if rank is None else "[" + "N, " * (rank - 1) + "4]"
    if x.ndim == 0 or x.shape[-1] != 4 or (rank is not None and x.ndim != rank):
        raise ValueError(f"{name} must be {wanted}, got shape {x.shape}")
    return x


def as_mask(x: ArrayLike | None, shape: tuple[int, ...], name: str) -> jax.Array:
    """Check a boolean mask; None stands for all True."""
    if x is None:
        return jnp.ones(shape, bool)
    x = jnp.asarray(x)
    if x.dtype != jnp.bool_:
        raise ValueError(f"{name} must be boolean, got dtype {x.dtype}")
    return check_shape(x, shape, name)


def as_groups(x: ArrayLike | None, shape: tuple[int, ...], name: str) -> jax.Array:
    """Check integers that name groups; None stands for one group."""
    if x is None:
        return jnp.zeros(shape, jnp.int32)
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers, got dtype {x.dtype}")
    return check_shape(x, shape, name)


def check_shape(x: jax.Array, shape: tuple[int, ...], name: str) -> jax.Array:
    """Check an exact shape."""
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {x.shape}")
    return x


def check_option(value: str, options: tuple[str, ...], name: str) -> str:
    """Check a named choice."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}")
    return value


def as_image_size(size: ImageSize) -> jax.Array:
    """Turn a (height, width) pair, array or tuple, into float32 [2]."""
    return check_shape(as_float(jnp.asarray(size), "image_size"), (2,), "image_size")
