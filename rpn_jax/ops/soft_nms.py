"""Soft-NMS: boxes that overlap a better one lose score instead of being dropped."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from rpn_jax.ops._checks import (
    as_boxes,
    as_float,
    as_groups,
    as_mask,
    check_option,
    check_shape,
)
from rpn_jax.ops.boxes import corners, iou_of_corners


class SoftNMSResult(NamedTuple):
    """The boxes that soft-NMS chooses, by descending decayed score.

    Attributes:
        indices: `[K]` int32 into the boxes given, K = max_outputs; -1 where padded.
        scores: `[K]` float32, decayed; 0 where padded.
        valid: `[K]` bool.
    """

    indices: Int[Array, " K"]
    scores: Float[Array, " K"]
    valid: Bool[Array, " K"]


def soft_nms(
    boxes: ArrayLike,
    scores: ArrayLike,
    *,
    max_outputs: int,
    method: str = "linear",
    iou_threshold: ArrayLike = 0.3,
    sigma: ArrayLike = 0.5,
    score_threshold: ArrayLike = 0.001,
    valid: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> SoftNMSResult:
    """Choose boxes one by one, each lowering the scores of those that it overlaps.

    The box of the highest score is chosen, ties to the lower index, and the score s of
    every other box of its group becomes

        linear:    s (1 - IoU) where IoU > iou_threshold (float32 against float32)
        gaussian:  s exp(-IoU^2 / sigma)

    before the next one is. It takes max_outputs steps over all N boxes, however few
    take part.

    Args:
        boxes: `[N, 4]` xyxy, any unit.
        scores: `[N]` probabilities, or other numbers from 0 on.
        max_outputs: K, the most boxes to choose; static.
        method: "linear" or "gaussian".
        iou_threshold: overlap from which linear decay sets in; number or traced scalar.
        sigma: width of gaussian decay, above 0; number or traced scalar.
        score_threshold: boxes whose score is or falls below it are dropped; number or
            traced scalar.
        valid: `[N]` bool, which boxes take part; all by default. A box also takes no
            part if its score is NaN, infinite or negative or a coordinate is not
            finite.
        groups: `[N]` integers; boxes lower scores within their group only. One group
            by default.

    Returns:
        `SoftNMSResult` in the order of choice, padded to K. Its scores are
        differentiable with respect to scores, boxes and sigma, the choice is not.
        Boxes of sides above 1e19, whose areas overflow, lower no score.

    Raises:
        ValueError: a shape, dtype or method is wrong, or max_outputs is below 1.

    Reference:
        Bodla et al., Soft-NMS: Improving Object Detection With One Line of Code,
        ICCV 2017.

    Example:
        >>> boxes = jnp.array([[0.0, 0, 6, 1], [2, 0, 8, 1], [20, 0, 28, 1]])
        >>> soft_nms(boxes, jnp.array([1.0, 0.75, 0.5]), max_outputs=3)
        SoftNMSResult(indices=Array([0, 2, 1], dtype=int32), \
scores=Array([1.   , 0.5  , 0.375], dtype=float32), \
valid=Array([ True,  True,  True], dtype=bool))
    """
    boxes, scores = as_boxes(boxes, "boxes", rank=2), as_float(scores, "scores")
    count = boxes.shape[0]
    check_shape(scores, (count,), "scores")
    check_option(method, ("linear", "gaussian"), "method")
    if max_outputs < 1:
        raise ValueError(f"max_outputs must be at least 1, got {max_outputs}")
    valid = as_mask(valid, (count,), "valid") & jnp.isfinite(boxes).all(axis=-1)
    valid &= jnp.isfinite(scores) & (scores >= 0)
    groups = as_groups(groups, (count,), "groups")
    if count == 0:
        none = jnp.full(max_outputs, -1, jnp.int32)
        return SoftNMSResult(none, jnp.zeros(max_outputs, jnp.float32), none >= 0)

    # Derived from `valid`, so that constant groups are spread over a mesh as it is.
    groups = jnp.where(valid, groups, jnp.zeros_like(groups))
    # The slope at the IoU of an area that overflows would be NaN.
    bounded = valid & jnp.isfinite(corners(boxes).area)
    boxes = jnp.where(bounded[:, None], boxes, 0.0)
    rows = corners(boxes)
    least = jnp.maximum(jnp.asarray(score_threshold, jnp.float32), 0.0)
    # Products alone: a division by a constant sigma would be rounded in another way
    # than one by a traced sigma.
    slope = -1.0 / jnp.asarray(sigma, jnp.float32)
    limit = jnp.asarray(iou_threshold if method == "linear" else 0.0, jnp.float32)

    def choose(scores, _):
        best = lax.argmax(scores, 0, jnp.int32)
        score = scores[best]
        iou = iou_of_corners(corners(boxes[best][None]), rows)
        factor = 1.0 - iou if method == "linear" else jnp.exp(iou * iou * slope)
        decays = (iou > limit) & (groups == groups[best]) & (scores > 0)
        rest = jnp.where(decays, scores * factor, scores)
        rest = jnp.where(jnp.arange(count, dtype=jnp.int32) == best, -1.0, rest)
        chosen = score >= least
        return rest, SoftNMSResult(
            jnp.where(chosen, best, -1), jnp.where(chosen, score, 0.0), chosen
        )

    # What takes no part any more has the score -1: finite, so that gradients are.
    scores = jnp.where(valid, scores, -1.0)
    return lax.scan(choose, scores, length=max_outputs)[1]
