"""The region proposal network: `rpn(config)` gives four pure functions.

Shape legend: `B` images of padded size `H x W`, `L` pyramid levels, `A` anchors (of a
level or of all), `G` boxes at most an image, `K` proposals an image.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rpn_jax.batch import Batch
from rpn_jax.conventions import (
    TORCHVISION,
    Checked,
    Convention,
    ImageConvention,
    options,
)
from rpn_jax.models import FPN, RPNHead, SmallResNet, SqueezeNet, flatten_levels
from rpn_jax.ops.anchors import level_table, pyramid_anchors
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
from rpn_jax.proposals import Proposals, batch_proposals
from rpn_jax.targets import AnchorTargets, batch_targets

Params = dict[str, Any]
Maps = list[jax.Array]

IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RPNConfig(Checked):
    """What a region proposal network is made of.

    Attributes:
        backbone: a name in `BACKBONES`.
        strides: strides of the backbone's feature maps to use, one a level.
        sizes: for each level its anchor sizes (square roots of areas), pixels.
        ratios: heights over widths of the anchors of every level.
        head_channels: channels of `rpn_conv`; None: as many as the feature map.
        head_convs: 3 x 3 convolutions in the head.
        dtype: "float32" or "bfloat16", what backbone and head compute in. Parameters,
            geometry, scores and losses are float32 in any case.
        convention: every choice on which the peers differ.
    """

    backbone: str = "squeezenet"
    strides: tuple[int, ...] = (16,)
    sizes: tuple[tuple[float, ...], ...] = ((128.0, 256.0, 512.0),)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    head_channels: int | None = None
    head_convs: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    convention: Convention = TORCHVISION


BACKBONES: dict[str, Callable[[RPNConfig, Any], Any]] = {
    "squeezenet": lambda config, dtype: SqueezeNet(padding="same", dtype=dtype),
    "squeezenet_torchvision": lambda config, dtype: SqueezeNet(
        padding="torchvision", dtype=dtype
    ),
    "small_resnet": lambda config, dtype: SmallResNet(
        strides=config.strides, dtype=dtype
    ),
    "small_resnet_fpn": lambda config, dtype: FPN(
        bottom_up=SmallResNet(
            widths=(32, 64, 64, 96),
            blocks=(1, 1, 1, 1),
            strides=config.strides,
            dtype=dtype,
        ),
        channels=64,
        smooth=False,
        dtype=dtype,
    ),
}


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


class RPN(NamedTuple):
    """A region proposal network as pure functions.

    Attributes:
        init: `init(key, image_size=(H, W)) -> params`, the whole Linen variables dict.
        apply: `apply(params, images, image_sizes) -> RPNOutputs`.
        loss: `loss(key, params, batch) -> (loss, metrics)`, scalars; metrics hold the
            parts of the loss and how well the anchors cover the objects.
        propose: `propose(params, images, image_sizes, *, train=False,
            image_scales=None) -> Proposals`, each field with a leading B.
        config: the `RPNConfig` that it was made from.
    """

    init: Callable[..., Params]
    apply: Callable[..., RPNOutputs]
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    propose: Callable[..., Proposals]
    config: RPNConfig


class RPNModule(nn.Module):
    """Backbone and shared head, one after the other."""

    backbone: nn.Module
    rpn: RPNHead

    def __call__(self, images: jax.Array):
        """Map normalised images to (scores, deltas), lists over the levels."""
        outputs = [self.rpn(features) for features in self.backbone(images)]
        return [scores for scores, _ in outputs], [deltas for _, deltas in outputs]


def rpn(config: RPNConfig) -> RPN:
    """Make a region proposal network.

    Args:
        config: what it is made of.

    Returns:
        An `RPN` of pure functions, to be jitted by the caller. Images are
        `[B, H, W, 3]` RGB in 0..255, any real dtype, zero where padded;
        `image_sizes` is `[B, 2]` (height, width) of their content.

    Raises:
        ValueError: the configuration is inconsistent; the message shows the levels.

    Reference:
        Ren et al., Faster R-CNN, NeurIPS 2015.

    Example:
        >>> model = rpn(RPNConfig(backbone="small_resnet", sizes=((32.0, 64.0),)))
        >>> params = model.init(jax.random.key(0), image_size=(64, 64))
        >>> images, sizes = jnp.zeros((1, 64, 64, 3)), jnp.array([[64, 64]])
        >>> model.propose(params, images, sizes).boxes.shape
        (1, 1000, 4)
    """
    convention = config.convention
    per_cell = _anchors_a_cell(config)
    logits_per_anchor = 2 if convention.loss.objectness == "softmax" else 1
    dtype = jnp.dtype(config.dtype)
    if config.backbone not in BACKBONES:
        raise ValueError(
            f"backbone must be one of {', '.join(BACKBONES)}, got {config.backbone!r}"
        )
    backbone = BACKBONES[config.backbone](config, dtype)
    if backbone.strides != config.strides:
        table = level_table(
            backbone=backbone.strides, config=config.strides, sizes=config.sizes
        )
        raise ValueError(
            f"{config.backbone} has maps of strides {backbone.strides}, the "
            f"configuration wants {config.strides}\n{table}"
        )
    module = RPNModule(
        backbone=backbone,
        rpn=RPNHead(
            num_anchors=per_cell,
            channels=config.head_channels,
            logits_per_anchor=logits_per_anchor,
            num_convs=config.head_convs,
            dtype=dtype,
        ),
    )

    def init(key: jax.Array, *, image_size: tuple[int, int]) -> Params:
        images = jnp.zeros((1, *image_size, 3))
        return jax.jit(module.init)(key, images)

    def apply(params: Params, images: ArrayLike, image_sizes: ArrayLike) -> RPNOutputs:
        images = normalize_images(images, image_sizes, convention.image)
        scores, offsets = cast(tuple[Maps, Maps], module.apply(params, images))
        grids = [(x.shape[1], x.shape[2]) for x in scores]
        anchors = pyramid_anchors(
            grids,
            sizes=config.sizes,
            ratios=config.ratios,
            strides=level_strides(config, grids, images.shape[1:3]),
            **options(convention.anchors, "stride"),
        )
        logits, deltas = flatten_levels(
            scores, offsets, logits_per_anchor=logits_per_anchor
        )
        return RPNOutputs(anchors, logits, deltas)

    def loss(key: jax.Array, params: Params, batch: Batch):
        outputs = apply(params, batch.images, batch.image_sizes)
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

    def propose(
        params: Params,
        images: ArrayLike,
        image_sizes: ArrayLike,
        *,
        train: bool = False,
        image_scales: ArrayLike | None = None,
    ) -> Proposals:
        outputs = apply(params, images, image_sizes)
        scales = (
            jnp.ones((outputs.logits[0].shape[0],))
            if image_scales is None
            else jnp.asarray(image_scales)
        )
        return batch_proposals(*outputs, image_sizes, scales, convention, train=train)

    return RPN(init, apply, loss, propose, config)


def normalize_images(
    images: ArrayLike, image_sizes: ArrayLike, convention: ImageConvention
) -> Float[Array, "B H W 3"]:
    """Turn RGB images in 0..255 into what the network wants, zero where padded."""
    images, image_sizes = jnp.asarray(images), jnp.asarray(image_sizes)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be [B, H, W, 3], got shape {images.shape}")
    if image_sizes.shape != (images.shape[0], 2):
        raise ValueError(
            f"image_sizes must be [{images.shape[0]}, 2], got {image_sizes.shape}"
        )
    x = images.astype(jnp.float32)
    if convention.color == "bgr":
        x = x[..., ::-1]
    if convention.range != 255:
        x = x * (convention.range / 255)
    mean, std = (
        jnp.broadcast_to(jnp.array(v), x.shape)
        for v in (convention.mean, convention.std)
    )
    rows = jnp.arange(x.shape[1])[None, :] < image_sizes[:, :1]
    columns = jnp.arange(x.shape[2])[None, :] < image_sizes[:, 1:]
    content = (rows[:, :, None] & columns[:, None, :])[..., None]
    return jnp.where(content, (x - mean) / std, 0.0)


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
    positive = (targets.labels == 1).sum(axis=0) / targets.labels.shape[0]
    ends = [0]
    for level in outputs.anchors:
        ends.append(ends[-1] + level.shape[0])
    levels = {
        f"positives_level{i}": positive[ends[i] : ends[i + 1]].sum()
        for i in range(len(ends) - 1)
    }
    return {
        "positives": positive.sum(),
        **levels,
        "objects_missed": (objects & ~covered).sum() / count,
        "mean_best_iou": jnp.where(objects, targets.gt_iou, 0.0).sum() / count,
    }


def _anchors_a_cell(config: RPNConfig) -> int:
    """Check the levels against each other and count the anchors of a cell."""
    counts = {len(sizes) * len(config.ratios) for sizes in config.sizes}
    if len(config.sizes) != len(config.strides) or len(counts) != 1:
        table = level_table(
            stride=config.strides,
            sizes=config.sizes,
            anchors=[len(sizes) * len(config.ratios) for sizes in config.sizes],
        )
        raise ValueError(
            f"every level needs its sizes, and all levels as many anchors a cell, "
            f"because they share the head; got {len(config.strides)} strides and "
            f"{len(config.sizes)} groups of sizes\n{table}"
        )
    return counts.pop()


def level_strides(config: RPNConfig, grids, padded_size):
    """Strides of the levels, one number or (y, x) each."""
    if config.convention.anchors.stride == "nominal":
        return config.strides
    return [
        (padded_size[0] // height, padded_size[1] // width) for height, width in grids
    ]
