"""Matching: which anchor answers for which object.

Shape legend: `A` anchors, `G` ground-truth boxes.

The IoU of all anchors with all objects would be a G x A matrix (270,000 anchors and
500 boxes: 540 MB). It is computed for a few objects at a time instead; what is
remembered is one number an anchor (its best object so far) and one an object.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

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
            object's best.

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
    # A carry of the loop below must depend on the inputs as its update does, or the
    # types differ inside shard_map.
    varies = anchor_valid & (anchors[:, 0] == gt_boxes[:, 0].sum())
    none = jnp.where(varies, -1, -1).astype(jnp.int32)
    nothing = none.astype(jnp.float32)
    if num_gt == 0:
        labels = jnp.where(anchor_valid, jnp.zeros_like(none), none)
        return Matches(labels, none, nothing + 1, jnp.zeros((0,), jnp.float32))

    # Boxes that do not count become empty ones at the origin.
    gt_boxes = jnp.where(gt_valid[:, None], gt_boxes, jnp.zeros_like(gt_boxes))
    short = -num_gt % BLOCK
    blocks = jax.tree.map(
        lambda x: jnp.pad(x, ((0, short),) + ((0, 0),) * (x.ndim - 1)).reshape(
            -1, BLOCK, *x.shape[1:]
        ),
        (gt_boxes, gt_valid & ~ignore, ignore, jnp.arange(num_gt, dtype=jnp.int32)),
    )
    columns = Corners(*(x[None, :] for x in corners(anchors)))

    def step(carry, block):
        best, best_index, claimed, covered = carry
        boxes, counts, ignored, index = block
        rows = Corners(*(x[:, None] for x in corners(boxes)))
        usable = counts[:, None] & anchor_valid[None, :]
        iou = jnp.where(usable, iou_of_corners(rows, columns), -1.0)  # [BLOCK, A]
        gt_best = iou.max(axis=1, initial=-1.0)
        claims = (
            (iou == gt_best[:, None]) & usable & (gt_best > low_quality_above)[:, None]
        )
        inter = intersection_of_corners(rows, columns)
        # The divisor depends on both boxes, or XLA multiplies by its reciprocal and a
        # share of exactly the threshold may fall below it.
        covers = inter / jnp.where(inter > 0, columns.area, jnp.ones_like(inter))
        # One object after the other, so that a tie goes to the lower index (best) and
        # a claim to the higher (claimed).
        for i in range(BLOCK):
            better = iou[i] > best
            best = jnp.where(better, iou[i], best)
            best_index = jnp.where(better, index[i], best_index)
            claimed = jnp.where(claims[i], index[i], claimed)
            covered = jnp.where(ignored[i] & (covers[i] > covered), covers[i], covered)
        return (best, best_index, claimed, covered), gt_best

    start = (nothing, none, none, nothing)
    (best, best_index, claimed, covered), gt_best = jax.lax.scan(step, start, blocks)

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
        best_index,
        jnp.maximum(best, 0),
        jnp.maximum(gt_best.reshape(-1)[:num_gt], 0),
    )
