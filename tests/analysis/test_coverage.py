"""Coverage is what comparing every object with every anchor gives."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpn_jax.analysis import (
    Coverage,
    Objects,
    advise,
    anchor_grids,
    anchor_layout,
    best_ious,
    cover,
    coverage,
    groups,
    heat_map,
    matched_positives,
    shares,
    table,
    try_additions,
)
from rpn_jax.conventions import DETECTRON2, PY_FASTER_RCNN, TORCHVISION, options
from rpn_jax.ops.anchors import pyramid_anchors
from rpn_jax.rpn import RPNConfig, level_strides, rpn
from tests import reference
from tests.strategies import floats

BUCKETS = ((96, 128), (97, 90))
N = 6


def with_targets(convention, **changes):
    targets = dataclasses.replace(convention.targets, **changes)
    return dataclasses.replace(convention, targets=targets)


SINGLE = RPNConfig(backbone="squeezenet", sizes=((24.0, 48.0),))
PYRAMID = RPNConfig(
    backbone="small_resnet_fpn",
    strides=(8, 16),
    sizes=((12.0,), (41.3,)),
    ratios=(0.4, 1.0, 2.0),
)
CASES = {
    "torchvision": (SINGLE, TORCHVISION),
    "torchvision_grid": (
        dataclasses.replace(SINGLE, backbone="squeezenet_torchvision"),
        TORCHVISION,
    ),
    "detectron2_pyramid": (PYRAMID, DETECTRON2),
    "inside_before": (PYRAMID, PY_FASTER_RCNN),
    "inside_after": (SINGLE, with_targets(DETECTRON2, boundary=0.0)),
    "nearly_inside": (
        SINGLE,
        with_targets(PY_FASTER_RCNN, boundary=5.0, low_quality_above=0.1),
    ),
    "no_low_quality": (SINGLE, with_targets(TORCHVISION, low_quality="off")),
}


def network(case):
    config, convention = CASES[case]
    return dataclasses.replace(config, convention=convention)


def alone(boxes, sizes, bucket=0) -> Objects:
    """Objects with an image each."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    number = len(boxes)
    return Objects(
        boxes,
        reference.area(boxes),
        np.arange(number, dtype=np.int32),
        np.broadcast_to(np.asarray(sizes, np.int32), (number, 2)),
        np.broadcast_to(np.asarray(bucket, np.int32), number),
        BUCKETS,
    )


@functools.cache
def all_anchors(config, size):
    grids = anchor_grids(config, size)
    levels = pyramid_anchors(
        grids,
        sizes=config.sizes,
        ratios=config.ratios,
        strides=level_strides(config, grids, size),
        **options(config.convention.anchors, "stride"),
    )
    return np.concatenate([np.float64(level) for level in levels])


def may_be_used(anchors, size, targets):
    """As `anchor_targets` has it."""
    (height, width), border = size, targets.boundary
    x1, y1, x2, y2 = anchors.T
    low = (x1 >= -border) & (y1 >= -border)
    if targets.boundary_first:
        return low & (x2 <= width + border) & (y2 <= height + border)
    return low & (x2 < width + border) & (y2 < height + border)


