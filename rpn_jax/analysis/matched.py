"""How many anchors each object really gets, when the objects of an image compete."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from rpn_jax.analysis.coverage import anchor_grids
from rpn_jax.analysis.objects import Objects, Progress, Size
from rpn_jax.conventions import TargetConvention, options
from rpn_jax.data.transforms import pad_rows
from rpn_jax.ops.anchors import pyramid_anchors
from rpn_jax.ops.matching import match_anchors
from rpn_jax.rpn import RPNConfig, level_strides
from rpn_jax.targets import anchors_inside


def count_positives(
    targets: TargetConvention, anchors, boxes, valid, image_size
) -> Int[Array, " G"]:
    """Count the anchors of one image that are to learn each of its objects.

    Args:
        targets: how anchors are matched.
        anchors: `[A, 4]` xyxy, pixels of the network's input.
        boxes: `[G, 4]` xyxy, likewise; padded.
        valid: `[G]` bool, which of them are objects to find.
        image_size: `[2]` (height, width) of the image within its padding.

    Returns:
        `[G]` int32; see `matched_positives`.
    """
    inside = anchors_inside(
        anchors, image_size, targets.boundary, touching=targets.boundary_first
    )
    matches = match_anchors(
        anchors,
        boxes,
        valid,
        anchor_valid=inside if targets.boundary_first else None,
        high_threshold=targets.high_threshold,
        low_threshold=targets.low_threshold,
        low_quality=targets.low_quality,
        low_quality_above=max(targets.low_quality_above, 0.0),
    )
    positive = inside & (matches.labels == 1)
    place = jnp.where(positive, matches.gt_index, len(boxes))
    return jnp.zeros(len(boxes), jnp.int32).at[place].add(1, mode="drop")


def matched_positives(
    objects: Objects, config: RPNConfig, progress: Progress | None = None
) -> np.ndarray:
    """Match all anchors of every image, and count those that are to learn each object.

    An anchor that several objects make positive learns one of them, so that an object
    may get fewer than `Coverage.positives` says, or none. Even with perfect offsets
    only objects that get one can be proposed: their share is the ceiling of recall.
    Anchors that become positive for an object without touching it, as they do in
    conventions with no guard against it, are not counted.

    Images are matched one after the other with all their anchors; this takes
    milliseconds an image where `cover` takes microseconds.

    Args:
        objects: of the images.
        config: the network whose anchors and convention are used.
        progress: called after every image.

    Returns:
        `[N]` int32.
    """
    targets = config.convention.targets

    @cache
    def anchors_of(size: Size) -> jax.Array:
        grids = anchor_grids(config, size)
        levels = pyramid_anchors(
            grids,
            sizes=config.sizes,
            ratios=config.ratios,
            strides=level_strides(config, grids, size),
            **options(config.convention.anchors, "stride"),
        )
        return jnp.concatenate(levels)

    count = jax.jit(partial(count_positives, targets))
    images = len(objects.image_sizes)
    ends = np.searchsorted(objects.image, np.arange(images + 1))
    found = [np.zeros(0, np.int32)]
    for i, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        number = end - start
        if number:
            padded = 8 << max(int(number - 1) // 8, 0).bit_length()
            anchors = anchors_of(objects.buckets[objects.bucket[i]])
            boxes = pad_rows(objects.boxes[start:end], padded)
            valid = np.arange(padded) < number
            counts = count(anchors, boxes, valid, objects.image_sizes[i])
            found.append(np.asarray(counts)[:number])
        if progress:
            progress(i + 1, images)
    return np.concatenate(found)
