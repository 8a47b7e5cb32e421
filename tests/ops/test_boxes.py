import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import rpn_jax as rj
from tests import reference, strategies

PAIRWISE = {
    "iou": rj.box_iou,
    "giou": rj.generalized_box_iou,
    "diou": rj.distance_box_iou,
    "ciou": rj.complete_box_iou,
}
pairwise_ops = pytest.mark.parametrize("name", PAIRWISE)

# Two unit squares, one shifted by half, one apart, one of no width.
SQUARES = jnp.array([[0, 0, 2, 2], [1, 0, 3, 2], [4, 0, 6, 2], [1, 0, 1, 2]], float)


def same_bits(a, b):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32))


class TestFormats:
    @pytest.mark.parametrize(
        "fmt, values",
        [
            ("xyxy", [10, 20, 14, 30]),
            ("xywh", [10, 20, 4, 10]),
            ("cxcywh", [12, 25, 4, 10]),
        ],
    )
    def test_one_box_in_three_formats(self, fmt, values):
        box = jnp.array([10, 20, 14, 30], jnp.float32)
        assert rj.box_convert(box, "xyxy", fmt).tolist() == values
        back = rj.box_convert(jnp.array(values, jnp.float32), fmt, "xyxy")
        assert back.tolist() == box.tolist()

    @pytest.mark.parametrize("a", ["xyxy", "xywh", "cxcywh"])
    @pytest.mark.parametrize("b", ["xyxy", "xywh", "cxcywh"])
    def test_there_and_back(self, a, b):
        boxes = np.random.default_rng(0).uniform(1, 50, (2, 9, 4)).astype(np.float32)
        there = rj.box_convert(boxes, a, b)
        np.testing.assert_allclose(rj.box_convert(there, b, a), boxes, atol=1e-5)

    def test_unknown_format_is_named(self):
        with pytest.raises(ValueError, match="in_fmt.*'yxyx'"):
            rj.box_convert(SQUARES, "yxyx", "xyxy")


class TestArea:
    def test_by_hand(self):
        assert rj.box_area(SQUARES).tolist() == [4, 4, 4, 0]

    def test_inverted_box_is_empty(self):
        assert rj.box_area(jnp.array([3.0, 0, 1, 5])) == 0

    def test_equals_the_peer(self, golden):
        arrays = golden("iou_pairwise")
        same_bits(rj.box_area(arrays["boxes1"]), arrays["area1"])


class TestClip:
    def test_by_hand(self):
        boxes = jnp.array([[-5.0, -6, 50, 60], [3, 4, 5, 6], [40, 50, 60, 70]])
        clipped = rj.clip_boxes_to_image(boxes, (20, 30))
        assert clipped.tolist() == [[0, 0, 30, 20], [3, 4, 5, 6], [30, 20, 30, 20]]

    def test_size_may_be_traced(self):
        boxes = jnp.array([[-5.0, -6, 50, 60]])
        clip = jax.jit(lambda *args: rj.clip_boxes_to_image(*args))
        assert clip(boxes, jnp.array([7, 8])).tolist() == [[0, 0, 8, 7]]
        assert clip(boxes, jnp.array([9, 6])).tolist() == [[0, 0, 6, 9]]
        assert clip._cache_size() == 1

    def test_any_leading_dimensions(self):
        boxes = jnp.full((2, 3, 4), 99.0)
        assert rj.clip_boxes_to_image(boxes, (5, 5)).shape == (2, 3, 4)


