"""What is minimised: the outputs of the RPN, and of a second stage, against targets.

Shape legend: `B` images, `A` anchors (of a level or of all), `G` objects an image.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rpn_jax.batch import Batch
from rpn_jax.conventions import Convention, RoIConvention, options
from rpn_jax.ops.coding import decode_boxes
from rpn_jax.ops.losses import (
    RPNLosses,
    ciou_loss,
    diou_loss,
    foreground_logit,
    giou_loss,
    rpn_losses,
    sigmoid_objectness_loss,
    smooth_l1_loss,
)
from rpn_jax.roi_targets import RoITargets
from rpn_jax.targets import AnchorTargets, batch_targets

IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


class RPNOutputs(NamedTuple):
    """The network's outputs on a batch, one entry a level.

    Attributes:
        anchors: L arrays `[A, 4]` float32 xyxy, pixels of the padded image.
        logits: L arrays `[B, A]` float32, or `[B, A, 2]` (background, foreground).
        deltas: L arrays `[B, A, 4]` float32.
    """

    anchors: tuple[Float[Array, "_ 4"], ...]
    logits: tuple[Float[Array, "B ..."], ...]
    deltas: tuple[Float[Array, "B _ 4"], ...]


def rpn_objective(
    key: jax.Array, outputs: RPNOutputs, batch: Batch, convention: Convention
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Match, sample and compute what is to be minimised, and metrics beside it.

    Args:
        key: for the samples.
        outputs: of the network on the batch.
        batch: images and objects.
        convention: how.
    """
    anchors = jnp.concatenate(outputs.anchors)
    targets = batch_targets(key, anchors, batch, convention)
    losses = rpn_loss(outputs, targets, convention)
    total = losses.objectness + convention.loss.box_weight * losses.box
    return total, {
        "loss": total,
        "loss_objectness": losses.objectness,
        "loss_box": losses.box,
        **_health(outputs, targets, batch, convention),
    }


def rpn_loss(
    outputs: RPNOutputs, targets: AnchorTargets, convention: Convention
) -> RPNLosses:
    """Compute the two parts of the loss of a batch.

    Args:
        outputs: of the network on the batch.
        targets: of its images, fields with a leading B, from `batch_targets`.
        convention: which losses, and how to normalise them.

    Returns:
        `RPNLosses`, not yet weighed against each other.
    """
    anchors = jnp.concatenate(outputs.anchors)
    logits = jnp.concatenate(outputs.logits, axis=1)
    deltas = jnp.concatenate(outputs.deltas, axis=1)
    if convention.loss.objectness == "softmax":
        logits = foreground_logit(logits)
    # What does not count may be anything: of zeros the unused gradient is finite.
    logits = jnp.where(targets.sampled, logits, 0.0)
    positive = (targets.sampled & (targets.labels == 1))[..., None]
    deltas = jnp.where(positive, deltas, 0.0)
    if convention.loss.box in IOU_LOSSES:
        box = _iou_loss(deltas, anchors, targets, convention)
    else:
        box = smooth_l1_loss(deltas, targets.deltas, beta=convention.loss.beta).sum(-1)
    return rpn_losses(
        sigmoid_objectness_loss(logits, targets.labels),
        box,
        targets.labels,
        targets.sampled,
        normalizer=convention.loss.normalizer,
        batch_size=convention.targets.sample_size,
    )


def _iou_loss(deltas, anchors, targets: AnchorTargets, convention: Convention):
    """Loss between decoded boxes and objects, [B, A]; sampled positives count."""
    anchors = jnp.broadcast_to(anchors, deltas.shape)
    boxes = decode_boxes(deltas, anchors, **options(convention.coding))
    # Anchors stand in for the missing objects of the others: finite gradients.
    positive = (targets.sampled & (targets.labels == 1))[..., None]
    objects = jnp.where(positive, targets.boxes, anchors)
    return IOU_LOSSES[convention.loss.box](boxes, objects)


def _health(outputs, targets: AnchorTargets, batch: Batch, convention: Convention):
    """Tell how well the anchors cover the objects of a batch.

    `positives` an image, in all and for each level; `objects_missed`, the share of
    objects that no anchor overlaps by the upper threshold; `mean_best_iou`, over
    objects, of the best anchor's IoU.
    """
    objects = jnp.asarray(batch.valid) & ~jnp.asarray(batch.ignore)
    count = objects.sum()  # 0 of 0 objects is NaN: nothing was measured
    covered = targets.gt_iou >= convention.targets.high_threshold
    images = targets.labels.shape[0]
    ends = np.cumsum([level.shape[0] for level in outputs.anchors])
    levels = {
        f"positives_level{i}": (labels == 1).sum() / images
        for i, labels in enumerate(jnp.split(targets.labels, ends[:-1], axis=1))
    }
    return {
        "positives": sum(levels.values()),
        **levels,
        "objects_missed": (objects & ~covered).sum() / count,
        "mean_best_iou": jnp.where(objects, targets.gt_iou, 0.0).sum() / count,
    }


def detection_losses(
    logits: jax.Array, deltas: jax.Array, targets: RoITargets, rules: RoIConvention
) -> tuple[jax.Array, jax.Array]:
    """Compute the second stage's losses, both per sampled RoI of the batch.

    Args:
        logits: `[B, S, C + 1]`.
        deltas: `[B, S, C or C + 1, 4]`.
        targets: fields `[B, S, ...]`.
        rules: where the background stands, and beta of smooth-L1.

    Returns:
        Cross-entropy over classes and background, and smooth-L1 of RoIs on objects
        with the deltas of their class.
    """
    classes = logits.shape[-1] - 1
    positive = targets.labels >= 0
    first = rules.background == "first"
    background = 0 if first else classes
    column = jnp.where(positive, targets.labels + first, background)
    count = jnp.maximum(targets.valid.sum(), 1).astype(jnp.float32)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), column[..., None], -1)
    class_loss = -jnp.where(targets.valid, chosen[..., 0], 0.0).sum() / count
    with_background = deltas.shape[-2] == classes + 1
    box = jnp.maximum(targets.labels, 0) + (first and with_background)
    deltas = jnp.take_along_axis(deltas, box[..., None, None], axis=-2)[..., 0, :]
    # The others' deltas are anything: zeros give them a finite, unused gradient.
    deltas = jnp.where(positive[..., None], deltas, 0.0)
    losses = smooth_l1_loss(deltas, targets.deltas, beta=rules.beta).sum(-1)
    return class_loss, jnp.where(positive, losses, 0.0).sum() / count
