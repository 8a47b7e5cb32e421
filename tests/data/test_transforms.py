"""Resizing as each peer does it; flips, jitter and padding keep image and boxes one."""

import numpy as np
import pytest

from rpn_jax.conventions import PY_FASTER_RCNN
from rpn_jax.data import DataError, Jitter, Resize
from rpn_jax.data.transforms import (
    flip_horizontal,
    jitter_colours,
    keep_boxes,
    pad_image,
    pad_rows,
    resize_image,
    resize_pixels,
    resize_shape,
    smallest_bucket,
)

RULES = ("pil_bilinear", "torch_bilinear", "cv2_bilinear")


@pytest.fixture(scope="module")
def peers(golden):
    return golden("resize_peers")


@pytest.mark.parametrize("way", ["up", "down"])
def test_resized_pixels_are_those_of_pillow(peers, way):
    expected = peers[f"pil_{way}"]
    result = resize_image(peers["image"], expected.shape[:2], rule="pil_bilinear")
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("way", ["up", "down"])
def test_resized_pixels_are_those_of_torch(peers, way):
    expected = peers[f"torch_{way}"]
    result = resize_image(peers["image"], expected.shape[:2], rule="torch_bilinear")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-3)


@pytest.mark.parametrize("way", ["up", "down"])
def test_resized_pixels_are_those_of_opencv_on_floats(peers, way):
    expected, scale = peers[f"cv2_{way}"], float(peers[f"cv2_{way}_scale"])
    result = resize_image(
        peers["image"],
        expected.shape[:2],
        rule="cv2_bilinear",
        scales=(scale, scale),
    )
    np.testing.assert_allclose(result, expected, atol=1e-3)


def test_positions_in_a_large_image_are_rounded_as_torch_does(golden):
    peer = golden("preprocessing")
    row, expected = peer["row"][..., None].repeat(3, 2), peer["torchvision_row"]
    result = resize_image(row, expected.shape, rule="torch_bilinear")
    np.testing.assert_allclose(result[..., 0], expected, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_sizes_are_those_of_the_peer(peers, rule):
    expected = peers[f"{rule.removesuffix('_bilinear')}_sizes"]
    for size, new in zip(peers["sizes"].tolist(), expected.tolist(), strict=True):
        shape, _ = resize_shape(tuple(size), min_size=800, max_size=1333, rule=rule)
        assert list(shape) == new, size


@pytest.mark.parametrize("size", [(480, 640), (333, 500), (375, 1), (99, 100)])
def test_without_a_shorter_side_the_longer_one_is_met(size):
    shape, (sy, sx) = resize_shape(size, min_size=None, max_size=384)
    assert max(shape) == 384
    assert min(shape) == max(round(min(size) * 384 / max(size)), 1)
    np.testing.assert_allclose((size[0] * sy, size[1] * sx), shape)


def test_pixels_of_the_right_size_are_not_touched(peers):
    image = peers["image"]
    for rule in RULES:
        result = resize_image(image, image.shape[:2], rule=rule)
        np.testing.assert_array_equal(result, image)


def test_flip_moves_boxes_with_their_pixels():
    image = np.zeros((8, 10, 3), np.uint8)
    image[2:5, 1:4] = 255
    flipped, boxes = flip_horizontal(image, np.array([[1, 2, 4, 5]], np.float32))
    assert boxes.tolist() == [[6, 2, 9, 5]]
    assert (flipped[2:5, 6:9] == 255).all()
    assert flipped.sum() == image.sum()


def test_flip_of_no_boxes_is_no_boxes():
    _, boxes = flip_horizontal(np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4)))
    assert boxes.shape == (0, 4)


def test_jitter_of_nothing_changes_nothing(peers):
    rng = np.random.default_rng(0)
    result = jitter_colours(rng, peers["image"], Jitter())
    np.testing.assert_allclose(result.astype(int), peers["image"], atol=1)


def test_jitter_repeats_with_its_generator_and_stays_in_range(peers):
    jitter = Jitter(brightness=0.4, contrast=0.4, saturation=0.4)
    one, two, other = (
        jitter_colours(np.random.default_rng(s), peers["image"], jitter)
        for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert one.dtype == np.uint8
    assert (one != other).any()
    floats = jitter_colours(
        np.random.default_rng(0), peers["image"].astype(np.float32), jitter
    )
    assert floats.dtype == np.float32
    assert floats.min() >= 0
    assert floats.max() <= 255
    np.testing.assert_allclose(floats, one, atol=0.51)


def test_no_saturation_is_grey(peers):
    class Low(np.random.Generator):
        def uniform(self, low, high, size):
            return np.full(size, low)

    rng = Low(np.random.PCG64(0))
    grey = jitter_colours(rng, peers["image"].astype("f4"), Jitter(saturation=1.0))
    np.testing.assert_allclose(grey, grey[..., :1].repeat(3, 2), atol=1e-3)


def test_the_smallest_fitting_bucket_is_chosen():
    buckets = ((400, 400), (300, 400), (400, 300))
    assert smallest_bucket((300, 400), buckets) == 1
    assert smallest_bucket((301, 300), buckets) == 2
    assert smallest_bucket((301, 301), buckets) == 0
    assert smallest_bucket((401, 10), buckets) is None


def test_padding_is_zero_and_keeps_the_corner():
    image = np.full((3, 4, 3), 7, np.uint8)
    padded = pad_image(image, (5, 6))
    assert padded.shape == (5, 6, 3)
    assert (padded[:3, :4] == 7).all()
    assert padded.sum() == image.sum()
    with pytest.raises(DataError, match="does not fit"):
        pad_image(image, (2, 6))
    assert pad_rows(np.array([3, 4]), 4, -1).tolist() == [3, 4, -1, -1]


def test_too_many_boxes_keep_large_objects_and_are_counted(caplog):
    side = np.array([1, 9, 5, 7, 8], np.float32)
    boxes = np.stack([0 * side, 0 * side, side, side], axis=1)
    ignore = np.array([False, True, False, False, False])
    assert keep_boxes(boxes, ignore, 3).tolist() == [2, 3, 4]
    assert keep_boxes(boxes, ignore, 5).tolist() == [0, 1, 2, 3, 4]
    assert "max_boxes=3: 2 so far" in caplog.text


def test_an_unknown_rule_names_the_known_ones():
    with pytest.raises(ValueError, match="torch_bilinear"):
        Resize(rule="nearest")  # pyright: ignore[reportArgumentType]


def test_evaluation_takes_the_last_of_several_sizes_training_draws():
    image, resize = np.zeros((40, 60, 3), np.uint8), Resize(min_size=(32, 48, 16))
    assert resize.eval_size == 16 and Resize().eval_size is None
    assert resize_pixels(image, resize)[0].shape == (16, 24, 3)
    rng = np.random.default_rng(0)
    drawn = {resize_pixels(image, resize, rng)[0].shape[0] for _ in range(30)}
    assert drawn == {16, 32, 48}


def test_a_peers_rule_comes_from_its_convention():
    resize = Resize.of(PY_FASTER_RCNN.image)
    assert resize == Resize(min_size=600, max_size=1000, rule="cv2_bilinear")
