"""Objects are read at the size that the network sees them."""

import numpy as np
import pytest

from rpn_jax.analysis import read_objects, shifted_objects
from rpn_jax.data import DataError, Record, Resize

BUCKETS = ((100, 100), (50, 100))


class Source(list):
    classes = ("thing",)


def record(size, *boxes, ignore=()):
    number = len(boxes)
    flags = np.isin(np.arange(number), ignore)
    areas = np.arange(1, number + 1, dtype=np.float32)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(number, np.int32)
    image = np.zeros((*size, 3), np.uint8)
    return Record(image, 7, "a.png", None, boxes, labels, flags, areas)


def test_boxes_are_scaled_and_regions_left_out():
    source = Source(
        [
            record((20, 40), [0, 0, 10, 20], [1, 2, 3, 4], ignore=[1]),
            record((30, 30)),
            record((40, 40), [4, 8, 40, 40]),
        ]
    )
    steps = []
    found = read_objects(
        source, Resize(max_size=80), BUCKETS, lambda *s: steps.append(s)
    )
    assert found.boxes.tolist() == [[0, 0, 20, 40], [8, 16, 80, 80]]
    assert found.areas.tolist() == [1, 1]  # as annotated
    assert found.image.tolist() == [0, 2]
    assert found.image_sizes.tolist() == [[40, 80], [80, 80], [80, 80]]
    assert found.bucket.tolist() == [1, 0, 0] and found.ignored == 1
    assert steps == [(1, 3), (2, 3), (3, 3)]

    part = found.of_images(np.array([False, True, True]))
    assert part.boxes.tolist() == [[8, 16, 80, 80]] and part.image.tolist() == [1]
    assert part.bucket.tolist() == [0, 0] and len(part.image_sizes) == 2


def test_the_bucket_holds_the_largest_size_of_training():
    source = Source([record((40, 40), [0, 0, 40, 40])])
    resize = Resize(min_size=(90, 40), max_size=100)
    found = read_objects(source, resize, ((50, 50), (100, 100)))
    assert found.bucket.tolist() == [1] and found.boxes.tolist() == [[0, 0, 40, 40]]


def test_an_image_without_a_bucket_is_named():
    source = Source([record((40, 40))])
    with pytest.raises(DataError, match=r"a\.png: .* becomes \(200, 200\), which fits"):
        read_objects(source, Resize(max_size=200), BUCKETS)


def test_one_box_takes_many_places_within_a_stride():
    found = shifted_objects((12, 6), (40, 80), Resize(max_size=100), BUCKETS, (4, 16))
    assert len(found.boxes) == 256 and found.image_sizes[0].tolist() == [50, 100]
    size = found.boxes[:, 2:] - found.boxes[:, :2]
    np.testing.assert_allclose(size, np.tile([7.5, 15], (256, 1)), rtol=1e-6)
    for axis, middle in ((0, 50), (1, 25)):
        centre = (found.boxes[:, axis] + found.boxes[:, axis + 2]) / 2
        places = np.unique(centre.round(3))
        np.testing.assert_allclose(np.diff(places), 1, atol=1e-3)
        assert len(places) == 16 and places.mean() == pytest.approx(middle)


def test_a_box_that_fills_the_image_does_not_leave_it():
    found = shifted_objects((40, 76), (40, 80), Resize(max_size=100), BUCKETS, (16,))
    assert found.boxes.min() >= 0
    assert (found.boxes[:, 2:] <= [100, 50]).all()
    assert len(np.unique(found.boxes[:, 0])) == 16


@pytest.mark.parametrize("box", [(0, 5), (41, 5), (5, 81)])
def test_a_box_must_fit_into_its_image(box):
    with pytest.raises(DataError, match="width x height.* does not fit into an image"):
        shifted_objects(box, (40, 80), Resize(max_size=100), BUCKETS, (16,))
