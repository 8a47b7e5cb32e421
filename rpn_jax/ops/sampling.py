"""Balanced sampling of labelled anchors, exact in number."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool


def sample_balanced(
    key: jax.Array, labels: ArrayLike, *, size: int, positive_fraction: float
) -> Bool[Array, " A"]:
    """Draw positives and negatives uniformly without replacement.

    At most int(size * positive_fraction) positives; negatives fill up to `size`.
    With p positives and n negatives at hand exactly
    min(p, int(size * positive_fraction)) positives and
    min(n, size - chosen positives) negatives are drawn.

    Args:
        key: a random key.
        labels: `[A]` integers: 1 positive, 0 negative, anything else left out.
        size: how many to draw; static.
        positive_fraction: the most that positives may take of them; static.

    Returns:
        `[A]` bool, the anchors that were drawn.

    Raises:
        ValueError: `labels` is not a vector, or an option is out of range.

    Reference:
        Ren et al., Faster R-CNN, NeurIPS 2015, section 3.1.3.

    Example:
        >>> labels = jnp.array([1, 1, 1, 0, 0, 0, 0, -1])
        >>> mask = sample_balanced(
        ...     jax.random.key(0), labels, size=4, positive_fraction=0.5)
        >>> int(mask[:3].sum()), int(mask[3:7].sum()), bool(mask[7])
        (2, 2, False)
    """
    labels = jnp.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels must be [A], got shape {labels.shape}")
    if size < 1 or not 0 <= positive_fraction <= 1:
        raise ValueError(
            "size must be at least 1 and positive_fraction within [0, 1], got "
            f"{size} and {positive_fraction}"
        )
    # One draw serves both classes: an anchor belongs to one of them only.
    draw = jax.random.uniform(key, labels.shape, jnp.float32)
    positives = int(size * positive_fraction)
    positive = _draw_most(draw, labels == 1, positives, positives)
    room = size - positive.sum()
    return positive | _draw_most(draw, labels == 0, size, room)


def _draw_most(draw, among, most: int, count) -> jax.Array:
    """Mark the `count` (at most `most`, static) highest draws among a subset."""
    if most == 0:
        return jnp.zeros_like(among)
    short = max(most + 1 - draw.shape[0], 0)
    ranked = jnp.pad(jnp.where(among, draw, -1.0), (0, short), constant_values=-1.0)
    values, indices = jax.lax.top_k(ranked, most)
    taken = (values >= 0) & (jnp.arange(most) < count)
    # Positions that were not taken point outside and are dropped.
    where = jnp.where(taken, indices, ranked.shape[0])
    return jnp.zeros_like(among).at[where].set(True, mode="drop")
