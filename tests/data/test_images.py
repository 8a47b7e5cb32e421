"""Any image file comes out as the 8-bit RGB pixels that a viewer would show."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from rpn_jax.data import DataError, Record, decode_image, load_image
from rpn_jax.data.images import header_size


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def with_orientation(pixels: np.ndarray, orientation: int, kind="PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.fromarray(pixels), kind, exif=exif)


def record(image, size=None) -> Record:
    none = np.zeros(0)
    return Record(image, 0, "photo.jpg", size, np.zeros((0, 4)), none, none > 0, none)


def test_rgb_is_unchanged(colours):
    np.testing.assert_array_equal(
        decode_image(encode(Image.fromarray(colours))), colours
    )


def test_grey_becomes_three_equal_channels(colours):
    grey = colours[..., 0]
    expected = np.stack([grey] * 3, axis=-1)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(grey))), expected)
    np.testing.assert_array_equal(decode_image(grey), expected)


def test_alpha_is_dropped_and_keeps_the_colour_below(colours):
    alpha = np.arange(60, dtype=np.uint8).reshape(6, 10, 1)
    rgba = np.concatenate([colours, alpha], axis=2)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(rgba))), colours)
    np.testing.assert_array_equal(decode_image(rgba), colours)


def test_palette_with_transparency_is_read_without_a_warning():
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 10, 20, 30] + [0] * 762)
    data = encode(image, transparency=bytes([0, 128] + [255] * 254))
    assert (decode_image(data) == [10, 20, 30]).all()


def test_sixteen_bits_keep_the_high_byte(colours):
    grey = colours[..., 0].astype(np.uint16) * 256 + 200
    data = encode(Image.fromarray(grey))
    expected = np.stack([colours[..., 0]] * 3, axis=-1)
    np.testing.assert_array_equal(decode_image(data), expected)
    np.testing.assert_array_equal(decode_image(grey), expected)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint32])
def test_integers_of_any_width_may_hold_8_bits(colours, dtype):
    np.testing.assert_array_equal(decode_image(colours.astype(dtype)), colours)


def test_32_bit_files_hold_8_bits_or_16(colours):
    grey = np.stack([colours[..., 0]] * 3, axis=-1)
    for factor in (1, 256):
        image = Image.fromarray(colours[..., 0].astype(np.int32) * factor)
        assert image.mode == "I"
        np.testing.assert_array_equal(decode_image(image), grey)


def test_cmyk_jpeg_has_the_colours_of_its_rgb_twin():
    flat = np.full((16, 16, 3), [200, 60, 30], np.uint8)
    cmyk = Image.fromarray(flat).convert("CMYK")
    pixels = decode_image(encode(cmyk, "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - flat).max() <= 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_stays_as_stored_or_is_turned_as_its_tag_says(
    colours, orientation, kind
):
    """Pillow turns a TIFF by itself."""
    data = with_orientation(colours, orientation, kind)
    stored = load_image(record(data, colours.shape[:2]))
    np.testing.assert_array_equal(stored, colours)
    assert header_size(data, "photo") == colours.shape[:2]
    upright = decode_image(data, upright=True)
    wanted = ImageOps.exif_transpose(
        Image.open(io.BytesIO(with_orientation(colours, orientation)))
    )
    np.testing.assert_array_equal(upright, np.array(wanted))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_exif_rotation_is_applied_when_the_annotated_size_says_so(colours, orientation):
    data = with_orientation(colours, orientation)
    turned = load_image(record(data, (10, 6)))
    assert turned.shape == (10, 6, 3)
    expected = {
        5: colours.transpose(1, 0, 2),
        6: np.rot90(colours, -1),
        7: colours[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(colours),
    }
    np.testing.assert_array_equal(turned, expected[orientation])
    np.testing.assert_array_equal(load_image(record(data, (6, 10))), colours)


def test_an_orientation_of_another_type_is_none(colours):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(colours), "JPEG", exif=exif)
    tag = struct.pack(">HH" if b"MM\0*" in data else "<HH", 0x0112, 3)
    assert data.count(tag) == 1
    data = data.replace(tag, tag.replace(b"\x03", b"\x07"))  # bytes, not a number
    assert decode_image(data, upright=True).shape == colours.shape


def test_without_an_annotated_size_pixels_stay_unless_upright_is_asked(colours):
    data = with_orientation(colours, 6)
    np.testing.assert_array_equal(load_image(record(data)), colours)
    np.testing.assert_array_equal(
        decode_image(data, upright=True), np.rot90(colours, -1)
    )


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_size_that_fits_in_no_orientation_is_an_error(colours, orientation):
    data = with_orientation(colours, orientation)
    with pytest.raises(
        DataError, match=r"photo\.jpg \(image id 0\): .*\(7, 10\), the file has \(6"
    ):
        load_image(record(data, (7, 10)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_file_is_named_in_one_sentence(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "half"
    data = encode(Image.fromarray(noise), kind)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(
        DataError, match=r"^photo\.jpg \(image id 0\): the image cannot be read"
    ):
        load_image(record(path))


@pytest.mark.parametrize("content", [b"", b"not an image at all"])
def test_a_file_that_is_no_image_is_named(content):
    with pytest.raises(
        DataError, match=r"photo\.jpg \(image id 0\): the image cannot be read"
    ):
        load_image(record(content))


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match=r"no such image file: /nowhere/photo\.jpg"):
        load_image(record(Path("/nowhere/photo.jpg")))


@pytest.mark.parametrize(
    "image",
    [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 0)), Image.new("I", (0, 5))],
)
def test_an_empty_image_is_an_error(image):
    with pytest.raises(DataError, match=r"photo\.jpg: the image is empty"):
        decode_image(image, name="photo.jpg")


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), bool),
        np.zeros((4, 4, 2), np.uint8),
        np.full((4, 4, 3), 256),
        np.full((4, 4, 3), -1),
    ],
)
def test_pixels_of_another_kind_are_refused(pixels):
    with pytest.raises(DataError, match=r"photo\.jpg \(image id 0\): pixels must be"):
        load_image(record(pixels))
