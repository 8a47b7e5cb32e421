from functools import partial
from unittest import mock

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import rpn_jax as rj
from tests import reference, strategies

N, H, W, C = 6, 5, 7, 2
RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(H, W, C)).astype(np.float32)
STATIC = ("output_size", "spatial_scale", "sampling_ratio", "aligned")


def with_gradient(features, boxes, valid, cotangent, **options):
    """Pool, and pull a cotangent back to the features."""
    align = partial(rj.roi_align, boxes=boxes, valid=valid, **options)
    pooled, pull = jax.vjp(align, features)
    return pooled, pull(cotangent)[0]


def portable(*args, **options):
    """Run the form for accelerators, in chunks so small that there are several."""

    def choose(*args, cpu, default):
        return default(*args)

    with (
        mock.patch("jax.lax.platform_dependent", choose),
        mock.patch("rpn_jax.ops.roi_align.CHUNK", 4),
    ):
        return with_gradient(*args, **options)


FORMS = {
    "native": jax.jit(with_gradient, static_argnames=STATIC),
    "portable": jax.jit(portable, static_argnames=STATIC),
}
each_form = pytest.mark.parametrize("form", FORMS)


roi_align = jax.jit(rj.roi_align, static_argnames=STATIC)


def align(features, boxes, **options):
    """Pool [H, W] features into [R, P, Q]."""
    usual = {"output_size": 1, "spatial_scale": 1.0, "sampling_ratio": 0}
    return roi_align(
        np.asarray(features, np.float32)[..., None],
        np.asarray(boxes, np.float32),
        **(usual | options),
    )[..., 0]


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5)


RAMP = np.tile(np.arange(8.0), (8, 1))  # what a sample gives is its x