@st.composite
def objects_in_images(draw):
    """Boxes in images; on whole pixels and between them, at borders, beyond a grid."""
    boxes, sizes, buckets = [], [], []
    for _ in range(N):
        bucket = draw(st.integers(0, 1))
        size = [draw(st.integers(side // 2, side)) for side in BUCKETS[bucket]]
        whole, ends = draw(st.booleans()), []
        for side in size[::-1]:
            length = draw(st.integers(1, side) if whole else floats(0.5, side))
            # At the border as often as not.
            place = draw(st.sampled_from([0, 1]) | floats(0, 1)) * (side - length)
            start = np.floor(place) if whole else place
            ends.append((start, start + length))
        (x1, x2), (y1, y2) = ends
        boxes.append((x1, y1, x2, y2))
        sizes.append(size)
        buckets.append(bucket)
    return alone(boxes, sizes, buckets)


@pytest.mark.parametrize("case", CASES)
@given(objects=objects_in_images())
def test_coverage_is_that_of_all_anchors(case, objects):
    config = network(case)
    targets = config.convention.targets
    found = cover(objects, anchor_layout(config, BUCKETS), targets)
    high = targets.high_threshold
    for i in range(N):
        size = objects.image_sizes[i]
        anchors = all_anchors(config, BUCKETS[objects.bucket[i]])
        usable = may_be_used(anchors, size, targets)
        ious = reference.iou(anchors, np.float64(objects.boxes[i])[None])
        best = ious[usable].max(initial=0)
        assert found.iou[i] == pytest.approx(best, abs=1e-6)

        if abs(best - high) > 1e-6:
            assert found.covered[i] == (best > high)
        claims = targets.boundary_first or best >= ious.max() - 1e-5
        saved = claims and best > max(targets.low_quality_above, 0)
        saved &= targets.low_quality != "off" and not found.covered[i]
        # Where two anchors are within a rounding error of each other either may claim.
        if not 5e-6 < ious.max() - best < 2e-5:
            assert found.saved[i] == saved
        assert found.lost[i] == (not (found.covered[i] or found.saved[i]))

        if found.lost[i]:
            assert found.positives[i].sum() == 0
        else:
            reach = high if found.covered[i] else best
            at_least, at_most = (
                (usable & (ious >= reach - slack)).sum() for slack in (5e-6, 1.5e-5)
            )
            assert at_least <= found.positives[i].sum() <= at_most
            assert ious[usable].max() > 0 and 0 <= found.cell[i]


@pytest.mark.parametrize("case", CASES)
def test_the_best_cell_anchor_is_named(case):
    config = network(case)
    layout = anchor_layout(config, BUCKETS)
    cell = layout.cells[-1]
    size = cell[2:] - cell[:2]
    middle = np.array([50.0, 45.0])
    box = np.concatenate([middle - size / 2, middle + size / 2])
    found = cover(alone(box, (96, 128)), layout, config.convention.targets)
    assert found.cell.tolist() == [len(layout.cells) - 1]
    assert layout.level[found.cell[0]] == len(config.strides) - 1


# One anchor of 16 px at each of 2 x 2 points: at 8 and 24, both ways.
FOUR = RPNConfig(
    backbone="squeezenet",
    sizes=((16.0,),),
    ratios=(1.0,),
    convention=dataclasses.replace(
        DETECTRON2, anchors=dataclasses.replace(DETECTRON2.anchors, offset=0.5)
    ),
)


def cover_four(boxes, config=FOUR):
    objects = alone(boxes, (32, 32))._replace(buckets=((32, 32),))
    layout = anchor_layout(config, objects.buckets)
    return cover(objects, layout, config.convention.targets)


def test_worked_by_hand():
    found = cover_four(
        [
            [0, 0, 16, 16],  # an anchor itself
            [8, 8, 24, 24],  # between all four: 64 / (512 - 64) with each
            [2, 0, 18, 16],  # 224 / 288 with its own, 32 / 480 with the next
            [4, 0, 20, 16],  # 192 / 320, too little; half a stride off 1/3 and 1/7
            [0, 0, 16, 32],  # 256 / 512 with two
        ]
    )
    np.testing.assert_allclose(found.iou, [1, 1 / 7, 7 / 9, 0.6, 0.5], atol=1e-7)
    assert found.covered.tolist() == [True, False, True, False, False]
    assert found.saved.tolist() == [False, True, False, True, True]
    assert found.positives.ravel().tolist() == [1, 4, 1, 1, 2]
    np.testing.assert_allclose(found.centred, [1, 1, 1, 1, 0.5], atol=1e-7)
    # A box of 16 x 32 half a stride off shares 8 x 16 of 256 + 512.
    np.testing.assert_allclose(found.between, [*[1 / 7] * 4, 1 / 5], atol=1e-7)


def test_without_the_low_quality_rule_what_is_not_covered_is_lost():
    off = dataclasses.replace(
        FOUR, convention=with_targets(FOUR.convention, low_quality="off")
    )
    found = cover_four([[0, 0, 16, 16], [8, 8, 24, 24]], off)
    assert found.lost.tolist() == [False, True]
    assert found.positives.ravel().tolist() == [1, 0]


def test_an_object_that_no_anchor_touches_is_lost():
    """In images smaller than their padded size anchors may be left out around it."""
    inside = dataclasses.replace(
        FOUR,
        convention=with_targets(FOUR.convention, boundary=0.0, boundary_first=True),
    )
    objects = alone([[20, 20, 30, 30]], (31, 31))._replace(buckets=((32, 32),))
    layout = anchor_layout(inside, objects.buckets)
    found = cover(objects, layout, inside.convention.targets)
    assert found.lost.all() and found.cell.tolist() == [-1]
    assert found.iou.tolist() == [0] and found.positives.sum() == 0
    # The convention has no guard, yet no anchor learns the object.
    assert matched_positives(objects, inside).tolist() == [0]


def shifted(box, step, stride):
    at = np.arange(0, stride + step / 2, step)
    y, x = (c.ravel() for c in np.meshgrid(at, at))
    return np.asarray(box, np.float32) + np.stack([x, y, x, y], axis=1)


def test_shifts_within_a_stride_stay_between_the_two_extremes():
    boxes = shifted([40, 32, 62, 58.5], 1, 16)
    for case in ("torchvision", "detectron2_pyramid"):
        config = network(case)
        found = cover(
            alone(boxes, (96, 128)),
            anchor_layout(config, BUCKETS),
            config.convention.targets,
        )
        assert np.ptp(found.centred) < 1e-6 and np.ptp(found.between) < 1e-6
        assert found.iou.max() <= found.centred[0] + 1e-6
        assert found.iou.min() >= found.between[0] - 1e-6


def test_one_level_attains_both_extremes():
    config = network("torchvision")
    # Its centre visits a grid point and the point half-way between four.
    boxes = shifted([40, 32, 62, 58], 1, 16)
    found = cover(
        alone(boxes, (96, 128)),
        anchor_layout(config, BUCKETS),
        config.convention.targets,
    )
    assert found.iou.max() == pytest.approx(found.centred[0], abs=1e-6)
    assert found.iou.min() == pytest.approx(found.between[0], abs=1e-6)


def many(number=50, seed=0) -> Objects:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (number, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 36, (number, 2))], axis=1)
    image = np.sort(rng.integers(0, 7, number)).astype(np.int32)
    boxes = boxes.astype(np.float32)
    sizes = np.tile(np.array([[96, 96]], np.int32), (7, 1))
    areas = reference.area(boxes)
    return Objects(boxes, areas, image, sizes, np.zeros(7, np.int32), BUCKETS)


def test_chunks_change_nothing(monkeypatch):
    config, objects = network("torchvision"), many()
    layout, targets = anchor_layout(config, BUCKETS), config.convention.targets
    whole = cover(objects, layout, targets)
    monkeypatch.setattr(coverage, "CHUNK", 16)
    steps = []
    parts = cover(objects, layout, targets, lambda *step: steps.append(step))
    assert steps == [(16, 50), (32, 50), (48, 50), (50, 50)]
    for name, one, other in zip(Coverage._fields, whole, parts, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
    np.testing.assert_array_equal(whole.iou, best_ious(objects, layout, targets))


@pytest.mark.parametrize("case", ["torchvision_grid", "detectron2_pyramid"])
def test_the_anchors_are_those_of_the_network(case):
    config, size = network(case), (97, 90)
    model = rpn(config)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), image_size=size))
    image = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    sizes = jax.ShapeDtypeStruct((1, 2), np.int32)
    outputs = jax.eval_shape(model.apply, params, image, sizes)
    cells = len(config.sizes[0]) * len(config.ratios)
    counts = [height * width * cells for height, width in anchor_grids(config, size)]
    assert [len(level) for level in outputs.anchors] == [*counts]


