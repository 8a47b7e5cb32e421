"""Exact top-k over padded scores."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from rpn_jax.ops._checks import as_float, as_mask


class TopK(NamedTuple):
    """The best scores, best first.

    Attributes:
        values: `[K]` float32; 0 where not valid.
        indices: `[K]` int32 into the scores; -1 where not valid.
        valid: `[K]` bool.
    """

    values: Float[Array, " K"]
    indices: Int[Array, " K"]
    valid: Bool[Array, " K"]


def clean_scores(scores: jax.Array) -> jax.Array:
    """Map NaN to -inf and -0.0 to 0.0.

    `lax.top_k` sorts NaN first and tells the two zeros apart.
    """
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    return jnp.where(scores == 0, jnp.zeros_like(scores), scores)


def top_k(scores: ArrayLike, k: int, *, valid: ArrayLike | None = None) -> TopK:
    """Choose the k highest scores, best first, ties to the lower index.

    Args:
        scores: `[N]` real numbers. NaN and -inf are never chosen.
        k: how many; static. May exceed N.
        valid: `[N]` bool, which scores take part; all by default.

    Returns:
        A `TopK` of length k, padded where fewer than k scores take part.

    Raises:
        ValueError: `scores` is not a vector, or k is below 1.

    Example:
        >>> top_k(jnp.array([0.1, 0.7, jnp.nan, 0.7]), 2).indices
        Array([1, 3], dtype=int32)
    """
    scores = as_float(scores, "scores")
    if scores.ndim != 1:
        raise ValueError(f"scores must be [N], got shape {scores.shape}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    valid = as_mask(valid, scores.shape, "valid")
    values, indices = top_k_of_clean(
        jnp.where(valid, clean_scores(scores), -jnp.inf), k
    )
    chosen = values > -jnp.inf
    return TopK(
        jnp.where(chosen, values, jnp.zeros_like(values)),
        jnp.where(chosen, indices, -jnp.ones_like(indices)),
        chosen,
    )


def top_k_of_clean(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Choose the k highest of scores [N] that `clean_scores` made.

    Where k exceeds N, -inf at indices beyond N.
    """
    # One entry more than k: XLA on CPU turns a top-k of everything into a full sort,
    # which is several times slower.
    short = max(k + 1 - scores.shape[0], 0)
    scores = jnp.pad(scores, (0, short), constant_values=-jnp.inf)
    values, indices = jax.lax.top_k(scores, k)
    return values, indices
