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
    MAX_DETECTIONS,
    average_precision,
    match_detections,
    match_voc_detections,
    precision_metrics,
)
from tests import strategies
from tests.evaluation.coco import detection_arrays, pycocotools, random_coco

jit_match = jax.jit(match_detections)
match_images = jax.jit(jax.vmap(match_detections))


# --- by hand -----------------------------------------------------------------------

# Two objects of class 0, 10 x 10 and 20 x 20, one of class 1.
OBJECTS = np.array([[0, 0, 10, 10], [100, 0, 120, 20], [200, 0, 240, 40]], np.float32)
CLASSES = np.array([0, 0, 1])
YES = np.ones(3, bool)


def match(boxes, scores, labels, **options):
    boxes = np.asarray(boxes, np.float32)
    valid = np.ones(len(boxes), bool)
    options = dict(gt_boxes=OBJECTS, gt_labels=CLASSES, gt_valid=YES) | options
    return jit_match(
        boxes, np.asarray(scores, np.float32), np.asarray(labels), valid, **options
    )


def test_detection_finds_objects_of_its_own_class_only():
    found = match(OBJECTS, [1, 1, 1], [0, 1, 1])
    np.testing.assert_array_equal(found.hit[0, 0], [True, False, True])
    assert not found.ignored[0].any()


def test_best_score_takes_the_object_whatever_the_order_of_rows():
    twice = OBJECTS[[0, 0, 0]]
    found = match(twice, [0.2, 0.9, 0.9], [0, 0, 0])
    # Of equal scores the first row; the others are false positives.
    np.testing.assert_array_equal(found.hit[0, 0], [False, True, False])
    np.testing.assert_array_equal(found.ranks, [2, 0, 1])


def test_second_best_object_is_taken_when_the_best_is_gone():
    nested = np.array([[0, 0, 10, 10], [0, 0, 10, 8]], np.float32)
    found = match(nested[[0, 0]], [0.9, 0.8], [0, 0], gt_boxes=nested,
                  gt_labels=CLASSES[:2], gt_valid=YES[:2])  # fmt: skip
    np.testing.assert_array_equal(found.hit[0, :, 0], 10 * [True])
    np.testing.assert_array_equal(found.hit[0, :, 1], 7 * [True] + 3 * [False])


def test_crowd_swallows_every_detection_inside():
    inside = [[1, 1, 3, 3], [2, 2, 4, 4], [8, 8, 12, 12]]  # the last by a quarter
    crowd = np.array([True, False, False])
    found = match(inside, [0.9, 0.8, 0.7], [0, 0, 0], gt_ignore=crowd)
    assert not found.hit.any()
    np.testing.assert_array_equal(found.ignored[0, 0], [True, True, False])
    np.testing.assert_array_equal(found.objects[0], [-1, 0, 1])


def test_detection_prefers_an_object_to_a_crowd_of_higher_overlap():
    objects = np.array([[0, 0, 100, 100], [0, 0, 10, 10]], np.float32)
    crowd = np.array([True, False])
    found = match([[0, 0, 10, 8]], [1], [0], gt_boxes=objects, gt_labels=CLASSES[:2],
                  gt_valid=YES[:2], gt_ignore=crowd)  # fmt: skip
    # IoU 0.8 with the object; above, it goes to the crowd in which it lies.
    np.testing.assert_array_equal(found.hit[0, :, 0], 7 * [True] + 3 * [False])
    np.testing.assert_array_equal(found.ignored[0, :, 0], 7 * [False] + 3 * [True])


def test_object_outside_the_area_range_is_taken_once():
    # Medium: the object is small, the detections are small; both are left out. Large
    # likewise. Small: one hit, one false positive.
    found = match(OBJECTS[[1, 1]], [0.9, 0.8], [0, 0])
    np.testing.assert_array_equal(found.hit[:, 0, 0], [True, True, False, False])
    np.testing.assert_array_equal(found.ignored[:, 0], 2 * [[0, 0]] + 2 * [[1, 1]])
    # A medium detection on a small object: the first is left out with the object, the
    # second is a false positive among the medium ones.
    large = [[100, 0, 132.5, 32.5]] * 2
    areas = np.array([100, 900, 1600])
    objects = np.array([[0, 0, 10, 10], [100, 0, 130, 30], [200, 0, 240, 40]])
    found = match(large, [0.9, 0.8], [0, 0], gt_boxes=objects, gt_areas=areas)
    np.testing.assert_array_equal(found.ignored[2, 0], [True, False])
    assert not found.hit[2].any()


