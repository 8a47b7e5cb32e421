from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import rpn_jax as rj

N = 40


def sampler(size, positive_fraction):
    return jax.jit(
        partial(rj.sample_balanced, size=size, positive_fraction=positive_fraction)
    )


SAMPLERS = {
    (size, fraction): sampler(size, fraction)
    for size in (1, 8, N, 3 * N)
    for fraction in (0.0, 0.25, 0.5, 1.0)
}


def labels_of(positives: int, negatives: int, length: int) -> np.ndarray:
    """Positives, negatives and unused anchors in a random order."""
    labels = np.full(length, -1, np.int32)
    labels[:positives] = 1
    labels[positives : positives + negatives] = 0
    return np.random.default_rng(0).permutation(labels)


@pytest.mark.parametrize(
    "positives, negatives, drawn",
    [
        (500, 5000, (128, 128)),
        (30, 5000, (30, 226)),  # negatives fill up
        (0, 5000, (0, 256)),
        (500, 60, (128, 60)),  # positives do not
        (100, 100, (100, 100)),
        (500, 0, (128, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_256_anchors_of_which_half_positive(getkey, positives, negatives, drawn):
    labels = labels_of(positives, negatives, 6000)
    mask = np.asarray(sampler(256, 0.5)(getkey(), labels))
    assert ((mask & (labels == 1)).sum(), (mask & (labels == 0)).sum()) == drawn
    assert mask.sum() == sum(drawn)


@given(
    labels=arrays(np.int8, N, elements=st.integers(-2, 2)),
    seed=st.integers(0, 2**31 - 1),
    option=st.sampled_from(sorted(SAMPLERS)),
)
def test_counts_are_exact(labels, seed, option):
    size, fraction = option
    mask = np.asarray(SAMPLERS[option](jax.random.key(seed), labels))
    positives, negatives = (labels == 1).sum(), (labels == 0).sum()
    expected = min(positives, int(size * fraction))
    assert (mask & (labels == 1)).sum() == expected
    assert (mask & (labels == 0)).sum() == min(negatives, size - expected)
    assert not mask[(labels != 0) & (labels != 1)].any()


# Few anchors are shuffled, of many ranks are drawn; blocks of both kinds of a look-up.
@pytest.mark.parametrize("length, positives, negatives", [(N, 12, 25), (700, 150, 400)])
def test_every_anchor_is_equally_likely(length, positives, negatives):
    labels = labels_of(positives, negatives, length)
    keys = jax.random.split(jax.random.key(3), 4000)
    draw = jax.jit(jax.vmap(lambda key: SAMPLERS[8, 0.5](key, labels)))
    rate = np.asarray(draw(keys)).mean(axis=0)
    # Four of the positives, four of the negatives; five standard deviations.
    for label, expected in ((1, 4 / positives), (0, 4 / negatives)):
        error = 5 * (expected * (1 - expected) / 4000) ** 0.5
        np.testing.assert_allclose(rate[labels == label], expected, atol=error)


def test_pairs_are_equally_likely():
    # Uniform over anchors is not yet uniform over sets of them.
    labels = np.ones(4, np.int32)
    keys = jax.random.split(jax.random.key(4), 6000)
    draw = jax.jit(jax.vmap(lambda key: sampler(2, 1.0)(key, labels)))
    masks = np.asarray(draw(keys))
    _, counts = np.unique(masks, axis=0, return_counts=True)
    assert len(counts) == 6
    np.testing.assert_allclose(counts, 1000, atol=5 * 1000**0.5)


def test_the_key_decides():
    labels = labels_of(12, 25, N)
    one, two = jax.random.split(jax.random.key(5))
    draw = SAMPLERS[8, 0.5]
    np.testing.assert_array_equal(draw(one, labels), draw(one, labels))
    assert (np.asarray(draw(one, labels)) != np.asarray(draw(two, labels))).any()


def test_one_and_eight_devices_draw_the_same(devices):
    labels = np.stack([labels_of(n, 300, 512) for n in range(0, 64, 8)])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(6), jnp.arange(8))
    draw = jax.jit(
        jax.vmap(partial(rj.sample_balanced, size=64, positive_fraction=0.5))
    )
    alone = np.asarray(draw(keys, labels))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("data"))
    spread = draw(*jax.device_put((keys, labels), split))
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_array_equal(spread, alone)


@pytest.mark.parametrize(
    "options, name",
    [
        ({"size": 0, "positive_fraction": 0.5}, "size"),
        ({"size": 8, "positive_fraction": 1.5}, "positive_fraction"),
    ],
)
def test_wrong_options_are_named(getkey, options, name):
    with pytest.raises(ValueError, match=name):
        rj.sample_balanced(getkey(), jnp.zeros(4, int), **options)


def test_labels_must_be_a_vector(getkey):
    with pytest.raises(ValueError, match=r"labels must be \[A\], got shape \(2, 3\)"):
        rj.sample_balanced(
            getkey(), jnp.zeros((2, 3), int), size=4, positive_fraction=0.5
        )


@pytest.mark.parametrize("most", [1, 2, 8, 40, 128, 256])
def test_too_few_ranks_are_drawn_once_in_a_hundred_trillion_years(most):
    """Exact chance that so many tries among the fewest numbers give too few ranks."""
    tries = 2 * most + 128
    numbers = tries + 1  # from here on ranks are drawn with replacement
    chance = np.zeros(most + 1)  # chance[d]: d distinct ones so far; the last: enough
    chance[0] = 1
    seen = np.arange(most)
    for _ in range(tries):
        stay = chance[:-1] * (seen / numbers)
        move = chance[:-1] - stay
        chance[:-1] = stay
        chance[1:] += move
    assert chance[:-1].sum() < 1e-20
