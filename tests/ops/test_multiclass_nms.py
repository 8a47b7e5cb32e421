import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rpn_jax as rj
from tests import reference, strategies

N, C, K = 8, 3, 12
multiclass_nms = jax.jit(
    rj.multiclass_nms, static_argnames=("max_outputs", "max_candidates")
)
each_layout = pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])

# The first two overlap by 0.6, the third stands apart.
BOXES = np.array([[0, 0, 8, 1], [2, 0, 10, 1], [40, 0, 48, 1]], np.float32)
SCORES = np.array([[0.9, 0.3], [0.8, 0.7], [0.1, 0.2]], np.float32)


def found(boxes=BOXES, scores=SCORES, most=4, threshold=0.5, **options):
    result = multiclass_nms(
        np.asarray(boxes, np.float32),
        np.asarray(scores, np.float32),
        iou_threshold=threshold,
        max_outputs=most,
        **options,
    )
    assert result.valid.tolist() == [i >= 0 for i in result.indices.tolist()]
    return list(zip(result.indices.tolist(), result.classes.tolist(), strict=True))


PAD = (-1, -1)


class TestByHand:
    def test_suppression_is_within_a_class(self):
        assert found() == [(0, 0), (1, 1), (2, 1), (2, 0)]

    def test_each_class_may_have_its_own_boxes(self):
        boxes = np.stack([BOXES, BOXES], axis=1)
        assert found(boxes) == found()
        boxes[1, 0] += 100  # no longer on the first
        assert found(boxes, most=6) == [(0, 0), (1, 0), (1, 1), (2, 1), (2, 0), PAD]

    def test_ties_go_to_the_lower_box_and_then_class(self):
        scores = np.full((3, 2), 0.5)
        assert found(scores=scores, most=5) == [(0, 0), (0, 1), (2, 0), (2, 1), PAD]

    def test_candidates_exceed_the_score_threshold(self):
        assert found(score_threshold=np.float32(0.2)) == [(0, 0), (1, 1), PAD, PAD]

    def test_the_best_candidates_enter(self):
        # The cut keeps 0.9, 0.8, 0.7: then one of them is suppressed.
        assert found(max_candidates=3) == [(0, 0), (1, 1), PAD, PAD]

    def test_what_takes_no_part_takes_no_candidate_place(self):
        boxes, scores = BOXES.copy(), SCORES.copy()
        boxes[0, 0], scores[1, 1] = np.nan, np.nan
        wanted = [(1, 0), (2, 1), PAD, PAD]
        assert found(boxes, scores, max_candidates=2) == wanted
        valid = np.array([False, True, True])
        assert found(scores=scores, valid=valid, max_candidates=2) == wanted

    @pytest.mark.parametrize("shape", [(0, 2), (3, 0), (0, 0)])
    @pytest.mark.parametrize("most", [None, 5])
    def test_no_candidates(self, shape, most):
        boxes = np.zeros((shape[0], 4))
        assert found(boxes, np.zeros(shape), 2, max_candidates=most) == [PAD, PAD]
        boxes = np.zeros((*shape, 4))
        assert found(boxes, np.zeros(shape), 2, max_candidates=most) == [PAD, PAD]

    def test_nothing_but_padding(self):
        assert found(valid=np.zeros(3, bool)) == [PAD] * 4


def test_keeps_what_torchvision_keeps(golden):
    arrays = golden("nms_batched")
    groups = arrays["idxs"].astype(int)
    scores = np.full((len(groups), groups.max() + 1), -np.inf, np.float32)
    scores[np.arange(len(groups)), groups] = arrays["scores"]
    result = multiclass_nms(
        arrays["boxes"],
        scores,
        iou_threshold=float(arrays["threshold"]),
        max_outputs=1500,
    )
    kept = np.asarray(result.indices)[np.asarray(result.valid)]
    np.testing.assert_array_equal(kept, arrays["keep"])
    classes = np.asarray(result.classes)[np.asarray(result.valid)]
    np.testing.assert_array_equal(classes, groups[kept])


