from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rpn_jax as rj
from tests import reference, strategies

N = 16


def portable(*args, tile=8, **options):
    """Run the form for accelerators, in tiles so small that there are several."""

    def choose(*args, cpu, default):
        return default(*args, tile=tile)

    with mock.patch("jax.lax.platform_dependent", choose):
        return rj.nms(*args, **options)


FORMS = {"native": rj.nms, "portable": portable}
each_form = pytest.mark.parametrize("form", FORMS)
compiled = {
    name: jax.jit(
        form, static_argnames=("max_outputs", "tile")[: 1 + (name != "native")]
    )
    for name, form in FORMS.items()
}


def cluster_scene(rng, n: int) -> np.ndarray:
    """Boxes on a coarse grid: many IoUs, many ties, some of them empty."""
    boxes = rng.integers(0, 10, (n, 4))
    boxes[:, 2:] = boxes[:, :2] + rng.integers(0, 8, (n, 2))
    return boxes.astype(np.float32)


@each_form
class TestByHand:
    # IoU of neighbours 0.6; the third overlaps the second only.
    CHAIN = jnp.array([[0.0, 0, 8, 1], [2, 0, 10, 1], [4, 0, 12, 1]])

    def nms(self, form, boxes, scores, threshold, most=None, **options):
        most = len(boxes) if most is None else most
        result = compiled[form](
            jnp.asarray(boxes, jnp.float32),
            jnp.asarray(scores, jnp.float32),
            iou_threshold=jnp.float32(threshold),
            max_outputs=most,
            **options,
        )
        assert result.valid.tolist() == [i >= 0 for i in result.indices.tolist()]
        return result.indices.tolist()

    def test_a_suppressed_box_suppresses_nothing(self, form):
        assert self.nms(form, self.CHAIN, [3, 2, 1], 0.5) == [0, 2, -1]

    def test_order_is_by_score(self, form):
        assert self.nms(form, self.CHAIN, [1, 2, 3], 0.7) == [2, 1, 0]

    def test_equal_to_the_threshold_stays(self, form):
        assert self.nms(form, self.CHAIN, [3, 2, 1], np.float32(0.6)) == [0, 1, 2]
        below = np.nextafter(np.float32(0.6), np.float32(0))
        assert self.nms(form, self.CHAIN, [3, 2, 1], below) == [0, 2, -1]

    @pytest.mark.parametrize("tenths", range(11))
    def test_a_python_threshold_counts_to_its_last_bit(self, form, tenths):
        """As in torchvision on CPU: a float32 IoU against a float64 threshold."""
        boxes = jnp.array([[0.0, 0, 10, 1], [0, 0, tenths, 1]])
        scores, threshold = jnp.array([0.9, 0.8]), tenths / 10
        found = FORMS[form](boxes, scores, iou_threshold=threshold, max_outputs=2)
        suppressed = float(np.float32(tenths) / np.float32(10)) > threshold
        assert suppressed == (tenths in (1, 2, 3, 4, 6, 8))
        assert found.indices.tolist() == ([0, -1] if suppressed else [0, 1])

    def test_a_threshold_below_zero_is_an_error(self, form):
        with pytest.raises(
            ValueError, match="iou_threshold must be at least 0, got -1"
        ):
            FORMS[form](self.CHAIN, jnp.ones(3), iou_threshold=-1, max_outputs=2)

    def test_equal_boxes_leave_the_first(self, form):
        assert self.nms(form, [[0, 0, 4, 4]] * 4, [1, 1, 1, 1], 0.5) == [0, -1, -1, -1]

    def test_threshold_one_suppresses_nothing(self, form):
        assert self.nms(form, [[0, 0, 4, 4]] * 3, [1, 1, 1], 1.0) == [0, 1, 2]

    def test_threshold_zero_suppresses_what_overlaps_at_all(self, form):
        boxes = [[0, 0, 4, 4], [3, 3, 9, 9], [4, 0, 8, 4]]
        assert self.nms(form, boxes, [3, 2, 1], 0.0) == [0, 2, -1]

    def test_boxes_at_negative_coordinates_count(self, form):
        boxes = [[-9, -9, -1, -1], [-9, -9, -1, -2], [-30, -30, -20, -20]]
        assert self.nms(form, boxes, [3, 2, 1], 0.5) == [0, 2, -1]

    def test_output_is_cut_and_padded(self, form):
        assert self.nms(form, self.CHAIN, [3, 2, 1], 0.5, most=1) == [0]
        assert self.nms(form, self.CHAIN, [3, 2, 1], 0.5, most=4) == [0, 2, -1, -1]

    def test_groups_do_not_meet(self, form):
        groups = jnp.array([7, -3, 7])
        assert self.nms(form, self.CHAIN, [3, 2, 1], 0.1, groups=groups) == [0, 1, -1]

    def test_nothing_but_padding(self, form):
        none = jnp.zeros(3, bool)
        assert self.nms(form, self.CHAIN, [3, 2, 1], 0.5, valid=none) == [-1, -1, -1]

    def test_no_boxes(self, form):
        assert self.nms(form, jnp.zeros((0, 4)), jnp.zeros(0), 0.5, 2) == [-1, -1]

    @pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
    def test_boxes_that_are_not_finite_are_out(self, form, wrong):
        boxes = self.CHAIN.at[0, 3].set(wrong)
        assert self.nms(form, boxes, [3, 2, 1], 0.5) == [1, -1, -1]

    @pytest.mark.parametrize("wrong", [np.nan, -np.inf])
    def test_scores_that_are_none_are_out(self, form, wrong):
        assert self.nms(form, self.CHAIN, [wrong, 2, 1], 0.5) == [1, -1, -1]