class TestOverlap:
    def test_iou_by_hand(self):
        expected = np.float32([1, 1 / 3, 0, 0])
        np.testing.assert_array_equal(rj.box_iou(SQUARES[:1], SQUARES)[0], expected)

    def test_ioa_divides_by_the_second_area(self):
        small = jnp.array([[0.0, 0, 1, 1]])
        assert rj.box_ioa(SQUARES[:1], small).tolist() == [[1]]
        assert rj.box_ioa(small, SQUARES[:1]).tolist() == [[0.25]]

    def test_giou_of_distant_boxes_by_hand(self):
        # Union 8 in an enclosing box of 12.
        giou = rj.generalized_box_iou(SQUARES[:1], SQUARES[2:3])
        np.testing.assert_allclose(giou, [[-4 / 12]], rtol=1e-6)

    def test_diou_by_hand(self):
        # Centres 4 apart, diagonal of the enclosing box sqrt(36 + 4).
        diou = rj.distance_box_iou(SQUARES[:1], SQUARES[2:3])
        np.testing.assert_allclose(diou, [[-16 / 40]], rtol=1e-6)

    def test_two_empty_boxes_have_iou_zero(self):
        point = jnp.array([[3.0, 3, 3, 3]])
        assert rj.box_iou(point, point) == 0
        assert rj.generalized_box_iou(point, point) == 0
        assert rj.box_ioa(point, point) == 0

    @pytest.mark.parametrize("peer", ["tv", "d2"])
    def test_iou_equals_the_peers_to_the_bit(self, golden, peer):
        arrays = golden("iou_pairwise")
        iou = rj.box_iou(arrays["boxes1"], arrays["boxes2"])
        same_bits(iou, arrays[f"{peer}_iou"])

    def test_ioa_equals_the_peer(self, golden):
        arrays = golden("iou_pairwise")
        ours = rj.box_ioa(arrays["boxes1"], arrays["boxes2"])
        np.testing.assert_allclose(ours, arrays["d2_ioa"], rtol=1e-6)

    @pytest.mark.parametrize("name", ["giou", "diou", "ciou"])
    def test_family_equals_the_peer(self, golden, name):
        arrays = golden("iou_pairwise")
        ours = PAIRWISE[name](arrays["boxes1"], arrays["boxes2"])
        np.testing.assert_allclose(ours, arrays[f"tv_{name}"], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("key", ["tv_iou", "d2_iou"])
    def test_proper_boxes_among_degenerate_ones(self, golden, key):
        arrays = golden("iou_degenerate")
        boxes, theirs = arrays["boxes"], arrays[key]
        proper = np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        compared = proper[:, None] & proper[None] & np.isfinite(theirs)
        assert compared.sum() >= 9
        same_bits(np.asarray(rj.box_iou(boxes, boxes))[compared], theirs[compared])

    @pairwise_ops
    def test_degenerate_boxes_give_finite_values(self, golden, name):
        boxes = golden("iou_degenerate")["boxes"]
        assert np.isfinite(PAIRWISE[name](boxes, boxes)).all()

    @given(strategies.grid_boxes(7), strategies.grid_boxes(5))
    def test_whole_coordinates_equal_the_reference_to_the_bit(self, a, b):
        same_bits(jax.jit(rj.box_iou)(a, b), reference.iou(a[:, None], b[None]))

    @given(strategies.real_boxes(7), strategies.real_boxes(5))
    def test_real_coordinates_equal_the_reference_to_the_bit(self, a, b):
        same_bits(jax.jit(rj.box_iou)(a, b), reference.iou(a[:, None], b[None]))
        ioa = reference.ioa(a[:, None], b[None])
        np.testing.assert_allclose(jax.jit(rj.box_ioa)(a, b), ioa, rtol=1e-6)

    @pytest.mark.parametrize("compile", [jax.jit, lambda f: f])
    def test_many_pairs_equal_the_reference_to_the_bit(self, compile):
        # Enough pairs for the compiler's vector code; the clamps keep it from FMA.
        rng = np.random.default_rng(0)
        low = rng.uniform(0, 900, (700, 2))
        boxes = np.concatenate([low, low + rng.uniform(1, 400, (700, 2))], axis=1)
        boxes = boxes.astype(np.float32)
        ours = np.asarray(compile(rj.box_iou)(boxes, boxes))
        same_bits(ours, reference.iou(boxes[:, None], boxes[None]))
        same_bits(ours, ours.T)

    @pytest.mark.parametrize("name", ["giou", "diou", "ciou"])
    @given(a=strategies.real_boxes(7), b=strategies.real_boxes(5))
    def test_family_equals_the_reference(self, name, a, b):
        ours = jax.jit(PAIRWISE[name])(a, b)
        theirs = getattr(reference, name)(a[:, None], b[None])
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)

    @pairwise_ops
    @given(a=strategies.odd_boxes(6), b=strategies.odd_boxes(4))
    def test_finite_boxes_give_finite_values_in_range(self, name, a, b):
        a, b = np.nan_to_num(a, posinf=1e4, neginf=-1e4), np.nan_to_num(b, posinf=1e4)
        b = np.clip(b, -1e4, 1e4)
        values = np.asarray(jax.jit(PAIRWISE[name])(a, b))
        assert np.isfinite(values).all()
        if name == "iou":
            assert ((0 <= values) & (values <= 1)).all()

    @pairwise_ops
    def test_shifting_and_scaling_both_changes_nothing(self, name):
        rng = np.random.default_rng(1)
        a, b = (
            strategies.from_corner_and_size(rng.integers(1, 40, (n, 4)))
            for n in (9, 11)
        )
        values = PAIRWISE[name](a, b)
        np.testing.assert_allclose(
            PAIRWISE[name](a + np.float32(32), b + np.float32(32)), values, atol=1e-6
        )
        np.testing.assert_allclose(
            PAIRWISE[name](a * np.float32(4), b * np.float32(4)), values, atol=1e-6
        )

    @pairwise_ops
    def test_gradients_are_finite_even_for_empty_boxes(self, name, golden):
        boxes = jnp.concatenate([SQUARES, jnp.zeros((2, 4)), SQUARES[:1]])
        grad = jax.grad(lambda a, b: PAIRWISE[name](a, b).sum(), argnums=(0, 1))
        for g in grad(boxes, boxes):
            assert np.isfinite(g).all()

    @pairwise_ops
    def test_half_precision_in_gives_float32_out(self, name):
        half = SQUARES.astype(jnp.bfloat16)
        values = PAIRWISE[name](half, half)
        assert values.dtype == jnp.float32
        np.testing.assert_array_equal(values, PAIRWISE[name](SQUARES, SQUARES))

    @pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 3, 4)])
    @pairwise_ops
    def test_wrong_shape_is_named(self, name, shape):
        with pytest.raises(ValueError, match=r"boxes2 must be .*4\]"):
            PAIRWISE[name](SQUARES, jnp.zeros(shape))

    @pairwise_ops
    def test_wrong_dtype_is_named(self, name):
        with pytest.raises(ValueError, match="boxes1.*bool"):
            PAIRWISE[name](jnp.zeros((2, 4), bool), SQUARES)

    @pairwise_ops
    @pytest.mark.parametrize("n, m", [(0, 3), (3, 0), (0, 0)])
    def test_no_boxes(self, name, n, m):
        assert PAIRWISE[name](jnp.zeros((n, 4)), jnp.zeros((m, 4))).shape == (n, m)
