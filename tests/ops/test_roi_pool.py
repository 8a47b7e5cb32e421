from functools import partial
from unittest import mock

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rpn_jax as rj
from tests import reference, strategies

N, H, W, C = 6, 5, 7, 2
RANDOM = np.random.default_rng(0)
# Whole numbers, so that maxima are tied.
FEATURES = RANDOM.integers(-3, 3, (H, W, C)).astype(np.float32)
STATIC = ("output_size", "spatial_scale")


def with_gradient(features, boxes, valid, cotangent, **options):
    """Pool, and pull a cotangent back to the features."""
    pool = partial(rj.roi_pool, boxes=boxes, valid=valid, **options)
    pooled, pull = jax.vjp(pool, features)
    return pooled, pull(cotangent)[0]


def portable(*args, **options):
    """Run the form for accelerators."""

    def choose(*args, cpu, default):
        return default(*args)

    with mock.patch("jax.lax.platform_dependent", choose):
        return with_gradient(*args, **options)


FORMS = {
    "native": jax.jit(with_gradient, static_argnames=STATIC),
    "portable": jax.jit(portable, static_argnames=STATIC),
}
each_form = pytest.mark.parametrize("form", FORMS)
roi_pool = jax.jit(rj.roi_pool, static_argnames=STATIC)


def pool(features, boxes, **options):
    """Pool [H, W] features into [R, P, Q], as a list."""
    return roi_pool(
        np.asarray(features, np.float32)[..., None],
        np.asarray(boxes, np.float32),
        **({"output_size": 1, "spatial_scale": 1.0} | options),
    )[..., 0].tolist()


RAMP = np.tile(np.arange(1.0, 9), (8, 1))  # each row: 1 to 8


class TestByHand:
    def test_both_corners_belong_to_the_box(self):
        assert pool(RAMP, [[2, 0, 5, 3]]) == [[[6]]]

    def test_corners_are_rounded_and_halves_away_from_zero(self):
        assert pool(RAMP, [[0, 0, 2.25, 3], [0, 0, 2.5, 3]]) == [[[3]], [[4]]]
        assert pool(-RAMP, [[-0.5, 0, 0, 3], [1.5, 0, 4, 3]]) == [[[-1]], [[-3]]]

    def test_neighbours_share_the_cell_of_their_border(self):
        # Of three cells each half gets two.
        assert pool(-RAMP, [[1, 1, 3, 3]], output_size=(1, 2)) == [[[-2, -3]]]

    def test_boxes_are_scaled_to_cells(self):
        assert pool(RAMP, [[4, 4, 20, 20]], spatial_scale=0.25) == [[[6]]]

    def test_a_box_has_a_cell_at_least(self):
        assert pool(RAMP, [[3, 2, 3, 2], [5, 4, 3, 1]]) == [[[4]], [[6]]]

    def test_bins_off_the_map_are_nothing(self):
        assert pool(-RAMP, [[6, 0, 9, 3]], output_size=(1, 2)) == [[[-7, 0]]]
        assert pool(RAMP, [[-30, 0, -20, 9], [0, 900, 9, 909]]) == [[[0]]] * 2

    def test_a_box_far_larger_than_the_map(self):
        assert pool(RAMP, [[-1e6, -1e6, 1e6, 1e6]]) == [[[8]]]

    def test_no_boxes(self):
        assert pool(RAMP, np.zeros((0, 4))) == []

    def test_half_precision_gives_float32(self):
        pooled = rj.roi_pool(
            jnp.ones((4, 4, 1), jnp.bfloat16),
            jnp.array([[0.0, 0, 4, 4]]),
            output_size=2,
            spatial_scale=1.0,
        )
        assert pooled.dtype == jnp.float32

    @pytest.mark.parametrize("form", FORMS)
    def test_gradient_goes_to_the_first_of_equal_maxima(self, form):
        features = np.zeros((3, 6, 1), np.float32)
        features[0, 5] = features[1, 0] = 1  # the first lies in a later block
        _, gradient = FORMS[form](
            features,
            np.array([[0, 0, 5, 2]], np.float32),
            None,
            np.full((1, 1, 1, 1), 2, np.float32),
            output_size=1,
            spatial_scale=1.0,
        )
        assert np.argwhere(gradient).tolist() == [[0, 5, 0]]
        assert gradient[0, 5, 0] == 2


def nhwc(x):
    return np.moveaxis(x, 1, -1)


@each_form
def test_values_and_gradients_of_torchvision(golden, form):
    arrays = golden("roi_pool")
    features, rois = nhwc(arrays["features"]), arrays["rois"]
    pooled = 0
    for image in (0, 1):
        part, gradient = FORMS[form](
            features[image],
            rois[:, 1:],
            rois[:, 0] == image,
            nhwc(arrays["cotangent"]),
            output_size=7,
            spatial_scale=1 / 16,
        )
        pooled += part
        expected = nhwc(arrays["grad"])[image]
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(pooled, nhwc(arrays["roi_pool"]))


