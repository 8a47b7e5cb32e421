"""Backbones by name, from images to the maps that a head looks at."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from rpn_jax.models.fpn import FPN
from rpn_jax.models.mobilenet import MobileNetV3
from rpn_jax.models.resnet import DEPTHS, ResNet
from rpn_jax.models.small_resnet import SmallResNet
from rpn_jax.models.squeezenet import SqueezeNet
from rpn_jax.models.vgg import VGG16


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """What differs between the files of one architecture.

    Attributes:
        stride_in_1x1: ResNet: the stride of a bottleneck is in its first convolution
            (Caffe's and detectron2's R-50 and R-101), not in its second (torchvision).
        norm_epsilon: of frozen batch norms.
        fpn_norm: the pyramid's convolutions have frozen batch norms, not biases
            (torchvision's v2).
        fpn_top_conv: the pyramid's levels above the trunk's are convolutions, not every
            second cell.
        remat: recompute blocks in the backward pass: less memory, a third more time;
            SqueezeNet and the small ResNet have none to recompute.
    """

    stride_in_1x1: bool = False
    norm_epsilon: float = 1e-5
    fpn_norm: bool = False
    fpn_top_conv: bool = False
    remat: bool = False


def backbone_names() -> list[str]:
    """List the names that `make_backbone` knows."""
    return list(_MAKERS)


def make_backbone(
    name: str, *, strides: tuple[int, ...], options: BackboneOptions, dtype: Any
) -> Any:
    """Build a backbone.

    Args:
        name: one of `backbone_names()`. `_c4` ends with res4, `_dc5` with a dilated
            res5, both at stride 16; `_fpn` is a feature pyramid.
        strides: of the maps wanted. A pyramid gets as many levels on top as it needs
            for them, and a small ResNet the stages that they name.
        options: what differs between weight files.
        dtype: compute type.

    Returns:
        A Linen module with `strides`, those of the maps that it returns.

    Raises:
        ValueError: there is no backbone of that name.
    """
    if name not in _MAKERS:
        raise ValueError(f"backbone must be one of {', '.join(_MAKERS)}, got {name!r}")
    return _MAKERS[name](strides, options, dtype)


def _resnet(depth: int, kind: str, strides, options, dtype, **resnext) -> Any:
    ends = {"c4": ("res4",), "dc5": ("res5",), "fpn": ("res2", "res3", "res4", "res5")}
    trunk = ResNet(
        depth=depth,
        stages=ends[kind],
        dilated=kind == "dc5",
        stride_in_1x1=options.stride_in_1x1,
        epsilon=options.norm_epsilon,
        remat=options.remat,
        dtype=dtype,
        **resnext,
    )
    return _pyramid(trunk, strides, options, dtype) if kind == "fpn" else trunk


def _mobilenet(strides, options, dtype) -> Any:
    trunk = MobileNetV3(options.norm_epsilon, remat=options.remat, dtype=dtype)
    return _pyramid(trunk, strides, options, dtype)


def _pyramid(trunk: Any, strides, options: BackboneOptions, dtype, **more) -> FPN:
    return FPN(
        **more,
        bottom_up=trunk,
        top=max(len(strides) - len(trunk.strides), 0),
        top_conv=options.fpn_top_conv,
        norm=options.fpn_norm,
        dtype=dtype,
    )


def _squeezenet_fpn(strides, options, dtype) -> Any:
    trunk = SqueezeNet(strides=tuple(s for s in strides if s <= 16), dtype=dtype)
    if not trunk.strides:
        raise ValueError(
            f"squeezenet_fpn has strides 4, 8, 16 and above, got {strides}"
        )
    return _pyramid(trunk, strides, options, dtype, channels=128, smooth=False)


def _small_resnet(strides, options, dtype) -> Any:
    return SmallResNet(strides=strides, dtype=dtype)


def _small_resnet_fpn(strides, options, dtype) -> Any:
    trunk = SmallResNet(
        widths=(32, 64, 64, 96), blocks=(1, 1, 1, 1), strides=strides, dtype=dtype
    )
    return _pyramid(trunk, strides, options, dtype, channels=64, smooth=False)


_MAKERS: dict[str, Callable[[tuple[int, ...], BackboneOptions, Any], Any]] = {
    "squeezenet": lambda s, o, dtype: SqueezeNet(padding="same", dtype=dtype),
    "squeezenet_torchvision": lambda s, o, dtype: SqueezeNet(
        padding="torchvision", dtype=dtype
    ),
    "squeezenet_fpn": _squeezenet_fpn,
    "small_resnet": _small_resnet,
    "small_resnet_fpn": _small_resnet_fpn,
    "vgg16": lambda s, o, dtype: VGG16(remat=o.remat, dtype=dtype),
    "mobilenet_v3_large_fpn": _mobilenet,
    **{
        f"resnet{depth}_{kind}": partial(_resnet, depth, kind)
        for depth in DEPTHS
        for kind in ("c4", "dc5", "fpn")
        # The blocks of the shallow ones are not made for dilation.
        if kind != "dc5" or depth >= 50
    },
    **{
        f"resnext101_32x8d_{kind}": partial(
            _resnet, 101, kind, groups=32, group_width=8
        )
        for kind in ("c4", "dc5", "fpn")
    },
}
