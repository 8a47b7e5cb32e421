"""At which stage of making proposals an object was lost.

Every anchor's regressed box sets out, and stage by stage fewer are left. The stages are
`generate_proposals` itself with its later stages left out:

    decoded   the regressed boxes of all anchors, clipped to the image
    top_k     those of the anchors that score best, so many a level
    filtered  those of them that are large enough and score high enough
    nms       those that NMS keeps, however many
    cap       the best of these, as many as the network returns

For an IoU t, an object is lost at the first stage whose boxes hold none with IoU >= t
to it, and found if the last stage still holds one. Each object is therefore lost at one
stage or found, and the counts add up to the number of objects at every t.

Whether an anchor reaches an object is another question, answered beside the funnel and
not as a stage of it: an anchor below t may become a box above t, and one above t a box
below. So is whether any anchor learned the object. Clipping is no stage either: of a
box around an object within the image it takes away what is outside, which can only
raise the IoU. Where small boxes are dropped before the choice (`filter_first`,
py-faster-rcnn), objects whose boxes are all too small are lost at `top_k`.

Recall as COCO counts it may be lower than the share found here: there a proposal finds
one object, and of two that share their only good box one is missed.

Shape legend: `B` images, `A` anchors of a level, `G` objects an image, `S` stages, `N`
objects of a data set.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from rpn_jax.analysis.matched import count_positives
from rpn_jax.conventions import Convention
from rpn_jax.objective import RPNOutputs
from rpn_jax.ops._batching import map_images
from rpn_jax.ops._checks import ImageSize, as_boxes, as_mask
from rpn_jax.ops.boxes import corners, iou_of_corners, is_proper
from rpn_jax.ops.losses import foreground_logit
from rpn_jax.proposals import Proposals, generate_proposals, proposal_options

STAGES = ("decoded", "top_k", "filtered", "nms", "cap")
"""In the order in which boxes pass them."""


class Funnel(NamedTuple):
    """What came near the objects of one image.

    Attributes:
        iou: `[G, S]` float32, the highest IoU of each object with a box that passed
            each of `STAGES`; never rises from stage to stage. 0 where not valid.
        boxes: `[G, S, 4]` float32 xyxy, that box; zeros where none overlaps.
        anchor_iou: `[G]` float32, the highest IoU with any anchor, as it stands.
        positives: `[G]` int32, anchors that learn the object by the convention's
            matching.
    """

    iou: Float[Array, "*b G S"]
    boxes: Float[Array, "*b G S 4"]
    anchor_iou: Float[Array, "*b G"]
    positives: Int[Array, "*b G"]


class Losses(NamedTuple):
    """Where the objects of a group were lost, at one IoU.

    Attributes:
        objects: how many they are: `sum(lost) + found`.
        anchor: how many an anchor reaches by that IoU.
        matched: how many an anchor learns.
        lost: how many were lost at each of `STAGES`.
        found: how many a proposal reaches.
    """

    objects: int
    anchor: int
    matched: int
    lost: tuple[int, ...]
    found: int


def funnel(
    anchors: Sequence[ArrayLike],
    logits: Sequence[ArrayLike],
    deltas: Sequence[ArrayLike],
    image_size: ImageSize,
    gt_boxes: ArrayLike,
    gt_valid: ArrayLike | None = None,
    *,
    convention: Convention,
    image_scale: ArrayLike = 1.0,
) -> Funnel:
    """Find the nearest box to each object of one image that passed each stage.

    Args:
        anchors: for each level `[A, 4]` xyxy, pixels of the network input.
        logits: for each level `[A]`, one foreground logit an anchor. An anchor whose
            logit is NaN has no box.
        deltas: for each level `[A, 4]`.
        image_size: `[2]` (height, width) of the image within its padding.
        gt_boxes: `[G, 4]` xyxy, pixels of the network input; padded.
        gt_valid: `[G]` bool, which of them are objects to find; all by default. One
            without an area overlaps nothing.
        convention: how anchors are matched and proposals chosen, as in inference.
        image_scale: network size / original size.

    Returns:
        `Funnel`.

    Raises:
        ValueError: a shape or dtype is wrong.

    Example:
        >>> anchors = jnp.array([[0.0, 0, 10, 10], [0, 0, 10, 8]])
        >>> found = funnel([anchors], [jnp.array([1.0, 2.0])], [jnp.zeros((2, 4))],
        ...     (20, 20), anchors[:1], convention=Convention())
        >>> found.iou  # NMS keeps the other, which scores higher
        Array([[1. , 1. , 1. , 0.8, 0.8]], dtype=float32)
        >>> losses(found.iou, found.anchor_iou, found.positives, 0.9)
        Losses(objects=1, anchor=1, matched=1, lost=(0, 0, 0, 1, 0), found=0)
    """
    objects = as_boxes(gt_boxes, "gt_boxes", rank=2)
    valid = as_mask(gt_valid, objects.shape[:1], "gt_valid") & is_proper(objects)
    objects = jnp.where(valid[:, None], objects, 0.0)
    rules = proposal_options(convention, image_scale=image_scale)
    levels = [as_boxes(a, f"anchors[{i}]", rank=2) for i, a in enumerate(anchors)]
    flat = jnp.concatenate(levels)
    cap, rules["post_nms_top_n"] = rules["post_nms_top_n"], len(flat)

    def stage(**changes) -> Proposals:
        rule = rules | changes
        return generate_proposals(levels, logits, deltas, image_size, **rule)

    every_score = {"score_threshold": -math.inf, "iou_threshold": None}
    every_box = every_score | {"min_size": -1.0}
    most = max(map(len, levels))
    nms = stage()
    stages = {
        "decoded": stage(pre_nms_top_n=most, filter_first=False, **every_box),
        "top_k": stage(**(every_score if rules["filter_first"] else every_box)),
        "filtered": stage(iou_threshold=None),
        "nms": nms,
        # They are sorted: a level's own cap never cuts one of the best of all levels.
        "cap": jax.tree.map(lambda x: x[:cap], nms),
    }
    near = [
        _nearest(stages[name].boxes, stages[name].valid, objects) for name in STAGES
    ]
    anchor_iou, _ = _nearest(flat, jnp.ones(len(flat), bool), objects)
    iou = jnp.stack([x for x, _ in near], axis=1)
    return Funnel(
        iou,
        jnp.stack([x for _, x in near], axis=1),
        anchor_iou,
        count_positives(convention.targets, flat, objects, valid, image_size),
    )


def _nearest(boxes, valid, objects) -> tuple[jax.Array, jax.Array]:
    """Return each object's highest IoU with a box, `[G]`, and the box, `[G, 4]`."""
    boxes = jnp.where(valid[:, None], boxes, 0.0)  # which overlaps nothing
    columns = corners(boxes)

    def one(box):  # one by one: the matrix of all would be large
        iou = iou_of_corners(corners(box), columns)
        best = jnp.argmax(iou)
        return iou[best], jnp.where(iou[best] > 0, boxes[best], 0.0)

    return jax.lax.map(one, objects)