@pytest.mark.parametrize("size", [224, 56])
def test_pyramids_of_detectron2(golden, size):
    arrays = golden(f"multiscale_roi_align_canon{size}")
    boxes = np.concatenate([arrays["boxes_0"], arrays["boxes_1"]])
    image = np.arange(len(boxes)) >= len(arrays["boxes_0"])
    levels = rj.assign_levels(
        boxes, min_level=2, max_level=5, canonical_size=size, rule="detectron2"
    )
    pooled = sum(
        roi_pool(
            nhwc(arrays[f"feature_{level}"])[i],
            boxes,
            output_size=7,
            spatial_scale=float(scale),
            valid=(levels == level) & (image == i),
        )
        for level, scale in enumerate(arrays["tv_scales"])
        for i in (0, 1)
    )
    np.testing.assert_array_equal(pooled, nhwc(arrays["d2_ROIPool"]))


@each_form
class TestReference:
    def check(self, form, boxes, valid, **options):
        shape = (len(boxes), *options["output_size"], C)
        cotangent = RANDOM.normal(size=shape).astype(np.float32)
        args = FEATURES, boxes, valid, cotangent
        pooled, gradient = FORMS[form](*args, **options)
        expected, expected_gradient = reference.roi_pool(*args, **options)
        np.testing.assert_array_equal(pooled, expected)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)

    @given(boxes=strategies.odd_boxes(N), valid=strategies.masks(N))
    @settings(max_examples=30)
    def test_anything_that_goes_wrong(self, form, boxes, valid):
        self.check(form, boxes, valid, output_size=(2, 3), spatial_scale=0.25)

    @given(sides=st.lists(st.integers(0, 100), min_size=2 * N, max_size=2 * N))
    @settings(max_examples=30)
    def test_sizes_that_the_bins_divide_but_for_rounding(self, form, sides):
        # 7 * (31 / 7) is more than 31 in float32, and so is one cell more.
        sides = np.array([30, 56, *sides[2:]], np.float32).reshape(N, 2)
        boxes = np.concatenate([0 * sides, sides], axis=1)
        boxes -= np.float32(29)
        options = {"output_size": (7, 7), "spatial_scale": 1.0}
        self.check(form, boxes, np.ones(N, bool), **options)

    @given(
        boxes=strategies.real_boxes(N),
        valid=strategies.masks(N),
        filling=st.sampled_from([np.nan, np.inf, -np.inf, 3]),
    )
    @settings(max_examples=20)
    def test_what_padding_holds_changes_nothing(self, form, boxes, valid, filling):
        run = partial(FORMS[form], output_size=(2, 3), spatial_scale=0.25)
        filling, padded = np.float32(filling), ~valid[:, None, None, None]
        cotangent = np.ones((N, 2, 3, C), np.float32)
        pooled, gradient = run(FEATURES, boxes, valid, cotangent)
        again, same = run(
            FEATURES,
            np.where(valid[:, None], boxes, filling),
            valid,
            np.where(padded, filling, cotangent),
        )
        np.testing.assert_array_equal(pooled, again)
        np.testing.assert_array_equal(gradient, same)
        assert not pooled[~valid].any()


def test_boxes_get_no_gradient():
    def total(boxes):
        return roi_pool(FEATURES, boxes, output_size=2, spatial_scale=0.25).sum()

    assert not jax.grad(total)(jnp.array([[0.0, 0, 20, 20]])).any()


def test_on_gpu_nothing_is_added_in_an_order_of_chance():
    def total(features):
        boxes = jnp.array([[0.0, 0, 20, 20]])
        pooled = rj.roi_pool(features, boxes, output_size=2, spatial_scale=0.25)
        return (pooled**2).sum()

    program = jax.jit(jax.grad(total))
    exported = jax.export.export(program, platforms=("cuda",))(FEATURES)
    assert "gather" in exported.mlir_module()
    assert "scatter" not in exported.mlir_module()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"features": jnp.zeros((3, 3))}, r"features must be \[H, W, C\].*\(3, 3\)"),
        ({"boxes": jnp.zeros((3, 5))}, r"boxes must be \[N, 4\], got shape \(3, 5\)"),
        ({"valid": jnp.zeros(2)}, "valid must be boolean"),
        ({"output_size": 0}, "output_size must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    args = {"features": jnp.zeros((3, 3, 2)), "boxes": jnp.zeros((2, 4))}
    args |= {"output_size": 2, "spatial_scale": 1.0}
    with pytest.raises(ValueError, match=message):
        rj.roi_pool(**(args | change))