@each_form
class TestPeer:
    @pytest.mark.parametrize("kind", ["clustered", "uniform"])
    @pytest.mark.parametrize("count", [1000, 2000, 6000, 12000])
    def test_keeps_what_torchvision_keeps(self, golden, form, kind, count):
        arrays = golden(f"nms_{kind}_{count}")
        options = {} if form == "native" else {"tile": 256}
        for keep, threshold in (("keep", "threshold"), ("keep_t50", "threshold_t50")):
            result = compiled[form](
                arrays["boxes"],
                arrays["scores"],
                iou_threshold=float(arrays[threshold]),
                max_outputs=count,
                **options,
            )
            kept = np.asarray(result.indices)[np.asarray(result.valid)]
            np.testing.assert_array_equal(kept, arrays[keep])

    @pytest.mark.parametrize("threshold", [0, 30, 50, 70, 100])
    def test_corner_cases(self, golden, form, threshold):
        arrays = golden("nms_edge")
        result = compiled[form](
            arrays["boxes"],
            arrays["scores"],
            iou_threshold=threshold / 100,
            max_outputs=12,
        )
        kept = np.asarray(result.indices)[np.asarray(result.valid)]
        np.testing.assert_array_equal(kept, arrays[f"keep_{threshold:03d}"])

    def test_groups(self, golden, form):
        arrays = golden("nms_batched")
        options = {} if form == "native" else {"tile": 256}
        result = compiled[form](
            arrays["boxes"],
            arrays["scores"],
            iou_threshold=float(arrays["threshold"]),
            max_outputs=1500,
            groups=arrays["idxs"].astype(np.int32),
            **options,
        )
        kept = np.asarray(result.indices)[np.asarray(result.valid)]
        np.testing.assert_array_equal(kept, arrays["keep"])


