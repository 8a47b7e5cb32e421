"""Faster R-CNN: proposals, RoI pooling and a second stage, trained together.

Shape legend: `B` images of padded size `H x W`, `K` proposals and `S` sampled RoIs an
image, `C` classes, `D` detections an image.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from rpn_jax.batch import Batch
from rpn_jax.conventions import Checked, Convention, RoIConvention
from rpn_jax.detections import Detections, batch_detections
from rpn_jax.models import (
    BoxPredictor,
    ConvFC,
    Res5,
    ResNet,
    RPNHead,
    TwoFC,
    stop_frozen,
)
from rpn_jax.objective import RPNOutputs, detection_losses, rpn_objective
from rpn_jax.ops._batching import map_images
from rpn_jax.ops.roi_align import multilevel_roi_align
from rpn_jax.ops.roi_levels import assign_levels
from rpn_jax.ops.roi_pool import roi_pool
from rpn_jax.proposals import Proposals
from rpn_jax.roi_targets import batch_roi_targets
from rpn_jax.rpn import (
    RPN,
    Params,
    RPNConfig,
    flat_outputs,
    normalize_images,
    propose_from,
    rpn,
    rpn_modules,
)

Maps = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FasterRCNNConfig(Checked):
    """What a detector is made of.

    Attributes:
        rpn: the region proposal network within, with the convention of the whole.
        classes: names of the classes, the background not among them.
        box_head: the second stage: "two_fc", two fully connected layers; "conv_fc",
            four convolutions and one such layer (torchvision's v2); "res5", the last
            stage of the ResNet (C4 models).
        box_features: of the fully connected layers.
        roi_size: bins of a pooled RoI, along each side.
        roi_levels: number of maps, from the finest, that RoIs are pooled from.
        box_background: whether the second stage predicts a box for the background too.
            Nothing uses it, and torchvision's weights have it.
        roi_weight: factor of the second stage's losses.
    """

    rpn: RPNConfig = RPNConfig()
    classes: tuple[str, ...] = ("object",)
    box_head: Literal["two_fc", "conv_fc", "res5"] = "two_fc"
    box_features: int = 1024
    roi_size: int = 7
    roi_levels: int = 1
    box_background: bool = False
    roi_weight: float = 1.0

    @property
    def convention(self) -> Convention:
        """Every choice on which the peers differ."""
        return self.rpn.convention

    @property
    def freeze(self) -> tuple[str, ...]:
        """What is not trained: that of `rpn`, whose paths may name the head too."""
        return self.rpn.freeze


class FasterRCNNOutputs(NamedTuple):
    """The network's outputs on a batch.

    Attributes:
        rpn: of the first stage.
        proposals: fields `[B, K, ...]`.
        logits: `[B, K, C + 1]` float32, of the classes and the background.
        deltas: `[B, K, C or C + 1, 4]` float32.
    """

    rpn: RPNOutputs
    proposals: Proposals
    logits: Float[Array, "B K _"]
    deltas: Float[Array, "B K _ 4"]


class FasterRCNN(NamedTuple):
    """A detector as pure functions.

    Attributes:
        init: `init(key, image_size=(H, W)) -> params`, the whole Linen variables dict.
        apply: `apply(params, images, image_sizes, *, image_scales=None) ->
            FasterRCNNOutputs`, as in inference.
        loss: `loss(key, params, batch) -> (loss, metrics)`, scalars.
        propose: as of `RPN`: what the first stage proposes.
        detect: `detect(params, images, image_sizes, *, image_scales=None) ->
            Detections`, each field with a leading B.
        find: likewise `-> (Proposals, Detections)`, of both stages in one run.
        config: the `FasterRCNNConfig` that it was made from.
    """

    init: Callable[..., Params]
    apply: Callable[..., FasterRCNNOutputs]
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    propose: Callable[..., Proposals]
    detect: Callable[..., Detections]
    find: Callable[..., tuple[Proposals, Detections]]
    config: FasterRCNNConfig


class FasterRCNNModule(nn.Module):
    """Backbone, RPN head, box head and predictor; parts are called one by one."""

    backbone: nn.Module
    rpn: RPNHead
    box_head: nn.Module
    box_predictor: BoxPredictor

    def first(self, images: jax.Array):
        """Map normalised images to (maps, scores, deltas), lists over the levels."""
        maps = self.backbone(images)
        outputs = [self.rpn(features) for features in maps]
        return (
            maps,
            [scores for scores, _ in outputs],
            [deltas for _, deltas in outputs],
        )

    def second(self, pooled: jax.Array):
        """Map pooled RoIs `[R, P, P, C]` to (logits, deltas)."""
        return self.box_predictor(self.box_head(pooled))

    def both(self, images: jax.Array, roi_size: int):
        """Call everything once, to initialise it."""
        maps, _, _ = self.first(images)
        pooled = jnp.zeros((1, roi_size, roi_size, maps[0].shape[-1]))
        return self.second(pooled)


def faster_rcnn(
    config: FasterRCNNConfig, *, backbone: nn.Module | None = None
) -> FasterRCNN:
    """Make a detector.

    Args:
        config: what it is made of.
        backbone: your own, as of `rpn`.

    Returns:
        A `FasterRCNN` of pure functions, to be jitted by the caller. Images and sizes
        are as of `rpn`; a batch to train on needs `labels`.

    Raises:
        ValueError: the configuration is inconsistent.

    Reference:
        Ren et al., Faster R-CNN, NeurIPS 2015.

    Example:
        >>> config = FasterRCNNConfig(
        ...     rpn=RPNConfig(backbone="small_resnet", sizes=((32.0, 64.0),)),
        ...     classes=("cat", "dog"), box_features=16)
        >>> model = faster_rcnn(config)
        >>> params = model.init(jax.random.key(0), image_size=(64, 64))
        >>> images, sizes = jnp.zeros((1, 64, 64, 3)), jnp.array([[64, 64]])
        >>> jax.jit(model.detect)(params, images, sizes).boxes.shape
        (1, 100, 4)
    """
    convention, rules = config.convention, config.convention.roi
    module = _module(config, backbone)

    def init(key: jax.Array, *, image_size: tuple[int, int]) -> Params:
        def both(key):
            images = jnp.zeros((1, *image_size, 3))
            return module.init(key, images, config.roi_size, method="both")

        return jax.jit(both)(key)

    def first(params, images, image_sizes) -> tuple[Maps, RPNOutputs]:
        images = normalize_images(images, image_sizes, convention.image)
        maps, scores, offsets = cast(Any, module.apply(params, images, method="first"))
        outputs = flat_outputs(config.rpn, scores, offsets, images.shape[1:3])
        return tuple(maps[: config.roi_levels]), outputs

    def second(params, maps: Maps, boxes, valid):
        """Pool RoIs [B, R, 4] and look at them: logits and deltas, [B, R, ...]."""

        def pool(_, maps, boxes, valid):
            strides = config.rpn.strides[: config.roi_levels]
            options = {"size": config.roi_size, "convention": rules}
            return pool_rois(maps, boxes, valid, strides=strides, **options)

        pooled = map_images(pool, None, maps, boxes, valid)
        rows = pooled.reshape(-1, *pooled.shape[2:])
        outputs = cast(Any, module.apply(params, rows, method="second"))
        return tuple(x.reshape(*boxes.shape[:2], *x.shape[1:]) for x in outputs)

    def apply(
        params: Params,
        images: ArrayLike,
        image_sizes: ArrayLike,
        *,
        image_scales: ArrayLike | None = None,
    ) -> FasterRCNNOutputs:
        maps, outputs = first(params, images, image_sizes)
        proposals = propose_from(
            outputs, image_sizes, image_scales, convention, train=False
        )
        logits, deltas = second(params, maps, proposals.boxes, proposals.valid)
        return FasterRCNNOutputs(outputs, proposals, logits, deltas)

    def loss(key: jax.Array, params: Params, batch: Batch):
        params = stop_frozen(params, config.freeze)
        for_rpn, for_rois = jax.random.split(key)
        maps, outputs = first(params, batch.images, batch.image_sizes)
        total, metrics = rpn_objective(for_rpn, outputs, batch, convention)
        proposals = propose_from(
            jax.lax.stop_gradient(outputs),
            batch.image_sizes,
            jnp.asarray(batch.scales).mean(axis=1),
            convention,
            train=True,
        )
        targets = batch_roi_targets(
            for_rois, proposals.boxes, proposals.valid, batch, convention
        )
        logits, deltas = second(params, maps, targets.boxes, targets.valid)
        class_loss, box_loss = detection_losses(logits, deltas, targets, rules)
        total += config.roi_weight * (class_loss + box_loss)
        count = jnp.maximum(targets.valid.sum(), 1)
        names = {"loss_objectness": "loss_rpn_objectness", "loss_box": "loss_rpn_box"}
        return total, {
            **{names.get(key, key): value for key, value in metrics.items()},
            "loss": total,
            "loss_class": class_loss,
            "loss_box": box_loss,
            "rois_on_objects": (targets.labels >= 0).sum() / count,
        }

    def propose(
        params: Params,
        images: ArrayLike,
        image_sizes: ArrayLike,
        *,
        train: bool = False,
        image_scales: ArrayLike | None = None,
    ) -> Proposals:
        _, outputs = first(params, images, image_sizes)
        return propose_from(outputs, image_sizes, image_scales, convention, train=train)

    def find(
        params: Params,
        images: ArrayLike,
        image_sizes: ArrayLike,
        *,
        image_scales: ArrayLike | None = None,
    ) -> tuple[Proposals, Detections]:
        outputs = apply(params, images, image_sizes, image_scales=image_scales)
        proposals = outputs.proposals
        detections = batch_detections(
            proposals.boxes,
            proposals.valid,
            outputs.logits,
            outputs.deltas,
            image_sizes,
            rules,
        )
        return proposals, detections

    def detect(params: Params, images: ArrayLike, image_sizes: ArrayLike, **scales):
        return find(params, images, image_sizes, **scales)[1]

    return FasterRCNN(init, apply, loss, propose, detect, find, config)


def make_network(config: RPNConfig | FasterRCNNConfig) -> RPN | FasterRCNN:
    """Make the network that a configuration is of."""
    return rpn(config) if isinstance(config, RPNConfig) else faster_rcnn(config)


def first_stage(model: RPN | FasterRCNN) -> Callable[..., RPNOutputs]:
    """Return `(params, images, image_sizes) -> RPNOutputs` of a network.

    Of a detector, whose second stage is not computed once this is jitted.
    """
    if isinstance(model, FasterRCNN):
        return lambda *images: model.apply(*images).rpn
    return model.apply


def pool_rois(
    maps: Maps,
    boxes: jax.Array,
    valid: jax.Array,
    *,
    strides: tuple[int, ...],
    size: int,
    convention: RoIConvention,
) -> Float[Array, "R P P F"]:
    """Pool the RoIs of one image, each from the level that suits its size.

    Args:
        maps: `[h, w, F]`, fine to coarse.
        boxes: `[R, 4]` xyxy, pixels of the padded image.
        valid: `[R]` bool.
        strides: pixels per cell of each map, powers of two.
        size: bins along each side.
        convention: how.
    """
    scales = tuple(1 / stride for stride in strides)
    if convention.pooling == "pool":
        (only,), (scale,) = maps, scales
        if convention.inclusive:
            boxes = boxes - jnp.array([0, 0, 1, 1], boxes.dtype)
        return roi_pool(only, boxes, output_size=size, spatial_scale=scale, valid=valid)
    finest, coarsest = (int(math.log2(stride)) for stride in (strides[0], strides[-1]))
    levels = assign_levels(
        boxes, min_level=finest, max_level=coarsest, rule=convention.level_rule
    )
    return multilevel_roi_align(
        maps,
        boxes,
        levels,
        output_size=size,
        spatial_scales=scales,
        sampling_ratio=convention.sampling_ratio,
        aligned=convention.aligned,
        valid=valid,
    )


def _module(config: FasterRCNNConfig, backbone: Any) -> FasterRCNNModule:
    """Build the parts of a detector and check them against each other."""
    if isinstance(config.classes, str) or not config.classes:
        raise ValueError(f"classes must be a tuple of names, got {config.classes!r}")
    backbone, head = rpn_modules(config.rpn, backbone)
    dtype, init = jnp.dtype(config.rpn.dtype), config.convention.roi.box_init
    if not 1 <= config.roi_levels <= len(config.rpn.strides):
        raise ValueError(
            f"roi_levels must be 1 to {len(config.rpn.strides)}, the number of "
            f"feature maps, got {config.roi_levels}"
        )
    strides = config.rpn.strides[: config.roi_levels]
    steps = {b / a for a, b in itertools.pairwise(strides)}
    if len(strides) > 1 and (any(s & (s - 1) for s in strides) or steps - {1, 2}):
        raise ValueError(
            "a RoI goes to the level of its size: strides must be powers of two, each "
            f"once or twice the one before, got {strides}"
        )
    if config.convention.roi.pooling == "pool" and config.roi_levels > 1:
        raise ValueError("roi_levels must be 1 where pooling is 'pool'")
    if config.box_head == "res5":
        if not isinstance(backbone, ResNet) or backbone.stages != ("res4",):
            raise ValueError(
                f"box_head 'res5' wants a backbone that ends with res4, such as "
                f"resnet50_c4, got {config.rpn.backbone}"
            )
        box_head = Res5(backbone.clone(name=None), dtype=dtype)
    elif config.box_head == "conv_fc":
        box_head = ConvFC(features=config.box_features, box_init=init, dtype=dtype)
    else:
        box_head = TwoFC(config.box_features, box_init=init, dtype=dtype)
    classes = len(config.classes)
    predictor = BoxPredictor(
        scores=classes + 1,
        boxes=classes + config.box_background,
        box_init=init,
        dtype=dtype,
    )
    return FasterRCNNModule(backbone, head, box_head, predictor)