def test_an_object_alone_gets_what_is_counted():
    """Anchors on whole pixels, so that equal IoUs are equal to the bit."""
    config, objects = network("torchvision"), many()
    single = alone(objects.boxes, (96, 96))
    found = cover(single, anchor_layout(config, BUCKETS), config.convention.targets)
    np.testing.assert_array_equal(
        matched_positives(single, config), found.positives.sum(axis=1)
    )


def test_objects_compete_for_anchors():
    config = network("torchvision")
    # The same box twice, the first has all anchors; then one far from both.
    boxes = [[10, 10, 40, 40], [10, 10, 40, 40], [60, 60, 90, 90]]
    image = np.array([1, 1, 1], np.int32)
    objects = alone(boxes, (96, 96))._replace(image=image)
    steps = []
    got = matched_positives(objects, config, lambda *step: steps.append(step))
    apart = matched_positives(alone(boxes, (96, 96)), config)
    assert got.tolist() == [apart[0], 0, apart[2]] and apart.min() > 0
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_groups_part_the_objects_and_shares_add_up():
    config, objects = network("detectron2_pyramid"), many()
    layout, targets = anchor_layout(config, BUCKETS), config.convention.targets
    found = cover(objects, layout, targets)
    named = groups(objects, found, layout)
    for title in ("size, network input", "height / width", "level of best anchor"):
        assert (np.sum(list(named[title].values()), axis=0) == 1).all()
    coco = named["size (COCO), original"]
    assert coco["all"].all()
    assert coco["small"].sum() == (objects.areas <= 1024).sum()
    row = shares(found, coco["all"], 0.7)
    assert row.objects == 50
    assert row.above[2] + row.saved + row.lost == pytest.approx(1)
    assert row.centred >= row.above[2]
    none = shares(found, np.zeros(50, bool), 0.7)
    assert none.objects == 0 and math.isnan(none.mean_iou)

    heat = heat_map(objects, found.covered)
    assert heat.objects.sum() == 50
    assert np.nansum(heat.mean * heat.objects) == pytest.approx(found.covered.sum())
    assert np.isnan(heat.mean[heat.objects == 0]).all()

    lines = table(found, "size", coco, 0.7).splitlines()
    assert [line.split()[0] for line in lines] == ["size", *coco]
    assert f"{row.mean_iou:.3f}" in lines[1] and lines[-1].split() == ["large", "0"]