def class_by_class(boxes, scores, threshold, most, valid, least):
    """Run NMS on each class alone and merge what is kept."""
    pairs = []
    for c in range(C):
        those = valid & (scores[:, c] > least)
        kept = reference.nms(
            boxes[:, c], scores[:, c], threshold, N, those, np.zeros(N)
        )
        pairs += [(i, c) for i in kept if i >= 0]
    pairs.sort(key=lambda pair: (-scores[pair], pair))
    return (pairs + [PAD] * most)[:most]


@each_layout
class TestReference:
    @given(
        boxes=strategies.odd_boxes(N * C),
        scores=strategies.scores(N * C),
        valid=strategies.masks(N),
        threshold=st.sampled_from(strategies.THRESHOLDS),
        least=st.sampled_from([-np.inf, 0.0, 1.0]),
    )
    @settings(max_examples=30)
    def test_anything_that_goes_wrong(
        self, shared, boxes, scores, valid, threshold, least
    ):
        scores = scores.reshape(N, C)
        boxes = boxes.reshape(N, C, 4)
        boxes = np.repeat(boxes[:, :1], C, axis=1) if shared else boxes
        wanted = class_by_class(boxes, scores, threshold, K, valid, least)
        options = {"score_threshold": np.float32(least), "valid": valid}
        boxes = boxes[:, 0] if shared else boxes
        assert found(boxes, scores, K, threshold, **options) == wanted
        if (valid[:, None] & (scores > least)).sum() < N * C:
            options["max_candidates"] = N * C - 1
            assert found(boxes, scores, K, threshold, **options) == wanted

    @given(
        boxes=strategies.grid_boxes(N * C),
        scores=strategies.scores(N * C),
        valid=strategies.masks(N),
        filling=st.sampled_from([np.nan, np.inf, -np.inf, 3]),
    )
    @settings(max_examples=20)
    def test_what_padding_holds_and_how_much_changes_nothing(
        self, shared, boxes, scores, valid, filling
    ):
        scores = scores.reshape(N, C)
        boxes = boxes.reshape(N, C, 4)
        boxes = boxes[:, 0] if shared else boxes
        filled = np.where(valid.reshape(N, *[1] * (boxes.ndim - 1)), boxes, filling)
        again = found(
            np.concatenate([filled, filled[:2]]),
            np.pad(np.where(valid[:, None], scores, filling), [(0, 2), (0, 0)]),
            K,
            valid=np.pad(valid, (0, 2)),
        )
        assert found(boxes, scores, K, valid=valid) == again


def test_gradient_flows_through_what_is_kept():
    def total(scores):
        kept = multiclass_nms(BOXES, scores, iou_threshold=0.5, max_outputs=3)
        return jnp.where(kept.valid, scores[kept.indices, kept.classes], 0.0).sum()

    assert jax.grad(total)(SCORES).tolist() == [[1, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": jnp.zeros((3, 5))}, r"boxes must be .*got shape \(3, 5\)"),
        ({"boxes": jnp.zeros((3, 3, 4))}, r"\[N, C, 4\] .* got shape \(3, 3, 4\)"),
        ({"boxes": jnp.zeros((2, 4))}, r"boxes must be \[N, 4\] or .*\(2, 4\)"),
        ({"scores": jnp.zeros(3)}, r"scores must be \[N, C\], got shape \(3,\)"),
        ({"max_outputs": 0}, "max_outputs must be at least 1, got 0"),
        ({"max_candidates": 0}, "max_candidates must be at least 1, got 0"),
        ({"valid": jnp.zeros(3)}, "valid must be boolean"),
        ({"valid": jnp.zeros(2, bool)}, r"valid must have shape \(3,\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    args = {"boxes": BOXES, "scores": SCORES, "max_outputs": 2}
    with pytest.raises(ValueError, match=message):
        rj.multiclass_nms(**(args | change), iou_threshold=0.5)