class TestByHand:
    def test_bins_of_a_ramp_are_their_middles(self):
        pooled = align(RAMP, [[1, 1, 7, 7]], output_size=(1, 3), aligned=False)
        same(pooled, [[[2, 4, 6]]])

    def test_aligned_boxes_lie_half_a_cell_earlier(self):
        pooled = align(RAMP, [[1, 1, 7, 7]], output_size=(1, 3), aligned=True)
        same(pooled, [[[1.5, 3.5, 5.5]]])

    def test_boxes_are_scaled_to_cells(self):
        pooled = align(RAMP, [[4, 4, 20, 20]], spatial_scale=0.25, aligned=False)
        same(pooled, [[[3]]])

    def test_unless_aligned_a_box_has_a_cell_at_least(self):
        box = [[2.5, 2.5, 2.75, 2.75]]
        same(align(RAMP, box, aligned=False), [[[3]]])
        same(align(RAMP, box, aligned=True), [[[2.125]]])

    def test_number_of_samples(self):
        square = RAMP**2
        box = [[0.5, 0.5, 4.5, 4.5]]  # aligned: from 0 to 4
        two, four = (1 + 9) / 2, np.mean([0.5, 2.5, 6.5, 12.5])
        same(align(square, box, aligned=True, sampling_ratio=2), [[[two]]])
        same(align(square, box, aligned=True), [[[four]]])

    def test_beyond_the_first_centre_a_cell_counts_then_nothing(self):
        # Aligned, it begins at -2.5: samples at -2, -1, 0 and 1 in both axes.
        same(align(np.ones((8, 8)), [[-2, 1, 2, 5]], aligned=True), [[[0.75]]])
        same(align(RAMP, [[-2, 1, 2, 5]], aligned=True), [[[0.25]]])

    def test_beyond_the_last_centre_too(self):
        # Samples at 6, 7, 8 and 9; the last centre is 7, and 8 is a cell behind it.
        same(align(RAMP, [[6, 1, 10, 5]], aligned=True), [[[(6 + 7 + 7) / 4]]])

    @pytest.mark.parametrize("aligned", [False, True])
    @pytest.mark.parametrize("sampling", [0, 2])
    def test_off_the_map_is_nothing(self, aligned, sampling):
        boxes = [[-30, 1, -10, 5], [1, 20, 5, 30], [900, 900, 920, 920]]
        options = {"aligned": aligned, "sampling_ratio": sampling}
        same(align(RAMP, boxes, **options), [[[0]]] * 3)

    def test_a_box_far_larger_than_the_map(self):
        # 10,000 samples in each axis, a cell apart; on [-1, 4] there are six.
        pooled = align(np.ones((4, 4)), [[-5000, -5000, 5000, 5000]], aligned=True)
        same(pooled, [[[(6 / 10000) ** 2]]])

    def test_a_box_beyond_what_float32_counts_gives_finite_numbers(self):
        pooled = align(RAMP, [[-1e36, -1e36, 1e36, 1e36]] * 2, aligned=True)
        assert np.isfinite(pooled).all()

    def test_an_empty_box_has_no_samples_unless_their_number_is_fixed(self):
        box = [[3, 2, 3, 2]]
        same(align(RAMP, box, aligned=True), [[[0]]])
        same(align(RAMP, box, aligned=True, sampling_ratio=2), [[[2.5]]])

    def test_an_inverted_box_is_empty(self):
        box = [[3, 2, 1, 1]]
        same(align(RAMP, box, aligned=True), [[[0]]])
        same(align(RAMP, box, aligned=True, sampling_ratio=2), [[[2.5]]])
        same(align(RAMP, box, aligned=False), [[[3.5]]])

    def test_no_boxes(self):
        assert align(RAMP, np.zeros((0, 4)), aligned=True).shape == (0, 1, 1)

    def test_half_precision_gives_float32_and_its_gradient_back(self):
        features = jnp.ones((4, 4, 1), jnp.bfloat16)
        pooled, gradient = with_gradient(
            features,
            jnp.array([[0.0, 0, 4, 4]]),
            None,
            jnp.ones((1, 2, 2, 1)),
            output_size=2,
            spatial_scale=1.0,
            sampling_ratio=1,
            aligned=True,
        )
        assert (pooled.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
        assert pooled.ravel().tolist() == [1] * 4


multilevel_roi_align = jax.jit(
    rj.multilevel_roi_align,
    static_argnames=("output_size", "spatial_scales", "sampling_ratio", "aligned"),
)


def nhwc(x):
    return np.moveaxis(x, 1, -1)


@each_form
@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("sampling", [0, 2])
def test_values_and_gradients_of_torchvision(golden, form, aligned, sampling):
    arrays = golden("roi_align")
    name = f"aligned{aligned}_sr{sampling}"
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
            sampling_ratio=sampling,
            aligned=bool(aligned),
        )
        pooled += part
        expected = nhwc(arrays[f"grad_{name}"])[image]
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5)
    expected = nhwc(arrays[f"roi_align_{name}"])
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-5)


def test_bins_that_are_no_square(golden):
    arrays = golden("roi_align")
    features, rois = nhwc(arrays["features"]), arrays["rois"]
    options = {"output_size": (5, 3), "spatial_scale": 1 / 16, "sampling_ratio": 2}
    pooled = sum(
        roi_align(
            features[i], rois[:, 1:], valid=rois[:, 0] == i, aligned=False, **options
        )
        for i in (0, 1)
    )
    expected = nhwc(arrays["roi_align_aligned0_sr2_5x3"])
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [224, 56])
@pytest.mark.parametrize("peer", ["tv_pooled", "d2_ROIAlign", "d2_ROIAlignV2"])
def test_pyramids_of_the_peers(golden, size, peer):
    arrays = golden(f"multiscale_roi_align_canon{size}")
    rule = "torchvision" if peer == "tv_pooled" else "detectron2"
    pooled = []
    for image in (0, 1):
        boxes = arrays[f"boxes_{image}"]
        levels = rj.assign_levels(
            boxes, min_level=2, max_level=5, canonical_size=size, rule=rule
        )
        pooled.append(
            multilevel_roi_align(
                [nhwc(arrays[f"feature_{level}"])[image] for level in range(4)],
                boxes,
                levels,
                output_size=7,
                spatial_scales=tuple(arrays["tv_scales"].tolist()),
                sampling_ratio=2,
                aligned=peer == "d2_ROIAlignV2",
            )
        )
    expected = nhwc(arrays[peer])
    np.testing.assert_allclose(np.concatenate(pooled), expected, rtol=0, atol=1e-5)


