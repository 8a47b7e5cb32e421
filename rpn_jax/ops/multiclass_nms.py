"""NMS within each class, the best of all classes: the last step of a detector."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

from rpn_jax.ops._checks import as_boxes, as_float, as_mask
from rpn_jax.ops.nms import nms
from rpn_jax.ops.topk import top_k


class MulticlassNMSResult(NamedTuple):
    """The pairs of box and class that are kept, best first.

    Attributes:
        indices: `[K]` int32 into the boxes given, K = max_outputs; -1 where padded.
        classes: `[K]` int32 into the columns of the scores; -1 where padded.
        valid: `[K]` bool.
    """

    indices: Int[Array, " K"]
    classes: Int[Array, " K"]
    valid: Bool[Array, " K"]


def multiclass_nms(
    boxes: ArrayLike,
    scores: ArrayLike,
    *,
    iou_threshold: ArrayLike,
    max_outputs: int,
    score_threshold: ArrayLike = -jnp.inf,
    max_candidates: int | None = None,
    valid: ArrayLike | None = None,
) -> MulticlassNMSResult:
    """Suppress overlapping boxes within each class and keep the best of all classes.

    Every pair of a box and a class is a candidate. Candidates of one class suppress
    each other as in `nms`, those of different classes never meet. What is left is
    ordered by descending score, ties to the lower box and then to the lower class.

    Args:
        boxes: `[N, 4]` xyxy, any unit, shared by the classes, or `[N, C, 4]`, one box
            for each class.
        scores: `[N, C]` real numbers, without a column for the background.
        iou_threshold: see `nms`.
        max_outputs: K, the most pairs to keep; static.
        score_threshold: candidates must exceed it; number or traced scalar.
        max_candidates: how many candidates, the best ones, enter NMS; static. It saves
            time, and changes nothing unless it cuts one that would have been kept. All
            by default.
        valid: `[N]` bool, which boxes take part; all by default. A candidate also
            takes no part if its score is NaN or -inf or a coordinate is not finite.

    Returns:
        `MulticlassNMSResult` by descending score, padded to K.

    Raises:
        ValueError: a shape or dtype is wrong, or max_outputs or max_candidates is
            below 1.

    Reference:
        The same kept pairs as `torchvision.ops.batched_nms` on all pairs above the
        score threshold, but with class numbers compared, not boxes moved apart.

    Example:
        >>> boxes = jnp.array([[0.0, 0, 10, 10], [1, 0, 11, 10]])
        >>> scores = jnp.array([[0.9, 0.2], [0.8, 0.7]])
        >>> kept = multiclass_nms(boxes, scores, iou_threshold=0.5, max_outputs=3)
        >>> kept.indices, kept.classes
        (Array([ 0,  1, -1], dtype=int32), Array([ 0,  1, -1], dtype=int32))
    """
    # Which pairs are kept is not differentiable; the caller gathers what is.
    boxes = lax.stop_gradient(as_boxes(boxes, "boxes"))
    scores = lax.stop_gradient(as_float(scores, "scores"))
    if scores.ndim != 2:
        raise ValueError(f"scores must be [N, C], got shape {scores.shape}")
    count, classes = scores.shape
    if boxes.shape not in ((count, 4), (count, classes, 4)):
        raise ValueError(
            f"boxes must be [N, 4] or [N, C, 4] with scores of shape {scores.shape}, "
            f"got shape {boxes.shape}"
        )
    if max_candidates is not None and max_candidates < 1:
        raise ValueError(f"max_candidates must be at least 1, got {max_candidates}")
    valid = as_mask(valid, (count,), "valid")
    if not scores.size:
        none = jnp.full(max_outputs, -1, jnp.int32)
        return MulticlassNMSResult(none, none, none >= 0)
    boxes = boxes.reshape(count, -1, 4)  # [N, 1 or C, 4]
    valid = valid[:, None] & jnp.isfinite(boxes).all(axis=-1)
    valid = (valid & (scores > score_threshold)).reshape(-1)

    # A pair is a place in the flattened scores; derived from `valid`, so that it is
    # spread over a mesh as that is.
    scores = scores.reshape(-1)
    pairs = jnp.where(valid, jnp.arange(count * classes, dtype=jnp.int32), 0)
    if max_candidates is not None and max_candidates < count * classes:
        best = top_k(scores, max_candidates, valid=valid)
        pairs, valid = jnp.maximum(best.indices, 0), best.valid
    # Boxes that the classes share have one column: class % 1 = 0.
    kept = nms(
        boxes[pairs // classes, pairs % boxes.shape[1]],
        scores[pairs],
        iou_threshold=iou_threshold,
        max_outputs=max_outputs,
        valid=valid,
        groups=pairs % classes,
    )
    pair = pairs[jnp.maximum(kept.indices, 0)]
    return MulticlassNMSResult(
        jnp.where(kept.valid, pair // classes, -1),
        jnp.where(kept.valid, pair % classes, -1),
        kept.valid,
    )
