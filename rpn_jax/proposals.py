"""Proposals: the best-scored anchors, moved by their offsets, without duplicates."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from rpn_jax.conventions import Convention, options
from rpn_jax.ops._batching import map_images
from rpn_jax.ops._checks import (
    ImageSize,
    as_boxes,
    as_float,
    as_image_size,
    check_option,
    check_shape,
)
from rpn_jax.ops.boxes import clip_decoded
from rpn_jax.ops.coding import MAX_LOG_SCALE, decode_boxes
from rpn_jax.ops.losses import foreground_logit
from rpn_jax.ops.nms import nms
from rpn_jax.ops.topk import top_k


class Proposals(NamedTuple):
    """Boxes that may hold an object, best first.

    Attributes:
        boxes: `[K, 4]` float32 xyxy, pixels of the network input, within the image;
            zeros where not valid.
        scores: `[K]` float32, probabilities or logits; 0 where not valid.
        levels: `[K]` int32, the pyramid level of the anchor; -1 where not valid.
        valid: `[K]` bool.
    """

    boxes: Float[Array, "*b K 4"]
    scores: Float[Array, "*b K"]
    levels: Int[Array, "*b K"]
    valid: Bool[Array, "*b K"]


def generate_proposals(
    anchors: Sequence[ArrayLike],
    logits: Sequence[ArrayLike],
    deltas: Sequence[ArrayLike],
    image_size: ImageSize,
    *,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    iou_threshold: float | jax.Array | None = 0.7,
    score: str = "probability",
    score_threshold: float | jax.Array = -math.inf,
    min_size: float | jax.Array = 0.0,
    min_size_strict: bool = True,
    filter_first: bool = False,
    inclusive: bool = False,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    max_log_scale: float = MAX_LOG_SCALE,
) -> Proposals:
    """Turn the head's outputs for one image into a fixed number of padded proposals.

    Level by level the anchors with the highest logits are chosen and decoded; their
    boxes are clipped to the image; those too small or of too low a score are dropped;
    NMS runs within each level; the best of all levels are kept.

    Args:
        anchors: for each level `[A, 4]` xyxy, pixels of the network input.
        logits: for each level `[A]`, one foreground logit an anchor.
        deltas: for each level `[A, 4]`.
        image_size: `[2]` (height, width) of the image within its padding.
        pre_nms_top_n: anchors a level that are decoded; static.
        post_nms_top_n: K, proposals an image; static.
        iou_threshold: of NMS; None leaves NMS out.
        score: "probability" (sigmoid of the logit) or "logit": what NMS ranks by and
            what is returned. The choice of anchors goes by logits in any case.
        score_threshold: least score of a proposal.
        min_size: least width and height after clipping, pixels.
        min_size_strict: they must exceed it (detectron2) or reach it (torchvision).
        filter_first: drop small boxes before the choice (py-faster-rcnn), not after.
        inclusive: decoded x2, y2 are the last pixel inside and are clipped to W - 1,
            H - 1 (py-faster-rcnn); 1 is added to make them continuous.
        weights: factors of (dx, dy, dw, dh).
        max_log_scale: see `decode_boxes`.

    Returns:
        `Proposals`, by descending score, ties in order of level and then of logit.
        Dropped are anchors whose logit is NaN or -inf (or +inf, if logits are the
        scores), and those that are not finite or whose deltas, or box before it is
        clipped, are not.
        Boxes and scores are differentiable with respect to deltas and logits, the
        choice is not; the gradient of what is dropped is 0.

    Raises:
        ValueError: the numbers of levels or the shapes differ, a level has no anchor,
            or an option is wrong.

    Reference:
        Ren et al., Faster R-CNN, NeurIPS 2015; torchvision `filter_proposals`,
        detectron2 `find_top_rpn_proposals`.

    Example:
        >>> anchors = jnp.array([[0.0, 0, 8, 8], [0, 0, 9, 8], [16, 16, 24, 24]])
        >>> proposals = generate_proposals(
        ...     [anchors], [jnp.array([0.0, 2.0, -1.0])], [jnp.zeros((3, 4))], (20, 20),
        ...     pre_nms_top_n=3, post_nms_top_n=3)
        >>> proposals.boxes[:2].tolist()
        [[0.0, 0.0, 9.0, 8.0], [16.0, 16.0, 20.0, 20.0]]
    """
    check_option(score, ("probability", "logit"), "score")
    if not len(anchors) == len(logits) == len(deltas) > 0:
        raise ValueError(
            "anchors, logits and deltas need one entry a level, got "
            f"{len(anchors)}, {len(logits)} and {len(deltas)}"
        )
    image_size = as_image_size(image_size)

    def decode(deltas, anchors):
        """Make boxes, and tell which are finite."""
        known = jnp.isfinite(deltas).all(axis=1) & jnp.isfinite(anchors).all(axis=1)
        # The slope at NaN would be NaN.
        deltas, anchors = (jnp.where(known[:, None], x, 0.0) for x in (deltas, anchors))
        boxes = decode_boxes(
            deltas, anchors, weights=weights, max_log_scale=max_log_scale
        )
        known &= jnp.isfinite(boxes).all(axis=1)
        return clip_decoded(boxes, image_size, inclusive), known

    def large_enough(boxes):
        sides = boxes[:, 2:] - boxes[:, :2]
        return (sides > min_size if min_size_strict else sides >= min_size).all(axis=1)

    chosen = []
    for level, (anchor, logit, delta) in enumerate(
        zip(anchors, logits, deltas, strict=True)
    ):
        anchor = as_boxes(anchor, f"anchors[{level}]", rank=2)
        logit, delta = as_float(logit, f"logits[{level}]"), as_boxes(delta, "deltas")
        check_shape(logit, anchor.shape[:1], f"logits[{level}]")
        check_shape(delta, anchor.shape, f"deltas[{level}]")
        if not anchor.shape[0]:
            raise ValueError(f"anchors[{level}] is empty: every level needs anchors")
        suits = large_enough(decode(delta, anchor)[0]) if filter_first else None
        best = top_k(
            jax.lax.stop_gradient(logit),
            min(pre_nms_top_n, logit.shape[0]),
            valid=suits,
        )
        # Only what survives is decoded; decoding all and choosing gives the same bits.
        index = jnp.maximum(best.indices, 0)
        boxes, known = decode(delta[index], anchor[index])
        valid = best.valid & known
        logit = jnp.where(valid, logit[index], 0.0)
        scores = jax.nn.sigmoid(logit) if score == "probability" else logit
        valid &= (scores >= score_threshold) & jnp.isfinite(scores)
        if not filter_first:
            valid &= large_enough(boxes)
        if iou_threshold is not None:
            # Levels do not meet in NMS. One by one they come in order of score, which
            # saves sorting, and each is compared with fewer kept boxes.
            kept = nms(
                boxes,
                scores,
                iou_threshold=iou_threshold,
                max_outputs=min(post_nms_top_n, boxes.shape[0]),
                valid=valid,
            )
            index, valid = jnp.maximum(kept.indices, 0), kept.valid
            boxes, scores = boxes[index], scores[index]
        chosen.append((boxes, scores, 0 * index + level, valid))
    boxes, scores, levels, valid = (
        jnp.concatenate(x) for x in zip(*chosen, strict=True)
    )
    best = top_k(jax.lax.stop_gradient(scores), post_nms_top_n, valid=valid)
    index, valid = jnp.maximum(best.indices, 0), best.valid
    return Proposals(
        jnp.where(valid[:, None], boxes[index], 0.0),
        jnp.where(valid, scores[index], 0.0),
        jnp.where(valid, levels[index], -1),
        valid,
    )


def proposal_options(
    convention: Convention, *, image_scale: ArrayLike = 1.0, train: bool = False
) -> dict[str, Any]:
    """Turn a convention into the options of `generate_proposals`.

    Args:
        convention: how proposals are chosen.
        image_scale: network size / original size; matters where the convention's least
            box size counts original pixels.
        train: how many: as in training or as in inference.
    """
    rules, stage = convention.proposals, "train" if train else "test"
    counts = [f"{s}_{n}_nms" for s in ("train", "test") for n in ("pre", "post")]
    return {
        **options(rules, "min_size_scaled", *counts),
        **options(convention.coding),
        "pre_nms_top_n": getattr(rules, f"{stage}_pre_nms"),
        "post_nms_top_n": getattr(rules, f"{stage}_post_nms"),
        "min_size": rules.min_size * (image_scale if rules.min_size_scaled else 1.0),
    }


def batch_proposals(
    anchors: Sequence[ArrayLike],
    logits: Sequence[ArrayLike],
    deltas: Sequence[ArrayLike],
    image_sizes: ArrayLike,
    image_scales: ArrayLike,
    convention: Convention,
    *,
    train: bool = False,
) -> Proposals:
    """Make the proposals of every image of a batch from the network's outputs.

    Args:
        anchors: for each level `[A, 4]` xyxy, pixels of the padded image.
        logits: for each level `[B, A]`, or `[B, A, 2]` under softmax.
        deltas: for each level `[B, A, 4]`.
        image_sizes: `[B, 2]` (height, width) of the images' content.
        image_scales: `[B]` network size / original size; matters where the convention's
            least box size counts original pixels.
        convention: how to choose.
        train: how many: as in training or as in inference.

    Returns:
        `Proposals`, each field with a leading B.
    """
    if convention.loss.objectness == "softmax":
        logits = tuple(foreground_logit(x) for x in logits)

    def one(anchors, logits, deltas, size, scale):
        rules = proposal_options(convention, image_scale=scale, train=train)
        return generate_proposals(anchors, logits, deltas, size, **rules)

    sizes, scales = jnp.asarray(image_sizes), jnp.asarray(image_scales)
    return map_images(one, tuple(anchors), tuple(logits), tuple(deltas), sizes, scales)
