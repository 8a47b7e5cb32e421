"""The networks of published weight files, as configurations."""

import dataclasses

from rpn_jax.conventions import DETECTRON2, TORCHVISION, Convention
from rpn_jax.models import BackboneOptions
from rpn_jax.rpn import RPNConfig

PYRAMID = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
ONE_LEVEL = ((32.0, 64.0, 128.0, 256.0, 512.0),)


CAFFE_IMAGE = dataclasses.replace(
    TORCHVISION.image,
    color="bgr",
    range=255.0,
    mean=(103.939, 116.779, 123.68),
    std=(1.0, 1.0, 1.0),
)
"""Input of networks converted from Caffe, Keras' SqueezeNet among them."""


def torchvision_resnet_fpn(
    depth: int, *, resnext: bool = False, v2: bool = False, norm_epsilon: float = 1e-5
) -> RPNConfig:
    """Configure the RPN of torchvision's Faster R-CNN on a ResNet with a pyramid.

    Args:
        depth: of the ResNet.
        resnext: whether it is ResNeXt 32x8d.
        v2: batch norm in the pyramid, two convolutions in the head.
        norm_epsilon: of the frozen batch norms.
    """
    return RPNConfig(
        backbone="resnext101_32x8d_fpn" if resnext else f"resnet{depth}_fpn",
        backbone_options=BackboneOptions(norm_epsilon=norm_epsilon, fpn_norm=v2),
        strides=(4, 8, 16, 32, 64),
        sizes=PYRAMID,
        head_convs=2 if v2 else 1,
        convention=TORCHVISION,
    )


def torchvision_mobilenet_fpn(*, small_images: bool = False) -> RPNConfig:
    """Configure the RPN of torchvision's Faster R-CNN on MobileNetV3-large.

    Args:
        small_images: the variant for images of 320 pixels; its weight files look alike.
    """
    image = TORCHVISION.image
    proposals = dataclasses.replace(TORCHVISION.proposals, score_threshold=0.05)
    if small_images:
        image = dataclasses.replace(image, min_size=320, max_size=640)
        proposals = dataclasses.replace(proposals, test_pre_nms=150, test_post_nms=150)
    return RPNConfig(
        backbone="mobilenet_v3_large_fpn",
        strides=(32, 32, 64),
        sizes=ONE_LEVEL * 3,
        convention=dataclasses.replace(TORCHVISION, image=image, proposals=proposals),
    )


def detectron2_resnet(
    depth: int, kind: str, *, resnext: bool = False, detector: bool = False
) -> RPNConfig:
    """Configure detectron2's RPN, alone or within Faster R-CNN.

    Args:
        depth: of the ResNet.
        kind: "c4", "dc5" or "fpn".
        resnext: whether it is ResNeXt 32x8d.
        detector: how many proposals are kept: as its Faster R-CNN does, or as its
            RPN-only models do.
    """
    return RPNConfig(
        backbone=("resnext101_32x8d_" if resnext else f"resnet{depth}_") + kind,
        # The original ResNets are Caffe's, with the stride in the 1 x 1 convolution.
        backbone_options=BackboneOptions(stride_in_1x1=not resnext),
        strides=(4, 8, 16, 32, 64) if kind == "fpn" else (16,),
        sizes=PYRAMID if kind == "fpn" else ONE_LEVEL,
        convention=_detectron2_convention(kind, resnext, detector),
    )


def _detectron2_convention(kind: str, resnext: bool, detector: bool) -> Convention:
    image, proposals = DETECTRON2.image, DETECTRON2.proposals
    if resnext:
        image = dataclasses.replace(image, std=(57.375, 57.12, 58.395))
    if kind != "fpn":
        image = dataclasses.replace(image, pad_to=1)
        proposals = dataclasses.replace(
            proposals, train_pre_nms=12000, train_post_nms=2000, test_pre_nms=6000
        )
    if not detector:
        most = {"test_post_nms": 2000}
        if kind != "fpn":
            most["test_pre_nms"] = 12000
        proposals = dataclasses.replace(proposals, **most)
    return dataclasses.replace(DETECTRON2, image=image, proposals=proposals)


MODELS: dict[str, RPNConfig] = {
    # torchvision runs its first weights with the epsilon that they were trained with.
    "fasterrcnn_resnet50_fpn": torchvision_resnet_fpn(50, norm_epsilon=0.0),
    "fasterrcnn_resnet50_fpn_v2": torchvision_resnet_fpn(50, v2=True),
    "fasterrcnn_mobilenet_v3_large_fpn": torchvision_mobilenet_fpn(),
    "fasterrcnn_mobilenet_v3_large_320_fpn": torchvision_mobilenet_fpn(
        small_images=True
    ),
    "rpn_R_50_C4": detectron2_resnet(50, "c4"),
    "rpn_R_50_FPN": detectron2_resnet(50, "fpn"),
    **{
        f"faster_rcnn_R_{depth}_{kind.upper()}": detectron2_resnet(
            depth, kind, detector=True
        )
        for depth in (50, 101)
        for kind in ("c4", "dc5", "fpn")
    },
    "faster_rcnn_X_101_32x8d_FPN": detectron2_resnet(
        101, "fpn", resnext=True, detector=True
    ),
}
"""Configurations of the RPNs of torchvision's and detectron2's published models."""


def model_config(name: str) -> RPNConfig:
    """Return the configuration of a published model's RPN.

    Args:
        name: as torchvision names its builder or detectron2 its configuration, without
            the schedule.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> model_config("rpn_R_50_FPN").backbone
        'resnet50_fpn'
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name]
