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

A, G = 20, 5
match = jax.jit(rj.match_anchors, static_argnames="low_quality")


@partial(jax.jit, static_argnames="low_quality")
def match_elsewhere(*args, **options):
    """Run the form for accelerators."""

    def choose(*args, cpu, default):
        return default(*args)

    with mock.patch("jax.lax.platform_dependent", choose):
        return rj.match_anchors(*args, **options)


# Against OBJECT the anchors have IoU 1, 0.8, 0.5, 0.2 and 0.
OBJECT = jnp.array([[0.0, 0, 10, 10]])
ANCHORS = jnp.array(
    [[0.0, 0, 10, 10], [0, 0, 8, 10], [0, 0, 10, 5], [0, 0, 2, 10], [30, 30, 40, 40]]
)


class TestByHand:
    def test_two_thresholds(self):
        matches = rj.match_anchors(ANCHORS, OBJECT)
        assert matches.labels.tolist() == [1, 1, -1, 0, 0]
        assert matches.gt_index.tolist() == [0, 0, 0, 0, 0]
        np.testing.assert_allclose(matches.iou, [1, 0.8, 0.5, 0.2, 0])
        assert matches.gt_iou.tolist() == [1]

    def test_high_is_included_and_low_is_not(self):
        matches = rj.match_anchors(
            ANCHORS, OBJECT, high_threshold=0.5, low_threshold=0.2
        )
        assert matches.labels.tolist() == [1, 1, 1, -1, 0]

    def test_best_object_of_two(self):
        objects = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 5]])
        assert rj.match_anchors(ANCHORS, objects).gt_index.tolist()[:3] == [0, 0, 1]

    def test_equal_objects_go_to_the_lower_index(self):
        twice = jnp.concatenate([OBJECT, OBJECT])
        assert rj.match_anchors(ANCHORS, twice).gt_index.tolist() == [0] * 5


class TestLowQuality:
    # The best anchor reaches 0.5, a second equals it.
    WEAK = jnp.array([[0.0, 0, 10, 5], [0, 5, 10, 10], [0, 0, 2, 10], [9, 9, 11, 11]])

    def labels(self, **options):
        return rj.match_anchors(self.WEAK, OBJECT, **options).labels.tolist()

    def test_off(self):
        assert self.labels(low_quality="off") == [-1, -1, 0, 0]

    @pytest.mark.parametrize("rule", ["label", "overwrite"])
    def test_every_anchor_that_ties_for_the_best_is_positive(self, rule):
        assert self.labels(low_quality=rule) == [1, 1, 0, 0]

    def test_guard_asks_for_more_than_its_value(self):
        assert self.labels(low_quality_above=0.5) == [-1, -1, 0, 0]
        assert self.labels(low_quality_above=0.49) == [1, 1, 0, 0]

    def test_label_keeps_the_object_and_overwrite_gives_it_away(self):
        # The only anchor near the second object overlaps the first one more.
        anchors = jnp.array([[0.0, 0, 10, 10], [50, 50, 60, 60]])
        objects = jnp.array([[0.0, 0, 10, 10], [6, 0, 16, 10]])
        keep = rj.match_anchors(anchors, objects, low_quality="label")
        give = rj.match_anchors(anchors, objects, low_quality="overwrite")
        assert keep.labels.tolist() == give.labels.tolist() == [1, 0]
        assert keep.gt_index[0] == 0
        assert give.gt_index[0] == 1

    def test_last_claim_wins(self):
        objects = jnp.array([[6.0, 0, 16, 10], [0, 0, 10, 10], [5, 0, 15, 10]])
        matches = rj.match_anchors(
            jnp.array([[0.0, 0, 10, 10]]), objects, low_quality="overwrite"
        )
        assert matches.gt_index.tolist() == [2]

    def test_distant_object_makes_no_anchor_positive(self):
        far = jnp.array([[500.0, 500, 510, 510]])
        assert rj.match_anchors(ANCHORS, far).labels.tolist() == [0] * 5

    def test_distant_object_makes_all_positive_without_the_guard(self):
        far = jnp.array([[500.0, 500, 510, 510]])
        matches = rj.match_anchors(ANCHORS, far, low_quality_above=-1.0)
        assert matches.labels.tolist() == [1] * 5


