"""Image files to RGB pixels, whatever their mode, depth and orientation."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from rpn_jax.data.faults import DataError, shown
from rpn_jax.data.records import Record

_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 swap height and width


def load_image(record: Record) -> np.ndarray:
    """Return the record's image as uint8 [H, W, 3] RGB.

    The stored pixels are turned as their EXIF orientation says only where the
    annotated size asks for it: boxes belong to the image that the annotator saw.
    Where the size cannot tell (none annotated, a square, a half turn) the pixels stay
    as stored.

    Raises:
        DataError: The file is missing, broken or far too large, or its size fits in no
            orientation.
    """
    return decode_image(record.image, name=_name(record), size=record.size)


def decode_image(
    image: bytes | Path | str | np.ndarray | Image.Image,
    *,
    name: str = "image",
    size: tuple[int, int] | None = None,
    upright: bool = False,
) -> np.ndarray:
    """Decode an image to uint8 [H, W, 3] RGB.

    Grey becomes three equal channels, CMYK and palettes are converted, 16-bit samples
    keep their high byte, alpha is dropped (the colour below it stays). What the file
    is, its content says, not its name.

    A file whose header names more than `PIL.Image.MAX_IMAGE_PIXELS` (89 million; raise
    it where such images are meant) is refused before anything is decoded: a small file
    can be made to fill all memory.

    Args:
        image: Encoded bytes, a path, a PIL image, or pixels [H, W], [H, W, 1],
            [H, W, 3] or [H, W, 4] of uint8, of uint16, or of other integers in 0..255.
        name: Named in errors.
        size: (height, width) that the annotation gives, or None.
        upright: Without `size`: apply the EXIF orientation, as a viewer would.

    Raises:
        DataError: The image is missing, broken, empty or far too large, or does not
            fit `size`.
    """
    if isinstance(image, np.ndarray):
        pixels = _array_to_rgb(image, name)
        orientation = 1
    else:
        pixels, orientation = _read(image, name)
    transposed = orientation >= 5
    stored = pixels.shape[:2]
    if size is None:
        return _turn(pixels, orientation) if upright else pixels
    if stored == tuple(size):
        return pixels
    if transposed and stored[::-1] == tuple(size):
        return _turn(pixels, orientation)
    raise DataError(
        f"{name}: the annotation says (height, width) = {tuple(size)}, the file has "
        f"{stored}" + (" and its EXIF rotation does not mend it" if transposed else ""),
        "image of another size than annotated",
    )


def image_size(record: Record) -> tuple[int, int]:
    """Return (height, width): as annotated, else from the file's header."""
    if record.size is not None:
        return record.size
    if isinstance(record.image, np.ndarray):
        return record.image.shape[:2]
    return header_size(record.image, _name(record))


def _name(record: Record) -> str:
    return f"{shown(record.name)} (image id {record.image_id})"


def header_size(image: bytes | Path | str, name: str) -> tuple[int, int]:
    """Return the stored (height, width) of an image file without decoding it."""
    try:
        with _open(image) as file:
            if isinstance(file, TiffImageFile):  # its size may be that of it turned
                return file.tag_v2[IMAGELENGTH], file.tag_v2[IMAGEWIDTH]
            return file.height, file.width
    except Exception as error:
        raise _broken(error, name) from error


def _read(image: bytes | Path | str | Image.Image, name: str) -> tuple[np.ndarray, int]:
    try:
        if isinstance(image, Image.Image):
            return _stored(image, name)
        with _open(image) as file:
            return _stored(file, name)
    except DataError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise _broken(error, name) from error


def _stored(image: Image.Image, name: str) -> tuple[np.ndarray, int]:
    """Return pixels as they are stored, and the orientation that they want."""
    orientation = _orientation(image)
    pixels = _to_rgb(image, name)
    if _orientation(image) != orientation:  # Pillow has turned it: a TIFF
        pixels = _turn(pixels, {6: 8, 8: 6}.get(orientation, orientation))
    return pixels, orientation


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(_ORIENTATION)
    return value if isinstance(value, int) and value in range(1, 9) else 1


def _open(image: bytes | Path | str) -> Image.Image:
    """Read the header; it is Pillow that looks at the number of pixels."""
    if len(image) == 0 if isinstance(image, bytes) else os.path.getsize(image) == 0:
        raise ValueError("the file is empty")
    file = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
    if file.width * file.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise Image.DecompressionBombError
    return file


def _broken(error: Exception, name: str) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(
            f"{name}: there is no such image file: {error.filename}",
            "image without a file",
        )
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return DataError(
            f"{name}: the image is refused, its header says more than "
            f"{Image.MAX_IMAGE_PIXELS:,} pixels, which a small file can do to fill the "
            "memory; if it is meant, store it smaller or raise "
            "PIL.Image.MAX_IMAGE_PIXELS",
            "image that is too large",
        )
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "it is in no format that Pillow knows"
    return DataError(
        f"{name}: the image cannot be read, it is broken: {reason}",
        "image that cannot be read",
    )


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        # Pillow hands some 16-bit files out as 32-bit integers.
        if pixels.min(initial=0) >= 0 and 255 < pixels.max(initial=0) <= 65535:
            pixels = pixels.astype(np.uint16)
        return _array_to_rgb(pixels, name)
    if image.mode == "F":
        raise DataError(f"{name}: an image of floats has no fixed range; store 8 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return _array_to_rgb(np.array(image.convert("RGB")), name)


def _array_to_rgb(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise DataError(f"{name}: pixels must be [H, W, 3], got {pixels.shape}")
    if 0 in pixels.shape:
        raise DataError(f"{name}: the image is empty, its shape is {pixels.shape}")
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:  # either byte order
        pixels = (pixels >> 8).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
            raise DataError(
                f"{name}: pixels must be uint8, uint16 or integers in 0..255, got "
                f"{pixels.dtype} in {pixels.min()}..{pixels.max()}"
            )
        pixels = pixels.astype(np.uint8)
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels[..., :3]


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    image.getexif()[_ORIENTATION] = orientation
    return np.array(ImageOps.exif_transpose(image))