@each_form
class TestReference:
    def check(self, form, boxes, valid, **options):
        options = {"spatial_scale": 0.25, **options}
        shape = (len(boxes), *options["output_size"], C)
        cotangent = RANDOM.normal(size=shape).astype(np.float32)
        args = FEATURES, boxes, valid, cotangent
        found = FORMS[form](*args, **options)
        expected = reference.roi_align(*args, **options)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        "sampling, aligned", [(0, True), (0, False), (1, False), (3, True)]
    )
    @given(boxes=strategies.odd_boxes(N), valid=strategies.masks(N))
    @settings(max_examples=25)
    def test_anything_that_goes_wrong(self, form, sampling, aligned, boxes, valid):
        self.check(
            form,
            boxes,
            valid,
            output_size=(2, 3),
            sampling_ratio=sampling,
            aligned=aligned,
        )

    @given(
        first=st.lists(st.integers(-15, 15), min_size=2 * N, max_size=2 * N),
        sides=st.lists(st.integers(0, 30), min_size=2 * N, max_size=2 * N),
    )
    @settings(max_examples=25)
    def test_whole_cells_put_samples_on_centres_and_borders(self, form, first, sides):
        cells = np.array(first + sides, np.float32).reshape(2, N, 2)
        boxes = 4 * np.concatenate([cells[0], cells[0] + cells[1]], axis=1)
        options = {"output_size": (2, 3), "sampling_ratio": 0, "aligned": True}
        self.check(form, boxes, np.ones(N, bool), **options)

    def test_boxes_far_larger_than_the_map(self, form):
        far = np.array([1e2, 1e3, 3e3, 1e4, 2e4, 4e4], np.float32)[:, None]
        boxes = RANDOM.uniform([-1, -1, 0, 0], [0, 0, 1, 1], (N, 4)) * far
        options = {"output_size": (2, 3), "sampling_ratio": 0, "aligned": True}
        self.check(form, boxes.astype(np.float32), np.ones(N, bool), **options)

    @given(
        boxes=strategies.real_boxes(N),
        valid=strategies.masks(N),
        filling=st.sampled_from([np.nan, np.inf, -np.inf, 3]),
    )
    @settings(max_examples=20)
    @pytest.mark.parametrize("sampling", [0, 3])
    def test_what_padding_holds_changes_nothing(
        self, form, sampling, boxes, valid, filling
    ):
        def run(boxes, cotangent):
            return FORMS[form](
                *(FEATURES, boxes, valid, cotangent),
                output_size=(2, 3),
                spatial_scale=0.25,
                sampling_ratio=sampling,
                aligned=True,
            )

        filling, padded = np.float32(filling), ~valid[:, None, None, None]
        cotangent = np.ones((N, 2, 3, C), np.float32)
        pooled, gradient = run(boxes, cotangent)
        again, same = run(
            np.where(valid[:, None], boxes, filling),
            np.where(padded, filling, cotangent),
        )
        np.testing.assert_array_equal(pooled, again)
        np.testing.assert_array_equal(gradient, same)
        assert not pooled[~valid].any()


@pytest.mark.parametrize("sampling", [1, 3])
def test_samples_on_a_wide_map_are_rounded_as_in_the_peers(sampling):
    # In float32 a sample at column 1000 moves by steps of 6e-5: the order of operations
    # shows, and whether one of them is left out.
    features = RANDOM.normal(size=(1, 1024, 1)).astype(np.float32)
    boxes = RANDOM.uniform([0, 0, 3000, 4], [200, 0, 4000, 4], (64, 4))
    boxes = strategies.from_corner_and_size(boxes)
    options = {"output_size": (1, 7), "spatial_scale": 0.25, "aligned": True}
    options |= {"sampling_ratio": sampling}
    pooled = roi_align(features, boxes, **options)
    everywhere, nothing = np.ones(64, bool), np.zeros((64, 1, 7, 1))
    expected, _ = reference.roi_align(features, boxes, everywhere, nothing, **options)
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-5)


