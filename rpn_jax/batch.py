"""The batch that the data pipeline delivers and the model consumes."""

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """A padded batch of images and their boxes, NumPy or JAX arrays alike.

    Shapes: `B` images, `H x W` the padded size, `G` boxes at most an image.

    Attributes:
        images: `[B, H, W, 3]` uint8 or float32, RGB in 0..255, zero where padded.
        image_sizes: `[B, 2]` int32, (height, width) of each image's content.
        boxes: `[B, G, 4]` float32, `x1, y1, x2, y2` in pixels of the padded image.
        valid: `[B, G]` bool, which boxes exist.
        ignore: `[B, G]` bool, crowd or difficult boxes; a subset of `valid`.
        scales: `[B, 2]` float32, network size / original size along (y, x).
        image_ids: `[B]` int32, -1 for an image that only fills the batch.
        labels: `[B, G]` int32, 0-based class index, -1 where padded.
    """

    images: Any
    image_sizes: Any
    boxes: Any
    valid: Any
    ignore: Any
    scales: Any
    image_ids: Any
    labels: Any