@each_form
class TestReference:
    @pytest.mark.parametrize("case", range(5))
    def test_five_hundred_random_scenes(self, form, case):
        """A hundred a case; all thresholds, several group layouts and sizes."""
        rng = np.random.default_rng(case)
        count, most = [(48, 48), (48, 10), (33, 40), (17, 16), (64, 20)][case]
        for scene in range(100):
            boxes = cluster_scene(rng, count)
            if scene % 2:
                boxes += rng.normal(0, 0.2, boxes.shape).astype(np.float32)
            scores = rng.integers(0, count, count).astype(np.float32)
            valid = rng.random(count) < (1.0, 0.8, 0.1)[scene % 3]
            groups = rng.integers(0, 1 + scene % 4, count).astype(np.int32)
            threshold = scene % 11 / 10
            result = compiled[form](
                boxes,
                scores,
                iou_threshold=threshold,
                max_outputs=most,
                valid=valid,
                groups=groups,
            )
            expected = reference.nms(boxes, scores, threshold, most, valid, groups)
            np.testing.assert_array_equal(result.indices, expected)

    @given(
        boxes=strategies.odd_boxes(N),
        scores=strategies.scores(N),
        valid=strategies.masks(N),
        groups=strategies.groups(N),
        threshold=st.sampled_from(strategies.THRESHOLDS),
    )
    def test_anything_that_goes_wrong(
        self, form, boxes, scores, valid, groups, threshold
    ):
        result = compiled[form](
            boxes,
            scores,
            iou_threshold=threshold,
            max_outputs=N,
            valid=valid,
            groups=groups,
        )
        expected = reference.nms(boxes, scores, threshold, N, valid, groups)
        np.testing.assert_array_equal(result.indices, expected)
        np.testing.assert_array_equal(result.valid, expected >= 0)

    @given(
        boxes=strategies.grid_boxes(N),
        scores=strategies.scores(N),
        valid=strategies.masks(N),
        filling=st.sampled_from([np.nan, np.inf, -np.inf, 3]),
    )
    def test_what_padding_holds_changes_nothing(
        self, form, boxes, scores, valid, filling
    ):
        nms = partial(compiled[form], iou_threshold=0.4, max_outputs=N)
        kept = nms(boxes, scores, valid=valid)
        boxes = np.where(valid[:, None], boxes, np.float32(filling))
        scores = np.where(valid, scores, np.float32(filling))
        again = nms(boxes, scores, valid=valid)
        np.testing.assert_array_equal(kept.indices, again.indices)

    def test_how_much_padding_changes_nothing(self, form):
        rng = np.random.default_rng(7)
        boxes, scores = cluster_scene(rng, 20), rng.random(20).astype(np.float32)
        kept = compiled[form](boxes, scores, iou_threshold=0.4, max_outputs=20)
        for more in (1, 12):
            again = compiled[form](
                np.pad(boxes, ((0, more), (0, 0)), constant_values=4),
                np.pad(scores, (0, more), constant_values=9),
                iou_threshold=0.4,
                max_outputs=20,
                valid=np.arange(20 + more) < 20,
            )
            np.testing.assert_array_equal(kept.indices, again.indices)

    def test_shuffling_the_boxes_shuffles_the_indices(self, form):
        rng = np.random.default_rng(8)
        boxes, scores = cluster_scene(rng, 40), rng.permutation(40).astype(np.float32)
        nms = partial(compiled[form], iou_threshold=0.4, max_outputs=40)
        kept = nms(boxes, scores)
        order = rng.permutation(40)
        again = nms(boxes[order], scores[order])
        valid = np.asarray(kept.valid)
        np.testing.assert_array_equal(valid, again.valid)
        np.testing.assert_array_equal(
            order[np.asarray(again.indices)[valid]], np.asarray(kept.indices)[valid]
        )


@each_form
def test_a_long_chain_is_settled(form):
    # Each box overlaps its neighbours alone: the worst case of an iteration to the
    # fixpoint. Every second one stays.
    left = np.arange(600, dtype=np.float32)[:, None]
    boxes = np.concatenate([left, 0 * left, left + 2, 0 * left + 1], axis=1)
    result = compiled[form](
        boxes,
        -left[:, 0],
        iou_threshold=0.2,
        max_outputs=600,
        **({"tile": 256} if form == "portable" else {}),
    )
    assert result.indices.tolist() == [*range(0, 600, 2), *[-1] * 300]


@each_form
def test_a_batch_is_its_images_one_by_one(form):
    rng = np.random.default_rng(9)
    boxes = np.stack([cluster_scene(rng, 30) for _ in range(8)])
    scores = rng.random((8, 30)).astype(np.float32)
    nms = partial(FORMS[form], iou_threshold=0.3, max_outputs=12)
    batch = jax.jit(jax.vmap(nms))(boxes, scores)
    for i in range(8):
        alone = compiled[form](boxes[i], scores[i], iou_threshold=0.3, max_outputs=12)
        np.testing.assert_array_equal(batch.indices[i], alone.indices)


@each_form
def test_thresholds_can_be_mapped_over(form):
    boxes = jnp.array([[0.0, 0, 8, 1], [2, 0, 10, 1], [4, 0, 12, 1]])

    def kept(threshold):
        return FORMS[form](
            boxes, jnp.arange(3.0), iou_threshold=threshold, max_outputs=3
        ).valid.sum()

    assert jax.vmap(kept)(jnp.array([0.0, 0.5, 0.7])).tolist() == [1, 2, 3]


