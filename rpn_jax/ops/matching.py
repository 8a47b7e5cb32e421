"""Matching: which anchor answers for which object.

Shape legend: `A` anchors, `G` ground-truth boxes.

The IoU of all anchors with all objects would be a G x A matrix (270,000 anchors and
500 boxes: 540 MB). It is computed for a few objects at a time instead; what is
remembered is one number an anchor (its best object so far) and one an object.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from rpn_jax.ops._batching import image_by_image
from rpn_jax.ops._checks import as_boxes, as_mask, check_option
from rpn_jax.ops.boxes import (
    Corners,
    corners,
    intersection_of_corners,
    iou_of_corners,
    is_proper,
)

LOW_QUALITY = ("off", "label", "overwrite")

# Objects compared with all anchors at a time.
BLOCK = 8


class Matches(NamedTuple):
    """What each anchor is to learn.

    Attributes:
        labels: `[A]` int32: 1 positive, 0 negative, -1 not used.
        gt_index: `[A]` int32, the object of highest IoU (ties: the lowest index), or
            the object that claimed the anchor under "overwrite"; -1 where there is
            no object or the anchor is not valid.
        iou: `[A]` float32, highest IoU with any object; 0 where there is none.
        gt_iou: `[G]` float32, highest IoU of each object with any anchor; 0 where
            padded or ignored.
    """

    labels: Int[Array, " A"]
    gt_index: Int[Array, " A"]
    iou: Float[Array, " A"]
    gt_iou: Float[Array, " G"]


def match_anchors(
    anchors: ArrayLike,
    gt_boxes: ArrayLike,
    gt_valid: ArrayLike | None = None,
    *,
    high_threshold: ArrayLike = 0.7,
    low_threshold: ArrayLike = 0.3,
    low_quality: str = "label",
    low_quality_above: ArrayLike = 0.0,
    gt_ignore: ArrayLike | None = None,
    ignore_threshold: ArrayLike = 0.5,
    anchor_valid: ArrayLike | None = None,
) -> Matches:
    """Label anchors by their best IoU with an object.

    An anchor is positive if its best IoU >= `high_threshold`, negative if it is
    < `low_threshold`, else not used. The low-quality rule then makes sure that each
    object has a positive: every anchor whose IoU with an object equals the highest
    that the object has with any anchor becomes positive too (all ties do).
    At last, anchors that are not positive and lie in an ignore region by at least
    `ignore_threshold` of their area are not used.

    Args:
        anchors: `[A, 4]` xyxy, pixels.
        gt_boxes: `[G, 4]` xyxy, pixels; padded. Boxes that are not finite or have no
            area count as not valid.
        gt_valid: `[G]` bool, which boxes exist; all by default.
        high_threshold: IoU from which an anchor is positive.
        low_threshold: IoU below which an anchor is negative.
        low_quality: "off"; "label": such an anchor keeps the object of its own highest
            IoU (torchvision, detectron2, py-faster-rcnn); "overwrite": it is given to
            the object that claims it, the last one if several do (mmdetection).
        low_quality_above: the rule serves only objects whose best IoU exceeds this.
            With 0 an object that overlaps no anchor is lost; with a negative number it
            equals 0 with every anchor and makes all of them positive, as torchvision
            and detectron2 do.
        gt_ignore: `[G]` bool, which of the valid boxes are crowd or ignore regions.
            They never make an anchor positive.
        ignore_threshold: share of an anchor's area within one ignore region from
            which it is not used as a negative.
        anchor_valid: `[A]` bool; anchors that are not valid get label -1 and are no
            object's best. Anchors that are not finite count as not valid.

    Returns:
        `Matches`. Without any object all valid anchors are negative.

    Raises:
        ValueError: a shape, dtype or option is wrong.

    Reference:
        Ren et al., Faster R-CNN, NeurIPS 2015, section 3.1.2.

    Example:
        >>> anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 9, 5], [50, 50, 60, 60]])
        >>> match_anchors(anchors, jnp.array([[0.0, 0.0, 10.0, 9.0]])).labels
        Array([ 1, -1,  0], dtype=int32)
    """
    check_option(low_quality, LOW_QUALITY, "low_quality")
    anchors = jax.lax.stop_gradient(as_boxes(anchors, "anchors", rank=2))
    gt_boxes = jax.lax.stop_gradient(as_boxes(gt_boxes, "gt_boxes", rank=2))
    num_anchors, num_gt = anchors.shape[0], gt_boxes.shape[0]
    gt_valid = as_mask(gt_valid, (num_gt,), "gt_valid") & is_proper(gt_boxes)
    ignore = gt_valid & (
        as_mask(gt_ignore, (num_gt,), "gt_ignore")
        if gt_ignore is not None
        else jnp.zeros_like(gt_valid)
    )
    anchor_valid = as_mask(anchor_valid, (num_anchors,), "anchor_valid")
    for i in range(4):  # not all(axis=1), which XLA is slow to fold where constant
        anchor_valid &= jnp.isfinite(anchors[:, i])
    if num_gt == 0 or num_anchors == 0:
        # Not constants, whose type would differ from the inputs' inside shard_map.
        labels = anchor_valid.astype(jnp.int32) - 1
        none = jnp.full_like(labels, -1)
        zeros = jnp.zeros_like(anchors[:, 0]), jnp.zeros_like(gt_boxes[:, 0])
        return Matches(labels, none, *zeros)

    # What does not count becomes an empty box, which overlaps nothing.
    anchors = jnp.where(anchor_valid[:, None], anchors, jnp.zeros_like(anchors))
    gt_boxes = jnp.where(gt_valid[:, None], gt_boxes, jnp.zeros_like(gt_boxes))
    best, best_index, claimed, covered, gt_best = jax.lax.platform_dependent(
        anchors,
        gt_boxes,
        gt_valid & ~ignore,
        ignore,
        jnp.asarray(low_quality_above, jnp.float32),
        cpu=image_by_image(partial(_compare, lean=True)),
        default=partial(_compare, lean=False),
    )

    # Without any object best is -1, which is background like an IoU of 0.
    labels = jnp.where(best < low_threshold, 0, -1)
    labels = jnp.where((best >= high_threshold) & (best_index >= 0), 1, labels)
    if low_quality != "off":
        labels = jnp.where(claimed >= 0, 1, labels)
    if low_quality == "overwrite":
        best_index = jnp.where(claimed >= 0, claimed, best_index)
    labels = jnp.where((labels != 1) & (covered >= ignore_threshold), -1, labels)
    return Matches(
        jnp.where(anchor_valid, labels, -1).astype(jnp.int32),
        jnp.where(anchor_valid, best_index, -1).astype(jnp.int32),
        jnp.where(anchor_valid, jnp.maximum(best, 0), 0),
        jnp.maximum(gt_best, 0),
    )


def _compare(anchors, gt_boxes, counts, ignored, above, *, lean: bool):
    """Compare all anchors with all objects; -1 stands for none.

    Returns:
        For each anchor its highest IoU, the object of it, the last object that claims
        the anchor, its largest share within an ignored region; for each object its
        highest IoU.
    """
    num_gt = gt_boxes.shape[0]
    short = -num_gt % BLOCK
    columns = Corners(*(x[None, :] for x in corners(anchors)))
    blocks = jnp.pad(gt_boxes, ((0, short), (0, 0))).reshape(-1, BLOCK, 4)
    counts, ignored = (
        jnp.pad(x, (0, short)).reshape(-1, BLOCK) for x in (counts, ignored)
    )
    # A loop's carry must depend on the inputs as its update does, or the types differ
    # inside shard_map.
    none = jnp.where(anchors[:, 0] == gt_boxes[0, 0], -1, -1).astype(jnp.int32)
    nothing = none.astype(jnp.float32)

    def rows(i):
        return Corners(*(x[:, None] for x in corners(blocks[i])))

    def overlaps(i):
        iou = iou_of_corners(rows(i), columns)
        return jnp.where(counts[i][:, None] & (iou >= 0), iou, -1.0)

    def remember(i, iou, state):
        best, best_index, claimed, gt_best = state
        gt_iou = _highest(iou, axis=1)
        claim = jnp.where(gt_iou > above, gt_iou, 2.0)  # no IoU is 2
        # One object after the other, so that a tie goes to the lower index (here) and
        # a claim to the higher (winner).
        here, at, winner = iou[0], jnp.zeros_like(none), none
        for j in range(BLOCK):
            at = jnp.where(iou[j] > here, j, at)
            here = jnp.where(iou[j] > here, iou[j], here)
            winner = jnp.where(iou[j] == claim[j], j, winner)
        return (
            jnp.where(here > best, here, best),
            jnp.where(here > best, at + i * BLOCK, best_index),
            jnp.where(winner >= 0, winner + i * BLOCK, claimed),
            jax.lax.dynamic_update_slice(gt_best, gt_iou[None], (i, 0 * i)),
        )

    def shares(i):
        inter = intersection_of_corners(rows(i), columns)
        # The divisor depends on both boxes, or XLA multiplies by its reciprocal and a
        # share of exactly the threshold may fall below it.
        share = inter / jnp.where(inter > 0, columns.area, jnp.ones_like(inter))
        return jnp.where(ignored[i][:, None], share, -1.0)

    def cover(i, share, covered):
        return jnp.maximum(covered, _highest(share, axis=0))

    start = nothing, none, none, nothing[0] + 0 * blocks[..., 0]
    *found, gt_best = _fold(overlaps, remember, start, counts, lean=lean)
    covered = _fold(shares, cover, nothing, ignored, lean=lean)
    return *found, covered, gt_best.reshape(-1)[:num_gt]


def _fold(
    first: Callable, then: Callable, state: Any, mask: jax.Array, *, lean: bool
) -> Any:
    """Fold blocks of objects into a state: state = then(i, first(i), state).

    On CPU (`lean`) it ends with the last block in which the mask [blocks, BLOCK] is
    set, and what `first` returns is stored: XLA would compute it anew for each of its
    uses, at twice the time, but not across the border of a loop, be it of one step.
    """
    if not lean:
        return jax.lax.fori_loop(
            0, mask.shape[0], lambda i, state: then(i, first(i), state), state
        )
    number = jnp.arange(1, mask.shape[0] + 1, dtype=jnp.int32)
    used = jnp.where(mask.any(axis=1), number, 0).max()

    def step(i, state):
        stored = first(i)
        return jax.lax.fori_loop(
            0 * used, 0 * used + 1, lambda _, state: then(i, stored, state), state
        )

    return jax.lax.fori_loop(0 * used, used, step, state)


def _highest(x, axis: int):
    """Maximum of numbers that are not NaN, which lets XLA use vector instructions."""
    return jax.lax.reduce(
        x, np.float32(-np.inf), lambda a, b: jnp.where(a > b, a, b), (axis,)
    )
