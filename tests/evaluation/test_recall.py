import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpn_jax.evaluation import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    MAX_PROPOSALS,
    RecallTotals,
    average_recall,
    match_objects,
    matched_recall,
    recall_curve,
    recall_metrics,
)
from tests.evaluation.coco import pad, pycocotools, random_coco, xyxy

NUM_COUNTS = len(MAX_PROPOSALS)

jit_average_recall = jax.jit(average_recall)
jit_matched_recall = jax.jit(matched_recall)


def arrays_of_coco(truth, results):
    """COCO's dicts as padded arrays, in the order in which pycocotools takes them.

    Without classes it still goes class by class, which decides ties.
    """
    order = sorted(c["id"] for c in truth["categories"])
    images = sorted(i["id"] for i in truth["images"])

    def rows(items, image):
        items = [a for a in items if a["image_id"] == image]
        return sorted(items, key=lambda a: order.index(a["category_id"]))

    found = [
        sorted(rows(results, i), key=lambda a: -a["score"])[: MAX_PROPOSALS[-1]]
        for i in images
    ]
    objects = [rows(truth["annotations"], i) for i in images]
    n, g = max(map(len, found)), max(map(len, objects))
    boxes, valid = pad([xyxy(f) for f in found], n)
    gt_boxes, gt_valid = pad([xyxy(o) for o in objects], g)
    crowd, _ = pad([np.array([a["iscrowd"] for a in o], bool) for o in objects], g)
    areas, _ = pad([np.array([a["area"] for a in o], float) for o in objects], g)
    return boxes, valid, gt_boxes, gt_valid, crowd, areas


def pycocotools_recall(truth, results):
    """Recall `[R, K, T]` by pycocotools."""
    evaluation = pycocotools(truth, results, classes=False, most=MAX_PROPOSALS)
    return evaluation.eval["recall"][:, 0].transpose(1, 2, 0)


def greedy_reference(boxes, valid, gt, gt_valid, ignore, areas, cut, least, most):
    """Follow pycocotools' loops, ignored objects and all, for one image."""

    def iou(a, b):
        w = min(a[2], b[2]) - max(a[0], b[0])
        h = min(a[3], b[3]) - max(a[1], b[1])
        if w <= 0 or h <= 0:
            return 0.0
        both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return w * h / (both - w * h)

    out = np.full(len(gt), -1)
    skipped = ignore | (areas < least) | (areas > most)
    order = [g for g in np.argsort(skipped, kind="stable") if gt_valid[g]]
    taken, rank = set(), -1
    for n in range(len(boxes)):
        if not valid[n]:
            continue
        rank += 1
        best, match = cut, None
        for g in order:
            if g in taken and not ignore[g]:
                continue
            if match is not None and not skipped[match] and skipped[g]:
                break
            if (overlap := iou(boxes[n], gt[g])) < best:
                continue
            best, match = overlap, g
        if match is not None:
            taken.add(match)
            if not skipped[match]:
                out[match] = rank
    return out


# --- by hand -----------------------------------------------------------------------

# Two objects, 10 x 10 and 20 x 20; IoU of the proposals with them:
#   0: 0.81, 0    1: 1, 0    2: nothing    3: 0, 0.5 exactly
OBJECTS = np.array([[0, 0, 10, 10], [100, 0, 120, 20]], np.float32)
PROPOSALS = np.array(
    [[0, 0, 9, 9], [0, 0, 10, 10], [50, 50, 60, 60], [100, 0, 110, 20]], np.float32
)
YES1, YES2, YES4 = (np.ones(n, bool) for n in (1, 2, 4))


def test_first_good_proposal_takes_the_object_not_the_best():
    taken = match_objects(PROPOSALS, YES4, OBJECTS, YES2, iou_thresholds=[0.5, 0.9])
    # All: the first has 0.81 with object 0, enough for 0.5 but not for 0.9.
    np.testing.assert_array_equal(taken[0], [[0, 3], [1, -1]])