@each_form
def test_gradient_flows_through_what_is_kept(form):
    boxes = jnp.array([[0.0, 0, 8, 1], [2, 0, 10, 1], [40, 0, 48, 1]])

    def loss(boxes, scores):
        kept = FORMS[form](boxes, scores, iou_threshold=0.5, max_outputs=3)
        rows = jnp.where(kept.valid[:, None], boxes[kept.indices], 0.0)
        return rows.sum() + jnp.where(kept.valid, scores[kept.indices], 0.0).sum()

    for_boxes, for_scores = jax.grad(loss, argnums=(0, 1))(
        boxes, jnp.array([3.0, 2, 1])
    )
    assert for_boxes.tolist() == [[1] * 4, [0] * 4, [1] * 4]
    assert for_scores.tolist() == [1, 0, 1]


def test_one_program_serves_every_threshold():
    nms = jax.jit(partial(rj.nms, max_outputs=3))
    boxes, scores = jnp.zeros((5, 4)), jnp.zeros(5)
    for threshold in (0.1, 0.5, 0.9):
        nms(boxes, scores, iou_threshold=threshold)
    assert nms._cache_size() == 1


def test_half_precision_scores_are_accepted():
    scores = jnp.array([1, 2], jnp.bfloat16)
    kept = rj.nms(jnp.zeros((2, 4)), scores, iou_threshold=0.5, max_outputs=2)
    assert kept.indices.tolist() == [1, 0]


class TestNativeForm:
    """XLA makes each of the two loops one native function, or they are slow."""

    def loops(self, function, *args) -> int:
        return (
            jax.jit(function)
            .lower(*args)
            .compile()
            .as_text()
            .count("xla_cpu_small_call")
        )

    @pytest.fixture
    def nms(self):
        return partial(rj.nms, iou_threshold=0.7, max_outputs=1000)

    @pytest.fixture
    def args(self):
        rng = np.random.default_rng(0)
        return jnp.zeros((2000, 4)), jnp.asarray(rng.random(2000), jnp.float32)

    def test_both_loops_are_native(self, nms, args):
        assert self.loops(nms, *args) == 2

    def test_with_groups(self, nms, args):
        groups = jnp.arange(2000) % 5
        assert self.loops(lambda b, s: nms(b, s, groups=groups), *args) == 2

    def test_within_a_batch(self, nms, args):
        batch = [jnp.stack([x] * 3) for x in args]
        # Newer compilers take the loop over the images along.
        assert self.loops(jax.vmap(nms), *batch) >= 2

    def test_within_a_batch_of_batches(self, nms, args):
        batch = [jnp.stack([jnp.stack([x] * 2)] * 3) for x in args]
        assert self.loops(jax.vmap(jax.vmap(nms)), *batch) >= 2

    def test_within_shard_map(self, nms, args, devices):
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((2,), ("data",), auto, devices=devices[:2])
        split = jax.P("data")

        def images(boxes, scores):
            return jax.vmap(nms)(boxes, scores)

        batch = [jnp.stack([x] * 4) for x in args]
        mapped = jax.shard_map(images, mesh=mesh, in_specs=split, out_specs=split)
        assert self.loops(mapped, *batch) >= 2

    def test_within_scan_grad_and_remat(self, nms, args):
        def loss(boxes, scores):
            def body(total, _):
                kept = jax.checkpoint(nms)(boxes, scores)
                return total + boxes[kept.indices].sum(), None

            return jax.lax.scan(body, boxes.sum() * 0, None, length=2)[0]

        assert self.loops(jax.grad(loss), *args) >= 2

    def test_memory_does_not_grow_with_the_square(self, nms):
        boxes = jax.ShapeDtypeStruct((12000, 4), jnp.float32)
        scores = jax.ShapeDtypeStruct((12000,), jnp.float32)
        memory = jax.jit(nms).lower(boxes, scores).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 2e6


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": jnp.zeros((3, 5))}, r"boxes must be \[N, 4\], got shape \(3, 5\)"),
        ({"scores": jnp.zeros(4)}, r"scores must have shape \(3,\), got \(4,\)"),
        ({"max_outputs": 0}, "max_outputs must be at least 1, got 0"),
        ({"valid": jnp.zeros(3)}, "valid must be boolean"),
        ({"groups": jnp.zeros(3)}, "groups must be integers"),
        ({"groups": jnp.zeros(2, int)}, r"groups must have shape \(3,\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    args = {"boxes": jnp.zeros((3, 4)), "scores": jnp.zeros(3), "max_outputs": 2}
    with pytest.raises(ValueError, match=message):
        rj.nms(**(args | change), iou_threshold=0.5)