def test_average_precision_by_hand():
    # Class 0: hit, wrong, hit. Precision 1 up to recall 1/2, then 2/3.
    boxes = np.stack([OBJECTS[0], OBJECTS[2], OBJECTS[1]])
    result = average_precision(match(boxes, [0.9, 0.8, 0.7], [0, 0, 0]), num_classes=3)
    ap = (51 * 1 + 50 * 2 / 3) / 101
    np.testing.assert_allclose(result.average[0, :, 0], ap)
    np.testing.assert_allclose(result.average[0, :, 1], 0)  # one object, not found
    np.testing.assert_allclose(result.average[0, :, 2], -1)  # none
    np.testing.assert_array_equal(result.objects[0], [2, 1, 0])
    np.testing.assert_allclose(result.recall[0, :, 0, 0], [0.5, 1, 1])
    metrics = precision_metrics(result)
    assert metrics["AP"] == metrics["AP50"] == pytest.approx(ap / 2)
    assert metrics["AR@1"] == 0.25
    assert metrics["AP_large"] == metrics["AR@100_large"] == -1


def test_detections_of_an_image_without_objects_are_wrong():
    yes, no = match(OBJECTS[:1], [0.5], [0]), match(OBJECTS[:1], [0.9], [0])
    empty = no._replace(hit=no.hit & False, objects=jnp.full_like(no.objects, -1))
    alone = average_precision([yes], num_classes=2)
    both = average_precision([yes, empty], num_classes=2)
    assert alone.average[0, 0, 0] == pytest.approx(51 / 101)
    assert both.average[0, 0, 0] == pytest.approx(51 / 2 / 101)
    np.testing.assert_array_equal(alone.objects, both.objects)


def test_only_the_best_detections_of_image_and_class_count():
    boxes = np.stack([OBJECTS[2], OBJECTS[0]])  # of class 0 the first is wrong
    found = match(boxes, [0.9, 0.8], [0, 0])
    result = average_precision(found, num_classes=1 + 1, max_detections=[1])
    assert result.average[0, 0, 0] == 0
    result = average_precision(found, num_classes=2, max_detections=[1, 2])
    assert result.average[0, 0, 0] == pytest.approx(51 / 2 / 101)
    np.testing.assert_array_equal(result.recall[0, :, 0, 0], [0, 0.5])


# --- against loops, and against pycocotools ----------------------------------------


def overlap(box, other, crowd):
    """IoU, or the part of the box that lies in a crowd."""
    w = min(box[2], other[2]) - max(box[0], other[0])
    h = min(box[3], other[3]) - max(box[1], other[1])
    if w <= 0 or h <= 0:
        return 0.0
    own = (box[2] - box[0]) * (box[3] - box[1])
    if crowd:
        return w * h / own
    return w * h / (own + (other[2] - other[0]) * (other[3] - other[1]) - w * h)


def reference(boxes, scores, labels, valid, gt, gt_labels, gt_valid, crowd, areas, cut,
              least, most):  # fmt: skip
    """Follow pycocotools' loops for one image, threshold and range."""
    skipped = crowd | (areas < least) | (areas > most)
    hit, ignored = np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
    taken = set()
    for n in np.argsort(-scores, kind="stable"):
        if not valid[n]:
            continue
        best, found = cut, None
        for g in np.argsort(skipped, kind="stable"):
            if not gt_valid[g] or gt_labels[g] != labels[n]:
                continue
            if g in taken and not crowd[g]:
                continue
            if found is not None and not skipped[found] and skipped[g]:
                break
            if (iou := overlap(boxes[n], gt[g], crowd[g])) < best:
                continue
            best, found = iou, g
        area = (boxes[n, 2] - boxes[n, 0]) * (boxes[n, 3] - boxes[n, 1])
        if found is None:
            ignored[n] = area < least or area > most
        else:
            taken.add(found)
            hit[n], ignored[n] = not skipped[found], skipped[found]
    return hit, ignored


