"""Which level of a feature pyramid a box is pooled from."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from rpn_jax.ops._checks import as_boxes, check_option

RULES = ("torchvision", "detectron2")


def assign_levels(
    boxes: ArrayLike,
    *,
    min_level: int,
    max_level: int,
    canonical_size: float = 224,
    canonical_level: int = 4,
    rule: str = "torchvision",
) -> Int[Array, " R"]:
    """Choose a level by the size of each box: twice the size is one level up.

    level = floor(canonical_level + log2(sqrt(area) / canonical_size)), clipped to
    min_level and max_level. The rules tell apart boxes that lie on a border but for
    some last bits.

    Args:
        boxes: `[R, 4]` xyxy, image pixels; without area, or if it is no number, the
            lowest level.
        min_level: level of the finest map; level l has stride 2^l.
        max_level: level of the coarsest map.
        canonical_size: side of a box that belongs to canonical_level, pixels.
        canonical_level: the level of such a box.
        rule: "torchvision": 1e-6 is added to the logarithm; "detectron2": 1e-8 is
            added within it, which float32 loses. Both compute in float32.

    Returns:
        `[R]` int32, 0 for min_level: which of the maps from min_level to max_level.

    Raises:
        ValueError: boxes are not `[R, 4]`, the levels are out of order, or the rule
            is unknown.

    Reference:
        Lin et al., Feature Pyramid Networks, CVPR 2017, equation 1.

    Example:
        >>> boxes = jnp.array([[0.0, 0, 50, 50], [0, 0, 224, 224], [0, 0, 900, 900]])
        >>> assign_levels(boxes, min_level=2, max_level=5)
        Array([0, 2, 3], dtype=int32)
    """
    check_option(rule, RULES, "rule")
    if not min_level <= max_level:
        raise ValueError(
            f"max_level must be at least min_level, got {max_level} and {min_level}"
        )
    boxes = jax.lax.stop_gradient(as_boxes(boxes, "boxes", rank=2))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # The logarithms of platforms differ in last bits; comparisons with the smallest
    # size of each level do not.
    smallest = [
        _smallest(level, canonical_size, canonical_level, rule)
        for level in range(min_level + 1, max_level + 1)
    ]
    smallest = np.array(smallest, np.float32)
    reached = jnp.sqrt(area)[:, None] >= jnp.asarray(smallest)[None]
    return reached.sum(axis=1, dtype=jnp.int32)


def _smallest(level, canonical_size, canonical_level, rule) -> np.float32:
    """Find the smallest float32 size that the rule puts on a level."""

    def is_on_it(size):
        ratio = size / np.float32(canonical_size)
        if rule == "torchvision":
            found = np.float32(canonical_level) + np.log2(ratio) + np.float32(1e-6)
        else:
            found = np.float32(canonical_level) + np.log2(ratio + np.float32(1e-8))
        return np.floor(found) >= level

    size = np.float32(canonical_size * 2.0 ** (level - canonical_level))
    while not is_on_it(size):
        size = np.nextafter(size, np.float32(np.inf))
    while is_on_it(lower := np.nextafter(size, np.float32(0))):
        size = lower
    return size
