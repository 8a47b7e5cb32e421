"""Balanced sampling of labelled anchors, exact in number.

A random number for each of 200,000 anchors, of which the 256 highest are taken, costs
more than matching does. Instead ranks are drawn, "the 17th, the 4,025th, ... negative",
and looked up.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

# Anchors counted together in the look-up; near the root of a usual number of anchors.
BLOCK = 256


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
    positive, negative = sample_positions(
        key, labels, size=size, positive_fraction=positive_fraction
    )
    # What lies outside is dropped.
    drawn = jnp.concatenate([positive, negative])
    return jnp.zeros_like(labels, bool).at[drawn].set(True, mode="drop")


def sample_positions(
    key: jax.Array, labels: jax.Array, *, size: int, positive_fraction: float
) -> tuple[Int[Array, " P"], Int[Array, " size"]]:
    """Draw as `sample_balanced`: where the positives and the negatives are.

    Both are padded with A, which lies outside the labels.
    """
    if labels.ndim != 1:
        raise ValueError(f"labels must be [A], got shape {labels.shape}")
    if size < 1 or not 0 <= positive_fraction <= 1:
        raise ValueError(
            "size must be at least 1 and positive_fraction within [0, 1], got "
            f"{size} and {positive_fraction}"
        )
    for_positives, for_negatives = jax.random.split(key)
    most = int(size * positive_fraction)
    positive = _draw(for_positives, labels == 1, most, most)
    room = size - (positive < len(labels)).sum(dtype=jnp.int32)
    return positive, _draw(for_negatives, labels == 0, size, room)


def _draw(key, among, most: int, count) -> jax.Array:
    """Draw `count` (at most `most`, static) members of a subset [A]."""
    total = among.sum(dtype=jnp.int32)
    ranks = _distinct(key, total, most)
    taken = jnp.arange(most, dtype=jnp.int32) < jnp.minimum(count, total)
    return jnp.where(taken, _positions(among, ranks), len(among)).astype(jnp.int32)


def _distinct(key, total, most: int) -> jax.Array:
    """Draw min(most, total) distinct numbers below `total`; [most], in random order.

    Numbers are drawn with replacement and those that came before are dropped: the
    first `most` distinct ones are a uniform draw without replacement. There are too
    few of them with a probability below 1e-20. Where `total` is small the numbers below
    it are shuffled instead.
    """
    tries = 2 * most + 128
    for_draw, for_shuffle = jax.random.split(key)
    drawn = jax.random.randint(
        for_draw, (tries,), 0, jnp.maximum(total, 1), dtype=jnp.int32
    )
    shuffled = jax.random.permutation(for_shuffle, jnp.arange(tries, dtype=jnp.int32))
    number = jnp.where(total <= tries, shuffled, drawn)
    order = jnp.argsort(number, stable=True)
    ranked = number[order]
    first = jnp.concatenate([ranked[:1] >= 0, ranked[1:] != ranked[:-1]])
    new = jnp.zeros_like(first).at[order].set(first) & (number < total)
    place = jnp.where(new, jnp.cumsum(new, dtype=jnp.int32) - 1, most)
    return jnp.zeros_like(number[:most]).at[place].set(number, mode="drop")


def _positions(among, ranks) -> jax.Array:
    """Find the ranks[i]-th true entry of a mask [A], counted from 0."""
    short = -len(among) % BLOCK if len(among) else BLOCK
    blocks = jnp.pad(among, (0, short)).reshape(-1, BLOCK)
    before = jnp.cumsum(blocks.sum(axis=1, dtype=jnp.int32))  # up to a block's end
    block = (before[None, :] <= ranks[:, None]).sum(axis=1, dtype=jnp.int32)
    block = jnp.minimum(block, len(before) - 1)
    inside = blocks[block]
    rank = ranks - before[block] + inside.sum(axis=1, dtype=jnp.int32)
    count = jnp.cumsum(inside, axis=1, dtype=jnp.int32)
    return block * BLOCK + (count <= rank[:, None]).sum(axis=1, dtype=jnp.int32)