N, G = 10, 6
RANGES = np.array([(0, 1e10), (0, 9), (9, 20)])


@given(
    boxes=strategies.grid_boxes(N + G),
    scores=st.lists(st.integers(0, 4), min_size=N, max_size=N).map(np.array),
    labels=strategies.groups(N + G),
    valid=strategies.masks(N),
    gt_valid=strategies.masks(G),
    crowd=strategies.masks(G),
    areas=st.lists(st.integers(0, 25), min_size=G, max_size=G).map(np.array),
)
def test_matches_as_plain_loops_do(
    boxes, scores, labels, valid, gt_valid, crowd, areas
):
    arrays = (boxes[:N], scores, labels[:N], valid)
    arrays += (boxes[N:], labels[N:], gt_valid, crowd, areas)
    found = jit_match(*arrays, area_ranges=RANGES)
    for r, (least, most) in enumerate(RANGES):
        for t, cut in enumerate(IOU_THRESHOLDS):
            hit, ignored = reference(*arrays, cut, least, most)
            np.testing.assert_array_equal(found.hit[r, t], hit)
            np.testing.assert_array_equal(found.ignored[r, t], ignored)
    for n in range(N):
        better = (scores > scores[n]) | ((scores == scores[n]) & (np.arange(N) < n))
        rank = np.sum(better & valid & (labels[:N] == labels[n])) if valid[n] else -1
        assert found.ranks[n] == rank


def scene(seed, grid=None):
    """Crowd, equal scores, images without objects, classes of all kinds."""
    truth, results = random_coco(seed, grid=grid)
    truth["categories"] += [dict(id=7, name="7"), dict(id=9, name="9")]
    for r in results[::10]:
        r["category_id"] = 7  # nothing to find
    for a in truth["annotations"][::10]:
        a["category_id"] = 9  # nothing found
    truth["images"] += [dict(id=98), dict(id=99)]  # nothing at all; only detections
    results.append(dict(results[0], image_id=99, score=1.0))
    return truth, results


def assert_equals_pycocotools(truth, results, *, most=MAX_DETECTIONS):
    evaluation = pycocotools(truth, results, classes=True, most=most)
    result = average_precision(
        match_images(*detection_arrays(truth, results)),
        num_classes=len(truth["categories"]),
        max_detections=most,
    )
    wanted = evaluation.eval["precision"][..., -1].transpose(3, 0, 2, 1)
    np.testing.assert_allclose(result.precision, wanted, atol=1e-6)
    wanted = evaluation.eval["recall"].transpose(2, 3, 0, 1)
    np.testing.assert_allclose(result.recall, wanted, atol=1e-6)
    return result, evaluation.stats


def assert_figures_equal(result, stats):
    metrics = precision_metrics(result)
    sizes = ("small", "medium", "large")
    names = ["AP", "AP50", "AP75", *(f"AP_{s}" for s in sizes)]
    names += ["AR@1", "AR@10", "AR@100", *(f"AR@100_{s}" for s in sizes)]
    np.testing.assert_allclose([metrics[n] for n in names], stats, atol=1e-6)
    return metrics


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_on_random_boxes(seed):
    assert_figures_equal(*assert_equals_pycocotools(*scene(seed)))


@pytest.mark.parametrize("seed", range(3))
def test_equals_pycocotools_on_integer_boxes_with_ties(seed):
    assert_figures_equal(*assert_equals_pycocotools(*scene(100 + seed, grid=8)))


def test_equals_pycocotools_with_few_detections_an_image():
    result, _ = assert_equals_pycocotools(*scene(5), most=(1, 3, 10))
    assert (np.diff(result.recall[0], axis=0) > 0).any(axis=(1, 2)).all()