def batch_funnel(
    outputs: RPNOutputs,
    image_sizes: ArrayLike,
    image_scales: ArrayLike,
    gt_boxes: ArrayLike,
    gt_valid: ArrayLike,
    convention: Convention,
) -> Funnel:
    """Find the nearest boxes to the objects of a batch; fields get a leading B.

    Args:
        outputs: of the network.
        image_sizes: `[B, 2]` (height, width) of the images' content.
        image_scales: `[B]` network size / original size.
        gt_boxes: `[B, G, 4]` xyxy, pixels of the network input.
        gt_valid: `[B, G]` bool, which of them are objects to find.
        convention: of the network.
    """
    anchors, logits, deltas = outputs
    if convention.loss.objectness == "softmax":
        logits = tuple(foreground_logit(x) for x in logits)

    def one(anchors, logits, deltas, size, scale, boxes, valid):
        return funnel(
            anchors,
            logits,
            deltas,
            size,
            boxes,
            valid,
            convention=convention,
            image_scale=scale,
        )

    images = (image_sizes, image_scales, gt_boxes, gt_valid)
    return map_images(one, anchors, logits, deltas, *map(jnp.asarray, images))


def stages_passed(iou: ArrayLike, threshold: float) -> np.ndarray:
    """Count the stages that each object passed: all S if it was found.

    Args:
        iou: `[..., S]`, of a `Funnel`.
        threshold: the IoU that a box must reach.

    Returns:
        `[...]` integers; an object with n < S was lost at `STAGES[n]`.

    Example:
        >>> stages_passed(np.array([[0.9, 0.9, 0.9, 0.6, 0.6]]), 0.7)
        array([3])
    """
    reached = np.asarray(iou) >= threshold
    return np.cumprod(reached, axis=-1).sum(axis=-1)


def losses(
    iou: ArrayLike, anchor_iou: ArrayLike, positives: ArrayLike, threshold: float
) -> Losses:
    """Count where objects were lost.

    Args:
        iou: `[N, S]`; this and the next two of a `Funnel`, without padding.
        anchor_iou: `[N]`.
        positives: `[N]`.
        threshold: the IoU that a box must reach.
    """
    passed = stages_passed(iou, threshold)
    *lost, found = np.bincount(passed, minlength=len(STAGES) + 1).tolist()
    return Losses(
        len(passed),
        int((np.asarray(anchor_iou) >= threshold).sum()),
        int((np.asarray(positives) > 0).sum()),
        tuple(lost),
        found,
    )