def test_areas_split_the_objects():
    counts = matched_recall(PROPOSALS, YES4, OBJECTS, YES2)
    np.testing.assert_array_equal(counts.objects, [2, 2, 0, 0])
    counts = matched_recall(
        PROPOSALS, YES4, OBJECTS, YES2, gt_areas=np.array([1024.0, 9217.0])
    )
    # 32 squared is both small and medium: COCO's ranges include both ends.
    np.testing.assert_array_equal(counts.objects, [2, 1, 1, 1])


def test_recall_by_hand():
    result = average_recall(
        PROPOSALS[None], YES4[None], OBJECTS[None], YES2[None], max_proposals=[1, 2, 4]
    )
    # With one proposal object 0 is found up to 0.8, with two at all ten thresholds;
    # with four object 1 is found at 0.5 alone.
    np.testing.assert_allclose(result.average[0], [7 / 20, 10 / 20, 11 / 20])
    np.testing.assert_allclose(result.recall[0, 2], [1] + 9 * [0.5])
    assert result.average[3, 0] == -1  # no large object


def test_iou_at_the_threshold_is_a_match():
    boxes = np.array([[0, 0, k, 1] for k in range(10, 20)], np.float32)
    target = np.array([[0, 0, 20, 1]], np.float32)  # IoU k / 20
    for n in range(10):
        taken = match_objects(boxes[n : n + 1], YES1, target, YES1)
        np.testing.assert_array_equal(taken[0, :, 0] >= 0, np.arange(10) <= n)


def test_of_equal_overlaps_the_later_object_is_taken():
    twice = OBJECTS[[0, 0]]
    taken = match_objects(PROPOSALS[1:2], YES1, twice, YES2, iou_thresholds=[0.5])
    np.testing.assert_array_equal(taken[0, 0], [-1, 0])


def test_one_proposal_finds_one_object_of_each_range():
    # Nested objects, one small, one medium: "small" knows nothing of the medium one.
    objects = np.array([[0, 0, 30, 30], [0, 0, 34, 34]], np.float32)
    taken = match_objects(objects[1:], YES1, objects, YES2, iou_thresholds=[0.5])
    np.testing.assert_array_equal(taken[:3, 0], [[-1, 0], [0, -1], [-1, 0]])


def test_crowd_never_counts_nor_takes_a_proposal():
    objects = OBJECTS[[0, 0]]
    crowd = np.array([False, True])
    counts = matched_recall(PROPOSALS, YES4, objects, YES2, crowd)
    np.testing.assert_array_equal(counts.objects, [1, 1, 0, 0])
    np.testing.assert_array_equal(counts.hits[0, -1], np.ones(10))


# --- against loops, and against pycocotools ----------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_matches_as_plain_loops_do(seed):
    rng = np.random.default_rng(seed)
    # Integer boxes on a small grid: IoU is exact and ties abound.
    n, g = 12, 6
    corner = rng.integers(0, 6, (n + g, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 8, (n + g, 2))], -1)
    boxes = boxes.astype(np.float32)
    valid, gt_valid = rng.random(n) < 0.8, rng.random(g) < 0.8
    ignore = rng.random(g) < 0.3
    areas = rng.integers(1, 50, g).astype(np.float32)
    ranges = ((0.0, 1e10), (0.0, 16.0), (16.0, 40.0))
    taken = _match(boxes[:n], valid, boxes[n:], gt_valid, ignore, areas, ranges)
    for r, (least, most) in enumerate(ranges):
        for t, cut in enumerate(IOU_THRESHOLDS):
            wanted = greedy_reference(
                boxes[:n], valid, boxes[n:], gt_valid, ignore, areas, cut, least, most
            )
            np.testing.assert_array_equal(taken[r, t], wanted)


@jax.jit
def _match(boxes, valid, gt, gt_valid, ignore, areas, ranges):
    return match_objects(
        boxes, valid, gt, gt_valid, ignore, areas, area_ranges=jnp.array(ranges)
    )


def assert_equals_pycocotools(truth, results):
    wanted = pycocotools_recall(truth, results)
    result = jit_average_recall(*arrays_of_coco(truth, results))
    np.testing.assert_allclose(result.recall, wanted, atol=1e-6)
    known = wanted[:, 0, 0] > -1
    mean = np.where(known[:, None], wanted.mean(-1), -1)
    np.testing.assert_allclose(result.average, mean, atol=1e-6)
    return result


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_on_random_boxes_with_crowd(seed):
    assert_equals_pycocotools(*random_coco(seed))


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_on_integer_boxes_with_ties(seed):
    assert_equals_pycocotools(*random_coco(100 + seed, grid=8))


