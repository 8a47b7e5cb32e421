"""Images and boxes made ready for the network, in NumPy.

Boxes are `x1, y1, x2, y2` in pixels, continuous; sizes are (height, width). Functions
that draw take `rng` first.
"""

import dataclasses
from collections.abc import Sequence
from typing import get_args

import numpy as np
from PIL import Image

from rpn_jax.conventions import ImageConvention, ResizeRule
from rpn_jax.data.faults import DataError, count_and_warn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize:
    """How an image gets its size.

    Attributes:
        min_size: Length of the shorter side, or several to draw from in training
            (evaluation takes the last); None: the longer side becomes `max_size`.
        max_size: Upper bound of the longer side.
        rule: "pil_bilinear" (detectron2: Pillow, antialiased, uint8), "torch_bilinear"
            (torchvision: four neighbours, float), "cv2_bilinear" (py-faster-rcnn:
            likewise, sampled at the exact scale rather than at that of the rounded
            size).
    """

    min_size: int | tuple[int, ...] | None = None
    max_size: int = 384
    rule: ResizeRule = "pil_bilinear"

    def __post_init__(self):
        """Check the options."""
        if self.rule not in get_args(ResizeRule):
            raise ValueError(f"rule must be one of {get_args(ResizeRule)}: {self.rule}")
        if not all(s > 0 for s in (*self.min_sizes, self.max_size)):
            raise ValueError(f"sizes must be positive: {self}")

    @classmethod
    def of(cls, convention: ImageConvention) -> "Resize":
        """Resize as a peer does."""
        return cls(
            min_size=convention.min_size,
            max_size=convention.max_size,
            rule=convention.resize,
        )

    @property
    def min_sizes(self) -> tuple[int, ...]:
        """The shorter sides to choose from; empty if only the longer side counts."""
        if self.min_size is None:
            return ()
        return self.min_size if isinstance(self.min_size, tuple) else (self.min_size,)

    @property
    def eval_size(self) -> int | None:
        """The shorter side in evaluation; None if only the longer side counts."""
        return self.min_sizes[-1] if self.min_sizes else None

    @property
    def dtype(self) -> type:
        """Pixel type of the result: Pillow rounds to uint8, the others do not."""
        return np.uint8 if self.rule == "pil_bilinear" else np.float32


def resize_pixels(
    image: np.ndarray, resize: Resize, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, tuple[float, float]]:
    """Resize pixels as `resize` says.

    Args:
        image: [H, W, 3] uint8.
        resize: How.
        rng: Draws among several `min_size`s; None takes `eval_size`.

    Returns:
        Pixels [h, w, 3] of `resize.dtype`; scales (y, x) of boxes.
    """
    side = resize.eval_size
    if rng is not None and len(resize.min_sizes) > 1:
        side = resize.min_sizes[rng.integers(len(resize.min_sizes))]
    height, width = image.shape[:2]
    shape, scales = resize_shape(
        (height, width), min_size=side, max_size=resize.max_size, rule=resize.rule
    )
    return resize_image(image, shape, rule=resize.rule, scales=scales), scales


def resize_shape(
    size: tuple[int, int],
    *,
    min_size: int | None,
    max_size: int,
    rule: ResizeRule = "pil_bilinear",
) -> tuple[tuple[int, int], tuple[float, float]]:
    """Return the new (height, width) and the scales (y, x) of boxes.

    With `min_size` the shorter side gets that length, unless the longer one would pass
    `max_size`; each rule rounds as its peer does. Without, the longer side gets
    `max_size` and both are rounded to the nearest integer (halves to even).

    Examples:
        >>> resize_shape((480, 640), min_size=None, max_size=384)
        ((288, 384), (0.6, 0.6))
        >>> resize_shape((480, 640), min_size=800, max_size=1333)
        ((800, 1067), (1.6666666666666667, 1.6671875))
    """
    height, width = size
    short, long = min(size), max(size)
    if min_size is None:
        scale = max_size / long
        new = round(height * scale), round(width * scale)
    elif rule == "pil_bilinear":
        # detectron2 scales twice, and rounds halves up.
        scale = min_size / short
        exact = [float(min_size) if s == short else scale * s for s in size]
        if max(exact) > max_size:
            shrink = max_size / max(exact)
            exact = [e * shrink for e in exact]
        new = int(exact[0] + 0.5), int(exact[1] + 0.5)
    elif rule == "torch_bilinear":
        scale = min(min_size / short, max_size / long)
        new = int(height * scale), int(width * scale)
    else:
        scale = min_size / short
        if round(scale * long) > max_size:
            scale = max_size / long
        new = round(height * scale), round(width * scale)
    new = max(new[0], 1), max(new[1], 1)
    if rule == "cv2_bilinear" and min_size is not None:
        return new, (scale, scale)
    return new, (new[0] / height, new[1] / width)