def test_advice_names_what_is_missed_and_what_to_add():
    config = dataclasses.replace(SINGLE, sizes=((48.0,),), ratios=(1.0,))
    targets = config.convention.targets
    at = np.array([[32, 32], [48, 48], [64, 64]], np.float32)
    large = np.concatenate([at - 24, at + 24], axis=1)
    small = np.concatenate([at - 10, at + 10], axis=1)
    layout = anchor_layout(config, BUCKETS)

    objects = alone(np.concatenate([large, small]), (96, 96))
    found = cover(objects, layout, targets)
    first, *others = advise(objects, found, config)
    assert first == "3 of 6 objects (50%) have no anchor at IoU 0.7."
    assert "Sizes of which less than half are covered: 16-23 px (0% of 3)." in others
    assert any(
        "Adding the size 20 px at stride 16 would cover another 50%" in line
        for line in others
    )
    added = try_additions(objects, found, config, "cells")
    assert added and all(line.endswith("% of the cells.") for line in added)

    objects = alone(large, (96, 96))
    found = cover(objects, layout, targets)
    assert advise(objects, found, config) == ["Every object has an anchor at IoU 0.7."]
    assert try_additions(objects, found, config) == []


def test_advice_tells_misplaced_from_misshapen():
    config = dataclasses.replace(SINGLE, sizes=((20.0,),), ratios=(1.0,))
    objects = alone([[30, 30, 50, 50], [46, 46, 66, 66]], (96, 96))
    found = cover(objects, anchor_layout(config, BUCKETS), config.convention.targets)
    text = " ".join(advise(objects, found, config))
    assert "100% of the missed would be covered if they lay on a grid point" in text