def test_equals_pycocotools_in_float64():
    truth, results = random_coco(7)
    with jax.enable_x64(True):
        result = jax.jit(average_recall)(*arrays_of_coco(truth, results))
    wanted = pycocotools_recall(truth, results)
    np.testing.assert_allclose(result.recall, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("objects", "results", "name"),
    [
        (
            "instances_val2014_100.json",
            "instances_val2014_fakebbox100_results.json",
            "cocoapi100_useCats0",
        ),
        (
            "padilla_voc100/instances_gt.json",
            "padilla_voc100/results_list.json",
            "padilla_voc100_useCats0",
        ),
    ],
    ids=["coco", "voc"],
)
def test_equals_pycocotools_on_results_of_other_systems(
    shared_data, objects, results, name
):
    folder = shared_data / "ar_eval"
    truth = json.loads((folder / objects).read_text())
    found = json.loads((folder / results).read_text())
    metrics = recall_metrics(assert_equals_pycocotools(truth, found))
    reference = json.loads((folder / "reference_pycocotools.json").read_text())[name]
    for most in (1, 10, 100):
        assert metrics[f"AR@{most}"] == pytest.approx(
            reference[f"AR_all_{most}"], abs=1e-6
        )
        assert metrics[f"R50@{most}"] == pytest.approx(
            reference[f"R@0.5_{most}"], abs=1e-6
        )
        for size in ("small", "medium", "large"):
            assert metrics[f"AR@{most}_{size}"] == pytest.approx(
                reference[f"AR_{size}_{most}"], abs=1e-6
            )


def test_figures_have_recall_at_half_by_size():
    box = np.array([[[0, 0, 10, 10], [0, 0, 50, 50]]], np.float32)
    found, yes = box * [[[1.0], [0.6]]], np.ones((1, 2), bool)
    metrics = recall_metrics(average_recall(found, yes, box, yes))
    sizes = ("", "_small", "_medium", "_large")
    assert [metrics[f"R50@10{size}"] for size in sizes] == [0.5, 1, 0, -1]


# --- invariances -------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes():
    arrays = arrays_of_coco(*random_coco(3, images=4))
    return tuple(a.astype(np.float32) if a.dtype == float else a for a in arrays)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_figures_of_other_numbers_are_refused():
    box, yes = jnp.array([[[0.0, 0.0, 10.0, 10.0]]]), jnp.array([[True]])
    few = average_recall(box, yes, box, yes, max_proposals=[10, 100])
    with pytest.raises(ValueError, match="4 area ranges and 2 numbers of proposals"):
        recall_metrics(few)
    assert recall_metrics(few, max_proposals=[10, 100])["AR@10"] == 1.0
    counts = matched_recall(box[0], yes[0], box[0], yes[0], max_proposals=[10, 100])
    with pytest.raises(ValueError, match=r"\(4, 5, 10\) at the end .*\(4, 2, 10\)"):
        RecallTotals.zeros().add(counts)
    # As many numbers as in two images of the totals' kind.
    twice = matched_recall(
        box[0], yes[0], box[0], yes[0], max_proposals=list(range(1, 11))
    )
    with pytest.raises(ValueError, match=r"got \(4, 10, 10\)"):
        RecallTotals.zeros().add(twice)


def test_jit_equals_eager(scenes):
    equal(average_recall(*scenes), jit_average_recall(*scenes))


def test_vmap_equals_loop_and_totals_add_up(scenes):
    totals = RecallTotals.zeros()
    for image in zip(*scenes, strict=True):
        totals = totals.add(jit_matched_recall(*image))
    together = RecallTotals.zeros().add(jax.jit(jax.vmap(matched_recall))(*scenes))
    equal(totals, together)
    equal(totals.summarize(), jit_average_recall(*scenes))


