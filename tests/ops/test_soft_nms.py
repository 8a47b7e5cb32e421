from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import rpn_jax as rj
from experiments.plain_nms import Case, soft_greedy
from tests import strategies

N = 16
METHODS = ("linear", "gaussian")
each_method = pytest.mark.parametrize("method", METHODS)
soft_nms = jax.jit(rj.soft_nms, static_argnames=("max_outputs", "method"))

# IoU 0.6 of neighbours, 1/3 of the outer two.
CHAIN = np.array([[0, 0, 8, 1], [2, 0, 10, 1], [4, 0, 12, 1]], np.float32)
SCORES = np.array([1, 0.9, 0.8], np.float32)


def found(boxes=CHAIN, scores=SCORES, most=3, **options):
    result = soft_nms(
        np.asarray(boxes, np.float32),
        np.asarray(scores, np.float32),
        max_outputs=most,
        **options,
    )
    assert result.valid.tolist() == [i >= 0 for i in result.indices.tolist()]
    return result.indices.tolist(), result.scores.tolist()


class TestByHand:
    def test_linear(self):
        indices, scores = found()
        assert indices == [0, 2, 1]
        assert scores == pytest.approx([1, 0.8 * 2 / 3, 0.9 * 0.4 * 0.4])

    def test_gaussian(self):
        indices, scores = found(method="gaussian", sigma=0.5)
        assert indices == [0, 2, 1]
        twice = 0.9 * np.exp(-0.36 / 0.5) ** 2
        assert scores == pytest.approx([1, 0.8 * np.exp(-1 / 9 / 0.5), twice])

    def test_overlap_equal_to_the_threshold_costs_nothing(self):
        indices, scores = found(iou_threshold=np.float32(0.6))
        assert (indices, scores) == ([0, 1, 2], SCORES.tolist())
        below = np.nextafter(np.float32(0.6), np.float32(0))
        assert found(iou_threshold=below)[0] == [0, 2, 1]

    def test_threshold_one_is_top_k(self):
        assert found([[0, 0, 4, 4]] * 3, iou_threshold=1.0) == ([0, 1, 2], list(SCORES))

    @each_method
    def test_ties_go_to_the_lower_index(self, method):
        far = CHAIN + 100 * np.arange(3, dtype=np.float32)[:, None]
        assert found(far, [0.5, 0.7, 0.7], method=method)[0] == [1, 2, 0]

    def test_score_equal_to_the_threshold_stays(self):
        boxes = [[0, 0, 6, 1], [2, 0, 8, 1], [20, 0, 28, 1]]  # IoU 1/2
        scores = [1, 0.5, 0.125]
        indices, values = found(boxes, scores, score_threshold=0.25)
        assert (indices, values) == ([0, 1, -1], [1, 0.25, 0])
        assert found(boxes, scores, score_threshold=0.26)[0] == [0, -1, -1]

    @pytest.mark.parametrize(
        "least, kept", [(0.001, [0, -1]), (0, [0, 1]), (-1, [0, 1])]
    )
    def test_a_copy_has_score_zero_left(self, least, kept):
        boxes = [[0, 0, 4, 4], [0, 0, 4, 4]]
        indices, scores = found(boxes, [1, 0.5], 2, score_threshold=least)
        assert indices == kept
        assert scores == [1, 0]

    @each_method
    def test_groups_do_not_meet(self, method):
        groups = np.array([7, -3, 7])
        indices, scores = found(groups=groups, iou_threshold=0.5, method=method)
        assert indices[:2] == [0, 1]
        assert scores[:2] == SCORES[:2].tolist()

    @each_method
    def test_boxes_without_area_lower_nothing(self, method):
        boxes = [[1, 1, 1, 5], [0, 0, 8, 8], [8, 8, 0, 0]]
        assert found(boxes, method=method) == ([0, 1, 2], SCORES.tolist())

    def test_output_is_cut_and_padded(self):
        assert found(most=1)[0] == [0]
        assert found(most=5)[0] == [0, 2, 1, -1, -1]
        assert found(most=5)[1][3:] == [0, 0]

    def test_no_boxes(self):
        assert found(np.zeros((0, 4)), np.zeros(0), 2) == ([-1, -1], [0, 0])

    def test_nothing_but_padding(self):
        assert found(valid=np.zeros(3, bool)) == ([-1] * 3, [0] * 3)

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, -0.5])
    def test_scores_that_are_none_are_out(self, wrong):
        assert found(scores=[wrong, 0.9, 0.8], score_threshold=-1.0)[0] == [1, 2, -1]

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    def test_boxes_that_are_not_finite_are_out(self, wrong):
        boxes = CHAIN.copy()
        boxes[0, 3] = wrong
        assert found(boxes)[0] == [1, 2, -1]