def resize_image(
    image: np.ndarray,
    shape: tuple[int, int],
    *,
    rule: ResizeRule = "pil_bilinear",
    scales: tuple[float, float] | None = None,
) -> np.ndarray:
    """Resize pixels [H, W, 3] uint8 to `shape` (height, width).

    Args:
        image: [H, W, 3] uint8.
        shape: New (height, width).
        rule: See `Resize`.
        scales: (y, x), from `resize_shape`, for "cv2_bilinear" alone; default `shape` /
            old size.

    Returns:
        [height, width, 3], uint8 for "pil_bilinear", else float32 in 0..255.
    """
    if rule == "pil_bilinear":
        if image.shape[:2] == tuple(shape):
            return image
        new = Image.fromarray(image).resize(
            (shape[1], shape[0]), Image.Resampling.BILINEAR
        )
        return np.asarray(new)
    old = image.shape[:2]
    if rule == "torch_bilinear":
        y, x = (_torch_positions(*sides) for sides in zip(old, shape, strict=True))
    else:
        scales = scales or (shape[0] / old[0], shape[1] / old[1])
        y, x = (
            (np.arange(n) + 0.5) / s - 0.5 for n, s in zip(shape, scales, strict=True)
        )
    top, bottom, v = _neighbours(y, old[0])
    left, right, u = _neighbours(x, old[1])
    rows = np.unique(np.concatenate([top, bottom]))  # no work on rows that none reads
    pixels = image[rows].astype(np.float32)
    u = u[:, None]
    pixels = pixels[:, left] * (1 - u) + pixels[:, right] * u
    v = v[:, None, None]
    top, bottom = np.searchsorted(rows, top), np.searchsorted(rows, bottom)
    return pixels[top] * (1 - v) + pixels[bottom] * v


def _torch_positions(old: int, new: int) -> np.ndarray:
    """Half-pixel centres of the new pixels in the old ones, in torch's float32.

    Its rounding moves a weight by up to 3e-4 in an image of 4000 pixels.
    """
    step = float(np.float32(old) / np.float32(new))
    return ((np.arange(new) + 0.5) * step - 0.5).astype(np.float32)


def _neighbours(x: np.ndarray, old: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two pixels around every position, and the weight of the second."""
    x = np.maximum(x, 0)
    low = np.minimum(x.astype(np.int64), old - 1)
    high = np.minimum(low + 1, old - 1)
    return low, high, (x - low).astype(np.float32)


def flip_horizontal(
    image: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mirror pixels [H, W, 3] and boxes [n, 4] xyxy left to right."""
    x1, y1, x2, y2 = boxes.T
    width = image.shape[1]
    return image[:, ::-1], np.stack([width - x2, y1, width - x1, y2], axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jitter:
    """Photometric jitter: each factor is drawn from [1 - value, 1 + value].

    Attributes:
        brightness: Scales all pixels.
        contrast: Scales the distance from the image's mean grey.
        saturation: Scales the distance of each pixel from its own grey.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0


def jitter_colours(
    rng: np.random.Generator, image: np.ndarray, jitter: Jitter
) -> np.ndarray:
    """Apply brightness, contrast and saturation, in this order.

    Args:
        rng: Three numbers are drawn.
        image: [H, W, 3] RGB, uint8 or float32 in 0..255.
        jitter: How far.

    Returns:
        Same shape and dtype, clipped to 0..255.
    """
    limits = np.array([jitter.brightness, jitter.contrast, jitter.saturation])
    bright, contrast, saturation = (1 + limits * rng.uniform(-1, 1, 3)).astype("f4")
    grey_of = np.array([0.299, 0.587, 0.114], np.float32)
    pixels = image.astype(np.float32) * bright
    mean = (pixels @ grey_of).mean()
    pixels = mean + (pixels - mean) * contrast
    grey = (pixels @ grey_of)[..., None]
    pixels = np.clip(grey + (pixels - grey) * saturation, 0, 255)
    return (pixels + 0.5).astype(np.uint8) if image.dtype == np.uint8 else pixels


def smallest_bucket(
    size: tuple[int, int], buckets: Sequence[tuple[int, int]]
) -> int | None:
    """Return the index of the smallest bucket (height, width) that holds `size`.

    Examples:
        >>> smallest_bucket((288, 384), ((384, 384), (288, 384)))
        1
    """
    fitting = [
        (h * w, index)
        for index, (h, w) in enumerate(buckets)
        if size[0] <= h and size[1] <= w
    ]
    return min(fitting)[1] if fitting else None


def pad_image(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Put pixels [H, W, 3] into the upper left corner of zeros of `shape`."""
    if image.shape[0] > shape[0] or image.shape[1] > shape[1]:
        raise DataError(f"an image of {image.shape[:2]} does not fit into {shape}")
    padded = np.zeros((*shape, 3), image.dtype)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def keep_boxes(boxes: np.ndarray, ignore: np.ndarray, max_boxes: int) -> np.ndarray:
    """Return the indices of at most `max_boxes` boxes, in their old order.

    Of too many, objects go before ignored regions and large before small; how many were
    cut off is counted and logged.
    """
    if len(boxes) <= max_boxes:
        return np.arange(len(boxes))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    count_and_warn(
        f"boxes cut off because an image has more than max_boxes={max_boxes}",
        len(boxes) - max_boxes,
    )
    return np.sort(np.lexsort((-area, ignore))[:max_boxes])


def pad_rows(rows: np.ndarray, length: int, fill: float = 0) -> np.ndarray:
    """Pad the first axis to `length` with `fill`."""
    padded = np.full((length, *rows.shape[1:]), fill, rows.dtype)
    padded[: len(rows)] = rows
    return padded