class TestWhatDoesNotCount:
    def test_no_object(self):
        matches = rj.match_anchors(ANCHORS, jnp.zeros((0, 4)))
        assert matches.labels.tolist() == [0] * 5
        assert matches.gt_index.tolist() == [-1] * 5
        assert matches.iou.tolist() == [0] * 5
        assert matches.gt_iou.shape == (0,)

    def test_padded_objects_only(self):
        matches = rj.match_anchors(
            ANCHORS, jnp.full((3, 4), jnp.nan), jnp.zeros(3, bool)
        )
        assert matches.labels.tolist() == [0] * 5
        assert matches.gt_index.tolist() == [-1] * 5
        assert matches.iou.tolist() == [0] * 5
        assert matches.gt_iou.tolist() == [0, 0, 0]

    @pytest.mark.parametrize(
        "box", [[np.nan, 0, 1, 1], [0, 0, np.inf, 1], [3, 3, 3, 9], [9, 9, 3, 3]]
    )
    def test_object_without_extent_counts_as_padding(self, box):
        matches = rj.match_anchors(ANCHORS, jnp.array([box]), low_quality_above=-1.0)
        assert matches.labels.tolist() == [0] * 5

    def test_anchor_that_is_not_valid(self):
        valid = jnp.array([False, True, True, True, True])
        matches = rj.match_anchors(ANCHORS, OBJECT, anchor_valid=valid)
        assert matches.labels.tolist() == [-1, 1, -1, 0, 0]
        assert matches.gt_index[0] == -1
        assert matches.iou[0] == 0
        np.testing.assert_allclose(matches.gt_iou, [0.8])

    def test_best_valid_anchor_is_claimed(self):
        # Straddling anchors are out: the object is left with its anchor of IoU 0.5.
        valid = jnp.array([False, False, True, True, True])
        matches = rj.match_anchors(ANCHORS, OBJECT, anchor_valid=valid)
        assert matches.labels.tolist() == [-1, -1, 1, 0, 0]

    def test_no_anchor_is_valid(self):
        matches = rj.match_anchors(
            ANCHORS, OBJECT, anchor_valid=jnp.zeros(5, bool), low_quality_above=-1.0
        )
        assert matches.labels.tolist() == [-1] * 5
        assert matches.gt_iou.tolist() == [0]


class TestIgnore:
    REGION = jnp.array([[0.0, 0, 10, 10], [20, 20, 100, 100]])
    IGNORE = jnp.array([False, True])

    def labels(self, anchors, **options):
        return rj.match_anchors(
            jnp.asarray(anchors, jnp.float32),
            self.REGION,
            gt_ignore=self.IGNORE,
            **options,
        ).labels.tolist()

    def test_negatives_inside_are_not_used(self):
        assert self.labels([[0, 0, 10, 10], [30, 30, 40, 40], [0, 30, 9, 40]]) == [
            1,
            -1,
            0,
        ]

    def test_share_of_the_anchor_decides(self):
        anchors = [[0, 0, 10, 10], [15, 30, 25, 40], [14, 30, 24, 40]]
        assert self.labels(anchors) == [1, -1, 0]
        assert self.labels(anchors, ignore_threshold=0.4) == [1, -1, -1]

    def test_a_region_makes_nothing_positive(self):
        matches = rj.match_anchors(
            self.REGION, self.REGION, gt_ignore=self.IGNORE, low_quality_above=-1.0
        )
        assert matches.labels.tolist() == [1, -1]
        assert matches.gt_index.tolist() == [0, 0]
        assert matches.gt_iou.tolist() == [1, 0]

    def test_positives_inside_stay_positive(self):
        objects = jnp.array([[0.0, 0, 10, 10], [0, 0, 100, 100]])
        matches = rj.match_anchors(objects[:1], objects, gt_ignore=self.IGNORE)
        assert matches.labels.tolist() == [1]

    def test_padded_region_is_none(self):
        matches = rj.match_anchors(
            jnp.array([[30.0, 30, 40, 40]]),
            self.REGION,
            jnp.array([True, False]),
            gt_ignore=self.IGNORE,
        )
        assert matches.labels.tolist() == [0]


CASES = ("random", "anchors", "onegt", "far", "nogt")


