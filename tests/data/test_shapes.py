"""The synthetic scenes have the distributions that their docstring promises."""

import pickle

import numpy as np
import pytest

from rpn_jax.data import CocoSource, ShapesSource, export_coco, load_image
from rpn_jax.data.shapes import CLASSES, _make_object, draw_scene

SCENES = 1500


@pytest.fixture(scope="module")
def scenes():
    """Many scenes without their pixels."""
    rngs = (np.random.default_rng((3, i)) for i in range(SCENES))
    return [draw_scene(rng)._replace(image=None) for rng in rngs]


@pytest.fixture(scope="module")
def extents(scenes):
    boxes = np.concatenate([s.boxes for s in scenes]).astype(np.float64)
    return boxes[:, 2:] - boxes[:, :2]


def test_a_scene_depends_on_seed_and_index_alone():
    one, two = ShapesSource(10, seed=1), ShapesSource(99, seed=1)
    np.testing.assert_array_equal(one[3].image, two[3].image)
    np.testing.assert_array_equal(
        one[3].boxes, pickle.loads(pickle.dumps(one))[3].boxes
    )
    assert (one[3].image != one[4].image).any()
    assert (one[3].image != ShapesSource(10, seed=2)[3].image).any()
    with pytest.raises(IndexError):
        one[10]


@pytest.mark.parametrize("size", [64, 256, 320])
def test_records_are_well_formed(size):
    source = ShapesSource(20, seed=0, size=size)
    for i in range(20):
        record = source[i]
        assert record.image.shape == (size, size, 3)
        assert record.image.dtype == np.uint8
        assert record.size == tuple(source.sizes[i])
        x1, y1, x2, y2 = record.boxes.T
        assert (x2 > x1).all() and (y2 > y1).all()
        assert record.boxes.min() >= 0 and record.boxes.max() <= size
        assert set(record.labels) <= set(range(len(CLASSES)))
        assert not record.ignore.any()
        np.testing.assert_allclose(record.areas, (x2 - x1) * (y2 - y1))


@pytest.mark.slow
def test_one_to_twenty_objects(scenes):
    counts = np.array([len(s.boxes) for s in scenes])
    assert counts.min() == 1
    assert 17 <= counts.max() <= 20
    assert 5 < counts.mean() < 9


@pytest.mark.slow
def test_sizes_are_log_uniform_from_12_to_200(extents):
    side = np.sqrt(extents.prod(axis=1))
    assert side.min() > 12 - 1e-3 and side.max() < 200 + 1e-3
    place = np.log(side / 12) / np.log(200 / 12)
    # Kolmogorov-Smirnov at 1 %: what a uniform sample of this length stays below.
    place.sort()
    gap = np.abs(place - (np.arange(len(place)) + 0.5) / len(place)).max()
    assert gap < 1.63 / np.sqrt(len(place))


@pytest.mark.slow
def test_aspect_is_log_uniform_from_a_third_to_three(extents):
    aspect = extents[:, 1] / extents[:, 0]
    assert aspect.min() > 1 / 3 - 1e-4 and aspect.max() < 3 + 1e-4
    # Up to 254 / sqrt(3) px every aspect fits into the image.
    free = aspect[np.sqrt(extents.prod(axis=1)) < 140]
    place = np.sort(np.log(free) / np.log(9) + 0.5)
    gap = np.abs(place - (np.arange(len(place)) + 0.5) / len(place)).max()
    assert gap < 1.63 / np.sqrt(len(place))


@pytest.mark.slow
def test_thirty_percent_are_occluded_by_more_than_a_quarter(scenes):
    covered = np.concatenate([s.covered for s in scenes])
    assert abs((covered > 0.25).mean() - 0.3) < 0.015
    assert (covered > 0.7).mean() < 0.01
    # Small ones as well as large ones.
    boxes = np.concatenate([s.boxes for s in scenes])
    small = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)) < 32
    assert (covered[small] > 0.25).mean() > 0.2


@pytest.mark.slow
def test_classes_are_equally_frequent(scenes):
    labels = np.concatenate([s.labels for s in scenes])
    share = np.bincount(labels, minlength=len(CLASSES)) / len(labels)
    assert np.abs(share - 1 / len(CLASSES)).max() < 0.02


@pytest.mark.parametrize("extent", [(7.3, 20.1), (33.0, 31.5), (200.4, 120.7)])
def test_boxes_are_tight_on_what_is_drawn(extent):
    for seed in range(60):
        thing = _make_object(np.random.default_rng(seed), extent, hidden=False)
        x1, y1, x2, y2 = thing.extent
        np.testing.assert_allclose((y2 - y1, x2 - x1), extent)
        # A row or column at the rim may hold no more than the tip of a star.
        drawn_y, drawn_x = np.nonzero(thing.mask)
        found = drawn_x.min(), drawn_y.min(), drawn_x.max() + 1, drawn_y.max() + 1
        np.testing.assert_allclose(found, thing.extent, atol=1.3)


def test_objects_differ_from_what_surrounds_them():
    contrasts = []
    for i in range(60):
        scene = draw_scene(np.random.default_rng((0, i)))
        x1, y1, x2, y2 = scene.boxes[-1]  # the last one is on top
        cx, cy, r = int(x1 + x2) // 2, int(y1 + y2) // 2, int(min(x2 - x1, y2 - y1) / 4)
        image = scene.image.astype(float)
        middle = image[cy - r : cy + r + 1, cx - r : cx + r + 1].mean(axis=(0, 1))
        contrasts.append(np.linalg.norm(middle - image.mean(axis=(0, 1))))
    assert np.median(contrasts) > 60


def test_export_reads_back_as_the_same_records(tmp_path):
    source = ShapesSource(4, seed=5, size=96)
    back = CocoSource(export_coco(source, tmp_path), tmp_path / "images")
    assert back.classes == source.classes
    for i in range(4):
        a, b = source[i], back[i]
        np.testing.assert_array_equal(load_image(a), load_image(b))
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-4)
        np.testing.assert_allclose(a.areas, b.areas, rtol=1e-5)
        np.testing.assert_array_equal(a.labels, b.labels)
        assert a.image_id == b.image_id