def test_figures_of_other_numbers_are_refused():
    box, yes = np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([True])
    one, label = np.ones(1), np.array([0])
    found = match_detections(box, one, label, yes, box, label, yes)
    few = average_precision(found, num_classes=1, max_detections=[100])
    with pytest.raises(ValueError, match="4 area ranges and 1 numbers of detections"):
        precision_metrics(few)
    assert precision_metrics(few, max_detections=[100])["AP"] == 1.0


def test_scores_that_differ_in_float64_alone_are_no_ties():
    boxes = np.array([[20.0, 0, 30, 10], [0, 0, 10, 10]])
    labels, yes = np.zeros(2, int), np.ones(2, bool)
    with jax.enable_x64(True):
        for match in (match_detections, match_voc_detections):
            scores = np.array([0.5, 0.5 + 1e-9])
            found = match(
                boxes, scores, labels, yes, boxes[1:], labels[1:], np.array([True])
            )
            assert found.scores.dtype == np.float64
            assert found.ranks.tolist() == [1, 0]


def test_equals_pycocotools_in_float64():
    with jax.enable_x64(True):
        assert_figures_equal(*assert_equals_pycocotools(*scene(6)))


def test_equals_pycocotools_without_classes():
    truth, results = random_coco(8)
    for item in truth["annotations"] + results:
        item["category_id"] = 1
    truth["categories"] = truth["categories"][:1]
    result, _ = assert_equals_pycocotools(truth, results)
    assert result.average.shape == (4, 10, 1)


@pytest.mark.parametrize(
    ("objects", "results", "name"),
    [
        (
            "instances_val2014_100.json",
            "instances_val2014_fakebbox100_results.json",
            "cocoapi100",
        ),
        (
            "padilla_voc100/instances_gt.json",
            "padilla_voc100/results_list.json",
            "padilla_voc100",
        ),
    ],
    ids=["coco", "voc"],
)
@pytest.mark.parametrize("classes", [True, False], ids=["classes", "agnostic"])
def test_equals_pycocotools_on_results_of_other_systems(
    shared_data, objects, results, name, classes
):
    folder = shared_data / "ar_eval"
    truth = json.loads((folder / objects).read_text())
    found = json.loads((folder / results).read_text())
    if not classes:
        # Without classes pycocotools goes class by class, which decides ties.
        for items in (truth["annotations"], found):
            items.sort(key=lambda a: a["category_id"])
            for item in items:
                item["category_id"] = truth["categories"][0]["id"]
        truth["categories"] = truth["categories"][:1]
    metrics = assert_figures_equal(*assert_equals_pycocotools(truth, found))
    reference = json.loads((folder / "reference_pycocotools.json").read_text())
    reference = reference[f"{name}_useCats{int(classes)}"]
    assert metrics["AP"] == pytest.approx(reference["AP"], abs=1e-6)
    for most in MAX_DETECTIONS:
        for size in ("all", "small", "medium", "large"):
            key = f"AR@{most}" + ("" if size == "all" else f"_{size}")
            wanted = reference[f"AR_{size}_{most}"]
            assert metrics[key] == pytest.approx(wanted, abs=1e-6)


# --- invariances -------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes():
    arrays = detection_arrays(*random_coco(3, images=4))
    return tuple(a.astype(np.float32) if a.dtype == float else a for a in arrays)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_jit_equals_eager(scenes):
    image = tuple(a[0] for a in scenes)
    equal(match_detections(*image), jit_match(*image))


def test_vmap_equals_loop(scenes):
    images = [jit_match(*image) for image in zip(*scenes, strict=True)]
    together = match_images(*scenes)
    equal(jax.tree.map(lambda *x: jnp.stack(x), *images), together)
    equal(
        average_precision(images, num_classes=3),
        average_precision(together, num_classes=3),
    )