@pytest.mark.parametrize("file", ["matcher_rpn_07_03_lowq", "matcher_rcnn_05_05"])
@pytest.mark.parametrize("case", CASES)
class TestPeers:
    @pytest.fixture
    def arrays(self, golden, file):
        return golden(file)

    @pytest.fixture
    def matches(self, arrays, case):
        return rj.match_anchors(
            arrays[f"{case}_pred"],
            arrays[f"{case}_gt"],
            high_threshold=float(arrays["high_threshold"]),
            low_threshold=float(arrays["low_threshold"]),
            low_quality="label" if arrays["allow_low_quality_matches"] else "off",
            low_quality_above=-1.0,
        )

    def test_torchvision(self, arrays, case, matches):
        if case == "nogt":
            assert f"{case}_tv_matches" not in arrays  # its matcher refuses
            return
        labels, index = np.asarray(matches.labels), np.asarray(matches.gt_index)
        ours = np.select([labels == 1, labels == 0], [index, -1], -2)
        np.testing.assert_array_equal(ours, arrays[f"{case}_tv_matches"])

    def test_detectron2(self, arrays, case, matches):
        np.testing.assert_array_equal(matches.labels, arrays[f"{case}_d2_labels"])
        if case != "nogt":
            np.testing.assert_array_equal(
                matches.gt_index, arrays[f"{case}_d2_matches"]
            )

    def test_iou_to_the_bit(self, arrays, case, matches):
        if case != "nogt":
            np.testing.assert_array_equal(matches.iou, arrays[f"{case}_max_iou"])


class TestAssignTargets:
    @pytest.mark.parametrize("image", range(3))
    def test_labels_of_both_peers(self, golden, image):
        arrays = golden("assign_targets")
        options = {"low_quality_above": -1.0}
        anchors, gt = arrays["anchors"], arrays[f"gt_{image}"]
        labels = rj.match_anchors(anchors, gt, **options).labels
        np.testing.assert_array_equal(labels, arrays["tv_labels"][image])
        np.testing.assert_array_equal(labels, arrays["d2_labels_all_sampled"][image])

    @pytest.mark.parametrize("image", range(3))
    def test_targets_of_the_positives(self, golden, image):
        arrays = golden("assign_targets")
        rows = arrays["tv_pos_index"][:, 0] == image
        which = arrays["tv_pos_index"][rows, 1]
        gt = arrays[f"gt_{image}"]
        matches = rj.match_anchors(arrays["anchors"], gt, low_quality_above=-1.0)
        np.testing.assert_array_equal(
            np.flatnonzero(np.asarray(matches.labels) == 1), which
        )
        if len(which):
            boxes = gt[np.asarray(matches.gt_index)[which]]
            deltas = rj.encode_boxes(boxes, arrays["anchors"][which])
            expected = arrays["tv_regression_targets_pos"][rows]
            np.testing.assert_allclose(deltas, expected, rtol=1e-5, atol=1e-6)


@given(
    anchors=strategies.grid_boxes(A, smallest=1),
    gt_boxes=strategies.odd_boxes(G),
    gt_valid=strategies.masks(G),
    gt_ignore=strategies.masks(G),
    anchor_valid=strategies.masks(A),
    low_threshold=st.sampled_from([0.0, 0.25, 0.3]),
    high_threshold=st.sampled_from([0.3, 0.5, 0.7, 1.0]),
    low_quality=st.sampled_from(["off", "label", "overwrite"]),
    low_quality_above=st.sampled_from([-1.0, 0.0, 0.3]),
    ignore_threshold=st.sampled_from([0.5, 0.6, 1.0]),
)
def test_equals_the_reference(
    anchors, gt_boxes, gt_valid, gt_ignore, anchor_valid, **options
):
    theirs = reference.match(
        anchors, gt_boxes, gt_valid, gt_ignore, anchor_valid, **options
    )
    for form in (match, match_elsewhere):
        ours = form(
            anchors,
            gt_boxes,
            gt_valid,
            gt_ignore=gt_ignore,
            anchor_valid=anchor_valid,
            **options,
        )
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


@given(
    anchors=strategies.odd_boxes(A),
    gt_boxes=strategies.real_boxes(G),
    gt_valid=strategies.masks(G),
)
def test_every_object_that_some_anchor_overlaps_has_a_positive(
    anchors, gt_boxes, gt_valid
):
    anchors = np.nan_to_num(anchors, posinf=0, neginf=0)
    labels, _, _, gt_iou = match(anchors, gt_boxes, gt_valid)
    overlap = np.asarray(jax.jit(rj.box_iou)(anchors, gt_boxes))
    for g in range(G):
        if gt_iou[g] > 0:
            best = overlap[:, g] == overlap[:, g].max()
            assert (np.asarray(labels)[best] == 1).all()