def test_what_does_not_count_is_not_spoilt_by_the_map():
    features = FEATURES.copy()
    features[0, 0] = np.nan
    boxes = np.array([[8, 8, 20, 20], [0, 0, 20, 20]], np.float32)
    for sampling in (0, 2):
        pooled = roi_align(
            features,
            boxes,
            output_size=2,
            spatial_scale=0.25,
            sampling_ratio=sampling,
            aligned=True,
            valid=np.array([True, False]),
        )
        assert np.isfinite(pooled).all()
        assert pooled[0].all() and not pooled[1].any()


class TestPyramid:
    MAPS = (FEATURES, FEATURES[:3, :4])
    SCALES = (0.25, 0.125)
    BOXES = strategies.from_corner_and_size(RANDOM.uniform(0, 15, (N, 4)))
    OPTIONS = {"output_size": (2, 3), "sampling_ratio": 0, "aligned": True}

    def pooled(self, levels):
        return multilevel_roi_align(
            self.MAPS, self.BOXES, levels, spatial_scales=self.SCALES, **self.OPTIONS
        )

    def alone(self, level):
        scale = self.SCALES[level]
        return roi_align(
            self.MAPS[level], self.BOXES, spatial_scale=scale, **self.OPTIONS
        )

    def test_each_box_is_pooled_from_its_level(self):
        levels = np.array([0, 1, 1, 0, 1, 0])
        here = (levels == 0)[:, None, None, None]
        expected = np.where(here, self.alone(0), self.alone(1))
        np.testing.assert_allclose(self.pooled(levels), expected, atol=1e-6)

    def test_a_box_of_no_level_gives_zeros(self):
        pooled = self.pooled(np.array([0, -1, 2, 0, 9, 0]))
        some = np.array([1, 0, 0, 1, 0, 1], bool)
        np.testing.assert_array_equal(pooled[some], self.alone(0)[some])
        assert not pooled[~some].any()

    @pytest.mark.parametrize("form", ["native", "portable"])
    def test_each_level_gets_the_gradient_of_its_boxes(self, form):
        levels = np.array([0, 1, 1, 0, 1, 0])

        def loss(fine, coarse):
            pooled = rj.multilevel_roi_align(
                (fine, coarse),
                self.BOXES,
                levels,
                spatial_scales=self.SCALES,
                **self.OPTIONS,
            )
            return (pooled**2).sum()

        def choose(*args, cpu, default):
            return (cpu if form == "native" else default)(*args)

        def alone(level, features):
            pooled = rj.roi_align(
                features,
                self.BOXES,
                spatial_scale=self.SCALES[level],
                valid=levels == level,
                **self.OPTIONS,
            )
            return (pooled**2).sum()

        with mock.patch("jax.lax.platform_dependent", choose):
            found = jax.jit(jax.grad(loss, argnums=(0, 1)))(*self.MAPS)
        for level in (0, 1):
            expected = jax.jit(jax.grad(partial(alone, level)))(self.MAPS[level])
            np.testing.assert_allclose(found[level], expected, atol=1e-5)