@each_method
class TestReference:
    @given(
        boxes=strategies.odd_boxes(N),
        scores=strategies.scores(N),
        valid=strategies.masks(N),
        groups=strategies.groups(N),
        threshold=st.sampled_from(strategies.THRESHOLDS),
        least=st.sampled_from([0.001, 0.5, 1.0]),
    )
    def test_anything_that_goes_wrong(
        self, method, boxes, scores, valid, groups, threshold, least
    ):
        result = soft_nms(
            boxes,
            scores,
            max_outputs=N,
            method=method,
            iou_threshold=threshold,
            sigma=threshold + np.float32(0.1),
            score_threshold=least,
            valid=valid,
            groups=groups,
        )
        case = Case(boxes, scores, valid, groups, np.float32(threshold))
        (indices, values), _ = soft_greedy(
            case, N, method=method, score_threshold=least
        )
        np.testing.assert_array_equal(result.indices, indices)
        np.testing.assert_array_equal(result.scores, values)
        np.testing.assert_array_equal(result.valid, indices >= 0)

    @given(
        boxes=strategies.grid_boxes(N),
        scores=strategies.scores(N),
        valid=strategies.masks(N),
        filling=st.sampled_from([np.nan, np.inf, -np.inf, 3]),
    )
    @settings(max_examples=20)
    def test_what_padding_holds_and_how_much_changes_nothing(
        self, method, boxes, scores, valid, filling
    ):
        those = partial(soft_nms, max_outputs=N, method=method)
        kept = those(boxes, scores, valid=valid)
        again = those(
            np.pad(
                np.where(valid[:, None], boxes, np.float32(filling)), [(0, 5), (0, 0)]
            ),
            np.pad(np.where(valid, scores, np.float32(filling)), (0, 5)),
            valid=np.pad(valid, (0, 5)),
        )
        jax.tree.map(np.testing.assert_array_equal, kept, again)


@each_method
class TestGradient:
    def test_of_the_scores_is_what_is_left_of_them(self, method):
        def total(scores):
            return soft_nms(CHAIN, scores, max_outputs=3, method=method).scores.sum()

        left = [1, 0.16, 2 / 3]
        if method == "gaussian":
            left = np.exp([0, -2 * 0.36 / 0.5, -1 / 9 / 0.5])
        np.testing.assert_allclose(jax.grad(total)(SCORES), left, rtol=1e-5)

    def test_agrees_with_differences(self, method):
        def scores(boxes, scores, sigma):
            return soft_nms(
                boxes, scores, max_outputs=3, method=method, sigma=sigma
            ).scores

        boxes = CHAIN + np.float32([0.1, -0.3, 0.2, 0.3])
        args = boxes, SCORES, np.float32(0.5)
        check_grads(scores, args, order=1, modes=("rev",), atol=1e-2, rtol=1e-2)

    @given(
        boxes=strategies.odd_boxes(N),
        scores=strategies.scores(N),
        valid=strategies.masks(N),
    )
    @settings(max_examples=20)
    def test_is_finite(self, method, boxes, scores, valid):
        gradients = GRADIENTS[method](boxes, scores, valid)
        assert all(np.isfinite(x).all() for x in gradients)


def total(method, boxes, scores, valid):
    return rj.soft_nms(
        boxes, scores, max_outputs=N, method=method, valid=valid
    ).scores.sum()


GRADIENTS = {m: jax.jit(jax.grad(partial(total, m), argnums=(0, 1))) for m in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_areas_that_overflow_lower_no_score_and_have_finite_gradients(method):
    boxes = jnp.array([[0.0, 0, 1e20, 1e20], [0, 0, 10, 10], [0, 0, 10, 8]])
    scores = jnp.array([0.9, 0.8, 0.1])
    options = {"max_outputs": 3, "method": method}
    found = rj.soft_nms(boxes, scores, **options)
    rest = rj.soft_nms(boxes[1:], scores[1:], **options)
    assert found.indices.tolist() == [0, 1, 2]
    assert found.scores[0] == scores[0]
    np.testing.assert_array_equal(found.scores[1:], rest.scores[:2])
    valid = jnp.ones(3, bool)
    for gradient in jax.grad(partial(total, method), argnums=(0, 1))(
        boxes, scores, valid
    ):
        assert np.isfinite(gradient).all()


def test_one_program_serves_every_threshold():
    program = jax.jit(partial(rj.soft_nms, max_outputs=3))
    for value in (0.1, 0.5, 0.9):
        program(CHAIN, SCORES, iou_threshold=value, score_threshold=value, sigma=value)
    assert program._cache_size() == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": jnp.zeros((3, 5))}, r"boxes must be \[N, 4\], got shape \(3, 5\)"),
        ({"scores": jnp.zeros(4)}, r"scores must have shape \(3,\), got \(4,\)"),
        ({"max_outputs": 0}, "max_outputs must be at least 1, got 0"),
        ({"method": "hard"}, "method must be one of linear, gaussian, got 'hard'"),
        ({"valid": jnp.zeros(3)}, "valid must be boolean"),
        ({"groups": jnp.zeros(3)}, "groups must be integers"),
        ({"groups": jnp.zeros(2, int)}, r"groups must have shape \(3,\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    args = {"boxes": jnp.zeros((3, 4)), "scores": jnp.zeros(3), "max_outputs": 2}
    with pytest.raises(ValueError, match=message):
        rj.soft_nms(**(args | change))