@given(
    anchors=strategies.grid_boxes(A, smallest=1),
    gt_boxes=strategies.odd_boxes(G),
    gt_valid=strategies.masks(G),
    filling=st.sampled_from([np.nan, np.inf, 4]),
)
def test_what_padding_holds_changes_nothing(anchors, gt_boxes, gt_valid, filling):
    one = match(anchors, gt_boxes, gt_valid)
    other = match(
        anchors, np.where(gt_valid[:, None], gt_boxes, np.float32(filling)), gt_valid
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("more", [1, 3, 11])
def test_how_much_padding_changes_nothing(more):
    rng = np.random.default_rng(0)
    anchors = strategies.from_corner_and_size(rng.integers(1, 9, (60, 4)))
    gt_boxes = strategies.from_corner_and_size(rng.integers(1, 9, (7, 4)))
    one = rj.match_anchors(anchors, gt_boxes)
    padded = np.pad(gt_boxes, ((0, more), (0, 0)), constant_values=5)
    other = rj.match_anchors(anchors, padded, np.arange(7 + more) < 7)
    for a, b in zip(one[:3], other[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(other.gt_iou[:7], one.gt_iou)
    np.testing.assert_array_equal(other.gt_iou[7:], 0)


def test_many_objects_equal_the_whole_matrix():
    """More objects than are compared at a time."""
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 300, (530, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 90, (530, 2))], axis=1)
    anchors, gt_boxes = np.split(boxes.astype(np.float32), [500])
    overlap = reference.iou(anchors[:, None], gt_boxes[None])
    for form in (match, match_elsewhere):
        matches = form(anchors, gt_boxes, low_quality="off")
        np.testing.assert_array_equal(matches.gt_index, overlap.argmax(axis=1))
        np.testing.assert_array_equal(matches.iou, overlap.max(axis=1))
        np.testing.assert_array_equal(matches.gt_iou, overlap.max(axis=0))


def test_iou_is_divided_once_for_all_its_uses():
    """Else XLA computes it anew for each: best objects, claims, objects' best."""
    shapes = [jax.ShapeDtypeStruct((n, 4), jnp.float32) for n in (1000, 20)]
    text = jax.jit(rj.match_anchors).lower(*shapes).compile().as_text()
    assert text.count("= f32[8,1000]{1,0} divide(") == 2  # and the share of regions


def test_images_of_a_batch_are_taken_one_by_one():
    """Temporaries of a batch are those of an image."""
    one = [jax.ShapeDtypeStruct((n, 4), jnp.float32) for n in (50_000, 20)]
    batch = one[0], jax.ShapeDtypeStruct((8, 20, 4), jnp.float32)

    def temporaries(function, shapes):
        program = jax.jit(function).lower(*shapes).compile()
        return program.memory_analysis().temp_size_in_bytes

    many = temporaries(jax.vmap(rj.match_anchors, in_axes=(None, 0)), batch)
    assert many < 3 * temporaries(rj.match_anchors, one)


def test_memory_stays_small():
    """270,000 anchors by 500 objects: the whole matrix would be 540 MB."""
    shapes = [jax.ShapeDtypeStruct((n, 4), jnp.float32) for n in (270_000, 500)]
    valid = jax.ShapeDtypeStruct((500,), jnp.bool_)
    full = partial(rj.match_anchors, low_quality="overwrite")
    program = jax.jit(lambda a, g, v: full(a, g, v, gt_ignore=v)).lower(*shapes, valid)
    memory = program.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 200e6


def test_gradients_stop():
    def total(anchors, gt_boxes):
        matches = rj.match_anchors(anchors, gt_boxes)
        return matches.iou.sum() + matches.gt_iou.sum()

    for grad in jax.grad(total, argnums=(0, 1))(ANCHORS, OBJECT):
        assert (np.asarray(grad) == 0).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"anchors": jnp.zeros((3, 5))}, r"anchors must be \[N, 4\].*\(3, 5\)"),
        ({"gt_boxes": jnp.zeros((2, 3, 4))}, r"gt_boxes must be \[N, 4\].*\(2, 3, 4\)"),
        ({"gt_valid": jnp.zeros(3, bool)}, r"gt_valid must have shape \(1,\)"),
        ({"gt_ignore": jnp.zeros(1)}, "gt_ignore must be boolean"),
        ({"anchor_valid": jnp.zeros(4, bool)}, r"anchor_valid.*\(5,\).*\(4,\)"),
        ({"low_quality": "on"}, "low_quality must be one of.*'on'"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    args = {"anchors": ANCHORS, "gt_boxes": OBJECT}
    with pytest.raises(ValueError, match=message):
        rj.match_anchors(**(args | change))
