"""The objects of a data set at the network's input, from annotations alone.

Shape legend: `N` objects, `M` images, `K` padded sizes. Boxes are xyxy in pixels of the
network's input, sizes (height, width).
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from rpn_jax.data.images import image_size
from rpn_jax.data.records import DataError, Source
from rpn_jax.data.transforms import Resize, resize_shape, smallest_bucket

Progress = Callable[[int, int], None]
"""Called with how many are done, and of how many."""

Size = tuple[int, int]


class Objects(NamedTuple):
    """Objects in the order of their images.

    Attributes:
        boxes: `[N, 4]` float32 xyxy, pixels of the network's input.
        areas: `[N]` float32, square pixels of the original image, as annotated.
        image: `[N]` int32, the image of each, ascending.
        image_sizes: `[M, 2]` int32, what each image fills of its padded size.
        bucket: `[M]` int32, which padded size that is.
        buckets: the K padded sizes.
        ignored: crowd or difficult objects that are not among these.
    """

    boxes: np.ndarray
    areas: np.ndarray
    image: np.ndarray
    image_sizes: np.ndarray
    bucket: np.ndarray
    buckets: tuple[Size, ...]
    ignored: int = 0

    def of_images(self, chosen: np.ndarray) -> "Objects":
        """Return the objects of some images, which `[M]` bool tells."""
        kept = chosen[self.image]
        number = np.cumsum(chosen) - 1
        return self._replace(
            boxes=self.boxes[kept],
            areas=self.areas[kept],
            image=number[self.image[kept]].astype(np.int32),
            image_sizes=self.image_sizes[chosen],
            bucket=self.bucket[chosen],
        )


def read_objects(
    source: Source,
    resize: Resize,
    buckets: Sequence[Size],
    progress: Progress | None = None,
) -> Objects:
    """Read the objects of a data set; no image is decoded.

    Args:
        source: records. Where one does not say the size of its image, the header of
            the image file does.
        resize: how images get their size; of several shorter sides the last counts, as
            in evaluation.
        buckets: (height, width) that images are padded to, the smallest that fits.
        progress: called after every record.

    Returns:
        `Objects`, without those to ignore.

    Raises:
        DataError: an image fits into no bucket.
    """
    fit = _fitter(resize, buckets)
    boxes, areas, counts, shapes, places, ignored = [], [], [], [], [], 0
    for i in range(len(source)):
        record = source[i]
        try:
            shape, (sy, sx), place = fit(tuple(map(int, image_size(record))))
        except DataError as error:
            raise DataError(f"{record.name}: {error}") from error
        kept = ~record.ignore
        boxes.append(record.boxes[kept] * np.array([sx, sy, sx, sy], np.float32))
        areas.append(record.areas[kept])
        counts.append(len(areas[-1]))
        ignored += int(record.ignore.sum())
        shapes.append(shape)
        places.append(place)
        if progress:
            progress(i + 1, len(source))
    return Objects(
        np.concatenate(boxes),
        np.concatenate(areas),
        np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        np.array(shapes, np.int32),
        np.array(places, np.int32),
        tuple(buckets),
        ignored,
    )


def shifted_objects(
    box: Size,
    image: Size,
    resize: Resize,
    buckets: Sequence[Size],
    strides: Sequence[int],
) -> Objects:
    """Put one hypothetical box at many places about the middle of an image.

    The places fill one stride of the coarsest level evenly in both directions, less
    where the image has no room, at least two to a stride of the finest level. Each is
    an image of its own.

    Args:
        box: (height, width), pixels of the original image.
        image: (height, width) of it.
        resize: how it gets its size.
        buckets: see `read_objects`.
        strides: of the levels, pixels.

    Raises:
        DataError: the box does not fit into the image, or the image into no bucket.
    """
    if not (0 < box[0] <= image[0] and 0 < box[1] <= image[1]):
        raise DataError(
            f"a box of {box[1]} x {box[0]} pixels (width x height) does not fit into "
            f"an image of {image[1]} x {image[0]}"
        )
    shape, scales, place = _fitter(resize, buckets)(image)
    side = max(16, 2 * max(strides) // min(strides))
    steps = (np.arange(side) + 0.5) / side - 0.5
    lows = []
    for length, extent, scale in zip(shape, box, scales, strict=True):
        room = length - extent * scale
        lows.append(room / 2 + steps * min(max(strides), max(room, 0)))
    y, x = (c.ravel() for c in np.meshgrid(*lows, indexing="ij"))
    height, width = box[0] * scales[0], box[1] * scales[1]
    number = side * side
    return Objects(
        np.stack([x, y, x + width, y + height], axis=1).astype(np.float32),
        np.full(number, box[0] * box[1], np.float32),
        np.arange(number, dtype=np.int32),
        np.tile(np.array(shape, np.int32), (number, 1)),
        np.full(number, place, np.int32),
        tuple(buckets),
    )


def _fitter(resize: Resize, buckets: Sequence[Size]):
    """Return a function from an image's size to its shape, scales and bucket."""

    def shaped(size: Size, side: int | None):
        return resize_shape(
            size, min_size=side, max_size=resize.max_size, rule=resize.rule
        )

    @cache
    def fit(size: Size) -> tuple[Size, tuple[float, float], int]:
        # The bucket must hold the largest size that training draws.
        largest, _ = shaped(size, max(resize.min_sizes, default=None))
        bucket = smallest_bucket(largest, buckets)
        if bucket is None:
            raise DataError(
                f"an image of (height, width) = {size} becomes {largest}, which fits "
                f"into none of the buckets {tuple(buckets)}"
            )
        return *shaped(size, resize.eval_size), bucket

    return fit
