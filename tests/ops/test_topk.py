import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rpn_jax as rj
from tests import reference, strategies

N = 12
top_k = jax.jit(rj.top_k, static_argnames="k")


def test_ties_go_to_the_lower_index():
    best = rj.top_k(jnp.array([1.0, 3, 2, 3, 3]), 3)
    assert best.indices.tolist() == [1, 3, 4]
    assert best.values.tolist() == [3, 3, 3]
    assert best.valid.all()


def test_two_zeros_are_a_tie():
    assert rj.top_k(jnp.array([-0.0, 0.0, -0.0]), 3).indices.tolist() == [0, 1, 2]


def test_nan_and_minus_infinity_are_never_chosen():
    best = rj.top_k(jnp.array([jnp.nan, 1, -jnp.inf, jnp.inf]), 4)
    assert best.indices.tolist() == [3, 1, -1, -1]
    assert best.values.tolist() == [jnp.inf, 1, 0, 0]
    assert best.valid.tolist() == [True, True, False, False]


def test_k_may_exceed_the_number_of_scores():
    best = rj.top_k(jnp.array([1.0, 2]), 4)
    assert best.indices.tolist() == [1, 0, -1, -1]


def test_no_scores():
    best = rj.top_k(jnp.zeros(0), 2)
    assert best.indices.tolist() == [-1, -1]
    assert not best.valid.any()


@pytest.mark.parametrize("k", [1, 5, N, N + 3])
@given(scores=strategies.scores(N), valid=strategies.masks(N))
def test_equals_the_reference(k, scores, valid):
    best = top_k(scores, k=k, valid=valid)
    expected = reference.top_k(scores, k, valid)
    np.testing.assert_array_equal(best.indices, expected)
    np.testing.assert_array_equal(best.valid, expected >= 0)
    values = np.where(expected >= 0, scores[expected], 0)
    np.testing.assert_array_equal(best.values, values)


@given(strategies.scores(N), strategies.masks(N), st.sampled_from([np.nan, np.inf, 7]))
def test_what_padding_holds_changes_nothing(scores, valid, filling):
    best = top_k(scores, k=5, valid=valid)
    again = top_k(np.where(valid, scores, np.float32(filling)), k=5, valid=valid)
    jax.tree.map(np.testing.assert_array_equal, best, again)


def test_all_of_many_scores():
    scores = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    best = rj.top_k(scores, 5000)
    np.testing.assert_array_equal(best.indices, np.argsort(-scores, kind="stable"))


def test_gradient_reaches_the_chosen_scores_only():
    scores = jnp.array([1.0, 5, jnp.nan, 3])
    grad = jax.grad(lambda s: rj.top_k(s, 3).values.sum())(scores)
    assert grad.tolist() == [1, 1, 0, 1]
    grad = jax.grad(lambda s: rj.top_k(s, 1).values.sum())(scores)
    assert grad.tolist() == [0, 1, 0, 0]


def test_half_precision_in_gives_float32_out():
    best = rj.top_k(jnp.array([1, 2], jnp.bfloat16), 2)
    assert best.values.dtype == jnp.float32


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"scores must be \[N\], got shape \(2, 3\)"):
        rj.top_k(jnp.zeros((2, 3)), 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        rj.top_k(jnp.zeros(3), 0)
    with pytest.raises(ValueError, match=r"valid.*\(3,\).*\(2,\)"):
        rj.top_k(jnp.zeros(3), 1, valid=jnp.ones(2, bool))
    with pytest.raises(ValueError, match="valid must be boolean"):
        rj.top_k(jnp.zeros(3), 1, valid=jnp.ones(3))