class TestGradient:
    BOXES = np.array([[1, 2, 19, 15], [-6, 5, 9, 31], [0, 0, 28, 20]], np.float32)

    @pytest.mark.parametrize("sampling", [0, 2])
    def test_agrees_with_differences(self, sampling):
        def pooled(features):
            return roi_align(
                features,
                self.BOXES,
                output_size=2,
                spatial_scale=0.25,
                sampling_ratio=sampling,
                aligned=True,
            )

        check_grads(pooled, (FEATURES,), order=1, modes=("rev",), atol=1e-2, rtol=1e-2)

    def test_boxes_get_none(self):
        def total(boxes):
            return roi_align(
                FEATURES,
                boxes,
                output_size=2,
                spatial_scale=0.25,
                sampling_ratio=2,
                aligned=True,
            ).sum()

        assert not jax.grad(total)(self.BOXES).any()

    def test_shared_features_get_the_sum_over_devices(self, devices):
        def total(features, boxes):
            pooled = rj.roi_align(
                features,
                boxes,
                output_size=2,
                spatial_scale=0.25,
                sampling_ratio=2,
                aligned=True,
            )
            return (pooled**2).sum(axis=(1, 2, 3))

        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((3,), ("data",), auto, devices=devices[:3])
        split = jax.shard_map(
            total,
            mesh=mesh,
            in_specs=(jax.P(), jax.P("data")),
            out_specs=jax.P("data"),
        )
        whole, parts = (
            jax.jit(jax.grad(lambda x, f=f: f(x, self.BOXES).sum()))(FEATURES)
            for f in (total, split)
        )
        np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("sampling", [0, 2])
    def test_on_gpu_nothing_is_added_in_an_order_of_chance(self, sampling):
        def total(features):
            pooled = rj.roi_align(
                features,
                self.BOXES,
                output_size=2,
                spatial_scale=0.25,
                sampling_ratio=sampling,
                aligned=True,
            )
            return (pooled**2).sum()

        program = jax.jit(jax.grad(total))
        exported = jax.export.export(program, platforms=("cuda",))(FEATURES)
        assert "dot_general" in exported.mlir_module()
        assert "scatter" not in exported.mlir_module()


@pytest.mark.parametrize("sampling", [0, 2])
def test_memory_holds_nothing_but_the_result(sampling):
    pooled = partial(
        rj.roi_align,
        output_size=7,
        spatial_scale=0.25,
        sampling_ratio=sampling,
        aligned=True,
    )
    features = jax.ShapeDtypeStruct((200, 272, 256), jnp.float32)
    boxes = jax.ShapeDtypeStruct((1000, 4), jnp.float32)
    memory = jax.jit(pooled).lower(features, boxes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1e6


def test_one_program_serves_every_scale():
    program = jax.jit(
        partial(rj.roi_align, output_size=2, sampling_ratio=2, aligned=True)
    )
    for scale in (0.5, 0.25):
        program(FEATURES, jnp.zeros((1, 4)), spatial_scale=scale)
    assert program._cache_size() == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"features": jnp.zeros((3, 3))}, r"features must be \[H, W, C\].*\(3, 3\)"),
        ({"features": jnp.zeros((0, 3, 2))}, r"not empty, got \(0, 3, 2\)"),
        ({"features": jnp.zeros((3, 3, 2), bool)}, "features must hold real numbers"),
        ({"boxes": jnp.zeros((3, 5))}, r"boxes must be \[N, 4\], got shape \(3, 5\)"),
        ({"valid": jnp.zeros(3, bool)}, r"valid must have shape \(2,\), got \(3,\)"),
        ({"output_size": 0}, "output_size must be at least 1, got 0"),
        ({"output_size": (2, 0)}, r"output_size must be.*got \(2, 0\)"),
        ({"sampling_ratio": -1}, "sampling_ratio must be at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    args = {
        "features": jnp.zeros((3, 3, 2)),
        "boxes": jnp.zeros((2, 4)),
        "output_size": 2,
        "spatial_scale": 1.0,
        "sampling_ratio": 2,
        "aligned": True,
    }
    with pytest.raises(ValueError, match=message):
        rj.roi_align(**(args | change))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"features": [FEATURES, FEATURES[..., :1]]}, r"got \(5, 7, 2\), \(5, 7, 1\)"),
        ({"features": [], "spatial_scales": ()}, "features must hold one map at least"),
        ({"levels": jnp.zeros(2)}, "levels must be integers"),
        ({"levels": jnp.zeros(3, int)}, r"levels must have shape \(2,\), got \(3,\)"),
        ({"spatial_scales": (1.0,)}, "spatial_scales must.*for each map, got 1 for 2"),
    ],
)
def test_wrong_arguments_of_a_pyramid_are_named(change, message):
    args = {
        "features": [FEATURES, FEATURES],
        "boxes": jnp.zeros((2, 4)),
        "levels": jnp.zeros(2, int),
        "output_size": 2,
        "spatial_scales": (1.0, 0.5),
        "sampling_ratio": 2,
        "aligned": True,
    }
    with pytest.raises(ValueError, match=message):
        rj.multilevel_roi_align(**(args | change))