def test_padding_has_no_influence(scenes):
    boxes, valid, gt_boxes, gt_valid, crowd, areas = scenes

    def widen(x, n, value):
        width = [(0, 0), (0, n)] + [(0, 0)] * (x.ndim - 2)
        return np.pad(x, width, constant_values=value)

    wide = jit_average_recall(
        widen(boxes, 5, np.nan),
        widen(valid, 5, False),
        widen(gt_boxes, 3, np.inf),
        widen(gt_valid, 3, False),
        widen(crowd, 3, False),
        widen(areas, 3, np.nan),
    )
    equal(jit_average_recall(*scenes), wide)


def test_invalid_rows_between_proposals_take_no_rank(scenes):
    boxes, valid, *rest = scenes
    apart = np.insert(boxes, [0, 5, 7], np.nan, axis=1)
    shown = np.insert(valid, [0, 5, 7], False, axis=1)
    equal(jit_average_recall(*scenes), jit_average_recall(apart, shown, *rest))


def test_nothing_to_find_and_nothing_found():
    none, no = np.zeros((1, 0, 4), np.float32), np.zeros((1, 0), bool)
    box, yes = OBJECTS[None], YES2[None]
    assert (average_recall(box, yes, none, no).average == -1).all()
    found = jit_average_recall(none, no, box, yes)
    np.testing.assert_array_equal(found.average[:2], np.zeros((2, NUM_COUNTS)))
    assert (average_recall(box, yes, box, ~yes).average == -1).all()
    assert average_recall(box, ~yes, box, yes).average[0, -1] == 0


def test_empty_boxes_find_nothing():
    point = np.zeros((2, 4), np.float32)
    assert matched_recall(point, YES2, point, YES2).hits.sum() == 0


def test_works_inside_shard_map(scenes, devices):
    scenes = tuple(np.concatenate([x, x]) for x in scenes)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((8,), ("data",), axis_types=auto, devices=devices)

    def count(*arrays):
        counts = RecallTotals.zeros().add(jax.vmap(matched_recall)(*arrays))
        return jax.tree.map(lambda x: jax.lax.psum(x, "data"), counts)

    counted = jax.jit(
        jax.shard_map(count, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P())
    )(*scenes)
    equal(counted.summarize(), jit_average_recall(*scenes))


def test_thresholds_are_traced():
    traces = []

    @jax.jit
    def hits(cut):
        traces.append(1)
        return matched_recall(PROPOSALS, YES4, OBJECTS, YES2, iou_thresholds=cut).hits

    assert hits(jnp.array([0.5])).sum() > hits(jnp.array([0.99])).sum()
    assert len(traces) == 1


def test_bfloat16_boxes_are_counted_in_float32():
    boxes = jnp.asarray(PROPOSALS, jnp.bfloat16)
    equal(
        matched_recall(boxes, YES4, OBJECTS, YES2),
        matched_recall(PROPOSALS, YES4, OBJECTS, YES2),
    )


def test_curve_falls_with_iou_and_rises_with_proposals(scenes):
    counts = jax.jit(jax.vmap(matched_recall))(*scenes)
    curve = np.asarray(recall_curve(RecallTotals.zeros().add(counts)))
    assert (np.diff(curve, axis=-1) <= 0).all()
    assert (np.diff(curve, axis=1) >= 0).all()
    assert recall_curve(counts).shape == (4, len(AREA_RANGES), NUM_COUNTS, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(boxes=PROPOSALS), r"boxes must be \[B, N, 4\]"),
        (dict(gt_valid=YES2[None, :1]), "gt_valid must have shape"),
        (dict(valid=np.ones((1, 4))), "valid must be boolean"),
        (dict(gt_ignore=YES4[None]), "gt_ignore must have shape"),
        (dict(gt_areas=np.ones((1, 3))), "gt_areas must have shape"),
        (dict(iou_thresholds=0.5), "iou_thresholds must be"),
        (dict(area_ranges=np.array([0.0, 1.0])), "area_ranges must be"),
        (dict(max_proposals=5), "max_proposals must be"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    arguments = dict(
        boxes=PROPOSALS[None],
        valid=YES4[None],
        gt_boxes=OBJECTS[None],
        gt_valid=YES2[None],
    )
    with pytest.raises(ValueError, match=message):
        average_recall(**(arguments | change))