def test_padding_has_no_influence(scenes):
    boxes, scores, labels, valid, *objects = scenes
    gt_boxes, gt_labels, gt_valid, crowd, areas = objects

    def widen(x, value, front=3, behind=2):
        width = [(0, 0), (front, behind)] + [(0, 0)] * (x.ndim - 2)
        return np.pad(x, width, constant_values=value)

    wide = match_images(
        widen(boxes, np.nan),
        widen(scores, np.inf),
        widen(labels, 1),
        widen(valid, False),
        widen(gt_boxes, np.inf),
        widen(gt_labels, 1),
        widen(gt_valid, False),
        widen(crowd, True),
        widen(areas, np.nan),
    )
    for field, same in zip(wide, match_images(*scenes), strict=True):
        np.testing.assert_array_equal(field[..., 3:-2], same)
    assert not (wide.hit | wide.ignored)[..., :3].any()
    assert (wide.labels[..., -2:] == -1).all() and (wide.scores[..., :3] == 0).all()
    equal(
        average_precision(wide, num_classes=3),
        average_precision(match_images(*scenes), num_classes=3),
    )


def test_nothing_to_find_and_nothing_found():
    boxes, no = np.zeros((2, 4), np.float32), np.zeros(2, bool)
    padded = boxes, boxes[:, 0], np.zeros(2, int), no
    none = boxes[:0], boxes[:0, 0], np.zeros(0, int), no[:0]
    objects = OBJECTS, CLASSES, YES
    for found in (padded, none):
        result = average_precision(match_detections(*found, *objects), num_classes=3)
        np.testing.assert_array_equal(result.average[0], [[0, 0, -1]] * 10)
        np.testing.assert_array_equal(result.recall[0, 0], [[0, 0, -1]] * 10)
        for empty in (found[0], found[2], found[3]), (none[0], none[2], none[3]):
            found_nothing = match_detections(*found, *empty)
            result = average_precision(found_nothing, num_classes=1)
            assert (result.average == -1).all()
            assert set(precision_metrics(result).values()) == {-1.0}


def test_works_inside_shard_map(scenes, devices):
    scenes = tuple(np.concatenate([x, x]) for x in scenes)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((8,), ("data",), axis_types=auto, devices=devices)
    sharded = jax.shard_map(
        jax.vmap(match_detections),
        mesh=mesh,
        in_specs=jax.P("data"),
        out_specs=jax.P("data"),
    )
    equal(jax.jit(sharded)(*scenes), match_images(*scenes))


def test_thresholds_are_traced():
    traces = []

    @jax.jit
    def hits(cut):
        traces.append(1)
        return match(OBJECTS + 1, [1, 1, 1], [0, 0, 1], iou_thresholds=cut).hit

    assert hits(jnp.array([0.5])).sum() > hits(jnp.array([0.99])).sum()
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(boxes=OBJECTS[0]), r"boxes must be \[N, 4\]"),
        (dict(scores=np.ones(2)), "scores must have shape"),
        (dict(labels=np.ones(3)), "labels must be integers"),
        (dict(valid=np.ones(3)), "valid must be boolean"),
        (dict(gt_labels=CLASSES[:2]), "gt_labels must have shape"),
        (dict(gt_valid=YES[:2]), "gt_valid must have shape"),
        (dict(gt_ignore=YES[:2]), "gt_ignore must have shape"),
        (dict(gt_areas=np.ones(2)), "gt_areas must have shape"),
        (dict(iou_thresholds=0.5), "iou_thresholds must be"),
        (dict(area_ranges=np.array([0.0, 1.0])), "area_ranges must be"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    arguments = dict(boxes=OBJECTS, scores=np.ones(3), labels=CLASSES, valid=YES)
    arguments |= dict(gt_boxes=OBJECTS, gt_labels=CLASSES, gt_valid=YES)
    with pytest.raises(ValueError, match=message):
        match_detections(**(arguments | change))


def test_wrong_results_are_named():
    found = match(OBJECTS, [1, 1, 1], CLASSES)
    with pytest.raises(ValueError, match="got class 1 with num_classes = 1"):
        average_precision(found, num_classes=1)
    with pytest.raises(ValueError, match="one image at least"):
        average_precision([], num_classes=1)
    at_half = match(OBJECTS, [1, 1, 1], CLASSES, iou_thresholds=np.array([0.5]))
    with pytest.raises(ValueError, match="10 IoU thresholds, got 1"):
        precision_metrics(average_precision(at_half, num_classes=2))
    assert found.hit.shape == (len(AREA_RANGES), 10, 3)
