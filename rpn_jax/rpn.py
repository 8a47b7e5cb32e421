"""The region proposal network: `rpn(config)` gives four pure functions.

Shape legend: `B` images of padded size `H x W`, `L` pyramid levels, `A` anchors (of a
level or of all), `G` boxes at most an image, `K` proposals an image.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
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
from rpn_jax.models import (
    BackboneOptions,
    RPNHead,
    flatten_levels,
    make_backbone,
    stop_frozen,
)
from rpn_jax.objective import RPNOutputs, rpn_objective
from rpn_jax.ops.anchors import level_table, pyramid_anchors
from rpn_jax.proposals import Proposals, batch_proposals

Params = dict[str, Any]
Maps = list[jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RPNConfig(Checked):
    """What a region proposal network is made of.

    Attributes:
        backbone: one of `rpn_jax.models.backbone_names()`.
        backbone_options: what differs between weight files of one architecture.
        strides: strides of the backbone's feature maps to use, one a level.
        sizes: for each level its anchor sizes (square roots of areas), pixels.
        ratios: heights over widths of the anchors of every level.
        head_channels: channels of `rpn_conv`; None: as many as the feature map.
        head_convs: 3 x 3 convolutions in the head.
        dtype: what backbone and head compute in. Parameters, geometry, scores and
            losses are float32 in any case; "float64" is for tests: with
            `jax_enable_x64` and parameters of that type, scores and losses have it too.
        freeze: what is not trained: beginnings of parameters' paths, such as
            `backbone/res2`.
        convention: every choice on which the peers differ.
    """

    backbone: str = "squeezenet"
    backbone_options: BackboneOptions = BackboneOptions()
    strides: tuple[int, ...] = (16,)
    sizes: tuple[tuple[float, ...], ...] = ((128.0, 256.0, 512.0),)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    head_channels: int | None = None
    head_convs: int = 1
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    freeze: tuple[str, ...] = ()
    convention: Convention = TORCHVISION


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


def rpn(config: RPNConfig, *, backbone: nn.Module | None = None) -> RPN:
    """Make a region proposal network.

    Args:
        config: what it is made of.
        backbone: your own, in place of the one that `config` names: a Linen module with
            `strides`, those of `config`, that maps normalised images `[B, H, W, 3]` to
            as many feature maps, the same channels each.

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
    module = RPNModule(*rpn_modules(config, backbone))

    def init(key: jax.Array, *, image_size: tuple[int, int]) -> Params:
        images = jnp.zeros((1, *image_size, 3))
        return jax.jit(module.init)(key, images)

    def apply(params: Params, images: ArrayLike, image_sizes: ArrayLike) -> RPNOutputs:
        images = normalize_images(images, image_sizes, convention.image)
        scores, offsets = cast(tuple[Maps, Maps], module.apply(params, images))
        return flat_outputs(config, scores, offsets, images.shape[1:3])

    def loss(key: jax.Array, params: Params, batch: Batch):
        params = stop_frozen(params, config.freeze)
        outputs = apply(params, batch.images, batch.image_sizes)
        return rpn_objective(key, outputs, batch, convention)

    def propose(
        params: Params,
        images: ArrayLike,
        image_sizes: ArrayLike,
        *,
        train: bool = False,
        image_scales: ArrayLike | None = None,
    ) -> Proposals:
        outputs = apply(params, images, image_sizes)
        return propose_from(outputs, image_sizes, image_scales, convention, train=train)

    return RPN(init, apply, loss, propose, config)


def rpn_modules(config: RPNConfig, backbone: Any = None) -> tuple[Any, RPNHead]:
    """Build the backbone and the head of a network, and check them against each other.

    Raises:
        ValueError: the configuration is inconsistent; the message shows the levels.
    """
    per_cell = _anchors_a_cell(config)
    dtype = jnp.dtype(config.dtype)
    if backbone is None:
        backbone = make_backbone(
            config.backbone,
            strides=config.strides,
            options=config.backbone_options,
            dtype=dtype,
        )
        name = config.backbone
    else:
        name = type(backbone).__name__
    strides = tuple(backbone.strides)
    if strides != tuple(config.strides):
        table = level_table(backbone=strides, config=config.strides, sizes=config.sizes)
        raise ValueError(
            f"{name} has maps of strides {strides}, the configuration wants "
            f"{config.strides}\n{table}"
        )
    head = RPNHead(
        num_anchors=per_cell,
        channels=config.head_channels,
        logits_per_anchor=_logits_an_anchor(config),
        num_convs=config.head_convs,
        dtype=dtype,
    )
    return backbone, head


def flat_outputs(
    config: RPNConfig, scores: Maps, offsets: Maps, padded_size: tuple[int, ...]
) -> RPNOutputs:
    """Set an anchor beside each output of the head.

    Args:
        config: of the network.
        scores: for each level `[B, H, W, A or 2 A]`.
        offsets: for each level `[B, H, W, 4 A]`.
        padded_size: `(H, W)` of the images with their padding.
    """
    grids = [(x.shape[1], x.shape[2]) for x in scores]
    anchors = pyramid_anchors(
        grids,
        sizes=config.sizes,
        ratios=config.ratios,
        strides=level_strides(config, grids, padded_size),
        **options(config.convention.anchors, "stride"),
    )
    logits, deltas = flatten_levels(
        scores, offsets, logits_per_anchor=_logits_an_anchor(config)
    )
    return RPNOutputs(anchors, logits, deltas)


def propose_from(
    outputs: RPNOutputs,
    image_sizes: ArrayLike,
    image_scales: ArrayLike | None,
    convention: Convention,
    *,
    train: bool,
) -> Proposals:
    """Make the proposals of a batch; `image_scales` None stands for 1."""
    scales = image_scales
    if scales is None:
        scales = jnp.ones((outputs.logits[0].shape[0],))
    return batch_proposals(*outputs, image_sizes, scales, convention, train=train)


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


def _logits_an_anchor(config: RPNConfig) -> int:
    return 2 if config.convention.loss.objectness == "softmax" else 1


def _anchors_a_cell(config: RPNConfig) -> int:
    """Check the levels against each other and count the anchors of a cell."""
    groups = {"strides": config.strides, "ratios": config.ratios, "sizes": config.sizes}
    groups |= {f"sizes[{n}]": sizes for n, sizes in enumerate(_listed(config.sizes))}
    for name, values in groups.items():
        if not _listed(values):
            raise ValueError(
                f"{name} must be a tuple that is not empty (sizes of one level: "
                f"((32.0, 64.0),)), got {values!r}"
            )
        if name != "sizes" and not all(0 < value < math.inf for value in values):
            raise ValueError(f"{name} must be positive and finite, got {values!r}")
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


def _listed(values: Any) -> Sequence[Any]:
    return values if isinstance(values, tuple | list) else ()


def level_strides(config: RPNConfig, grids, padded_size):
    """Strides of the levels, one number or (y, x) each."""
    if not all(height and width for height, width in grids):
        raise ValueError(
            f"images padded to {tuple(padded_size)} are too small: the feature maps "
            f"have {', '.join(f'{h} x {w}' for h, w in grids)} cells"
        )
    if config.convention.anchors.stride == "nominal":
        return config.strides
    return [
        (padded_size[0] // height, padded_size[1] // width) for height, width in grids
    ]
