"""Telling from the names of a file's arrays which network they are of."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rpn_jax.conventions import TORCHVISION
from rpn_jax.faster_rcnn import FasterRCNNConfig
from rpn_jax.models import BackboneOptions
from rpn_jax.models.resnet import DEPTHS
from rpn_jax.pretrained import trunks
from rpn_jax.pretrained.coco import class_names
from rpn_jax.pretrained.convert import Dialect, Path, torch_dialect
from rpn_jax.pretrained.zoo import (
    CAFFE_IMAGE,
    detectron2_resnet,
    torchvision_mobilenet_fpn,
    torchvision_resnet_fpn,
)
from rpn_jax.rpn import RPNConfig

Arrays = Mapping[str, Any]


Config = RPNConfig | FasterRCNNConfig


class Recognised(NamedTuple):
    """What a file was found to hold.

    Attributes:
        model: what it is, in words.
        config: of the network that it belongs to.
        dialect: how it names and lays out its arrays.
        arrays: by their current names, where old files use others.
        trunk: whether it holds a trunk alone.
        left_out: patterns of names that belong to it and that nothing here uses.
        notes: what was assumed, in sentences.
    """

    model: str
    config: Config
    dialect: Dialect
    arrays: Arrays
    trunk: bool = False
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def recognise(arrays: Arrays) -> Recognised | None:
    """Recognise a file by its names and shapes; None if it is of no known family."""
    for family in (
        torchvision_detector,
        torchvision_classifier,
        detectron2_model,
        detectron2_trunk,
        keras_squeezenet,
    ):
        found = family(arrays)
        if found is not None:
            return found
    return None


def torchvision_detector(arrays: Arrays) -> Recognised | None:
    """A Faster R-CNN of torchvision: `backbone.body.*`, `rpn.head.*`."""
    # Files of 2019 call the convolutions by shorter names.
    arrays, first = _rename(
        arrays,
        (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
        (
            r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)",
            r"backbone.fpn.\1_blocks.\2.0.\3",
        ),
    )
    if "rpn.head.cls_logits.weight" not in arrays:
        return None
    notes, left_out = (), (r".*\.num_batches_tracked", r"roi_heads\..*")
    if "backbone.body.0.0.weight" in arrays:
        config, trunk = torchvision_mobilenet_fpn(), trunks.torchvision_mobilenet
        model = "fasterrcnn_mobilenet_v3_large_fpn"
        notes = (
            "images of 800 pixels are assumed; the variant for 320 has the same names: "
            "dataclasses.replace(config, "
            'rpn=model_config("fasterrcnn_mobilenet_v3_large_320_fpn"))',
        )
    else:
        depth, resnext = _resnet(arrays, "backbone.body.layer{}.", 1)
        if depth is None:
            return None
        v2 = "backbone.fpn.inner_blocks.0.1.weight" in arrays
        epsilon = 0.0 if first else 1e-5
        config = torchvision_resnet_fpn(
            depth, resnext=resnext, v2=v2, norm_epsilon=epsilon
        )
        trunk = trunks.torchvision_resnet
        model = f"fasterrcnn_{config.backbone}" + ("_v2" if v2 else "")
        if not v2:
            notes = (
                f"batch norms get epsilon {epsilon:g}, "
                + ("as published" if first else "as built today")
                + "; torchvision gives COCO_V1 weights 0 and others 1e-5: "
                "config.backbone_options.norm_epsilon",
            )
    dialect = torch_dialect(partial(torchvision_name, trunk))
    detector = with_second_stage(config, arrays, box_background=True)
    return Recognised(
        f"torchvision's {model}", detector, dialect, arrays, False, left_out, notes
    )


def torchvision_classifier(arrays: Arrays) -> Recognised | None:
    """A classification network of torchvision, whose trunk is of use."""
    left_out = (r".*\.num_batches_tracked", r"(fc|classifier)\..*")
    epsilon = 1e-5
    if "layer1.0.conv1.weight" in arrays:
        depth, resnext = _resnet(arrays, "layer{}.", 1)
        if depth is None:
            return None
        name = "resnext101_32x8d" if resnext else f"resnet{depth}"
        backbone, trunk, prefix = f"{name}_fpn", trunks.torchvision_resnet, ""
        strides = (4, 8, 16, 32)
    elif "features.0.0.weight" in arrays:
        name, backbone = "mobilenet_v3_large", "mobilenet_v3_large_fpn"
        trunk, prefix, strides = trunks.torchvision_mobilenet, "features.", (32, 32)
        epsilon = 1e-3
    elif "features.28.weight" in arrays:
        name = backbone = "vgg16"
        trunk, prefix, strides = trunks.torchvision_vgg, "", (16,)
    elif "features.3.squeeze.weight" in arrays:
        name, backbone = "squeezenet1_1", "squeezenet_torchvision"
        trunk, prefix, strides = trunks.torchvision_squeezenet, "", (16,)
    else:
        return None
    config = RPNConfig(
        backbone=backbone,
        backbone_options=BackboneOptions(norm_epsilon=epsilon),
        strides=strides,
        sizes=tuple((8.0 * stride,) for stride in strides),
    )
    dialect = torch_dialect(partial(_trunk_name, trunk, prefix))
    return Recognised(f"torchvision's {name}", config, dialect, arrays, True, left_out)


def detectron2_model(arrays: Arrays) -> Recognised | None:
    """An RPN or a Faster R-CNN of detectron2: `proposal_generator.rpn_head.*`."""
    if "proposal_generator.rpn_head.conv.weight" not in arrays:
        return None
    fpn = "backbone.fpn_lateral2.weight" in arrays
    prefix = "backbone.bottom_up." if fpn else "backbone."
    depth, resnext = _resnet(arrays, prefix + "res{}.", 2)
    if depth is None:
        return None
    dilated = f"{prefix}res5.0.conv1.weight" in arrays
    kind = "fpn" if fpn else "dc5" if dilated else "c4"
    detector = any(name.startswith("roi_heads.") for name in arrays)
    config = detectron2_resnet(depth, kind, resnext=resnext, detector=detector)
    architecture = "X_101_32x8d" if resnext else f"R_{depth}"
    start = "faster_rcnn" if detector else "rpn"
    dialect = torch_dialect(partial(_detectron2_name, prefix))
    left_out = (
        r"proposal_generator\.anchor_generator\..*",
        r"pixel_(mean|std)",
        r"roi_heads\..*",
    )
    model = f"detectron2's {start}_{architecture}_{kind.upper()}"
    config = with_second_stage(config, arrays, box_background=False)
    return Recognised(model, config, dialect, arrays, False, left_out)


def detectron2_trunk(arrays: Arrays) -> Recognised | None:
    """A converted ImageNet trunk: `stem.conv1.*`, or Caffe2's names."""
    caffe2 = "conv1_w" in arrays
    arrays = {trunks.from_caffe2(name): value for name, value in arrays.items()}
    if "stem.conv1.weight" not in arrays or "stem.conv1.norm.weight" not in arrays:
        return None
    depth, resnext = _resnet(arrays, "res{}.", 2)
    if depth is None:
        return None
    for name in [name for name in arrays if name.endswith("norm.weight")]:
        # Statistics that were folded into scale and bias are left out in old files.
        norm, like = name.removesuffix("weight"), np.asarray(arrays[name])
        arrays.setdefault(norm + "running_mean", np.zeros_like(like))
        arrays.setdefault(norm + "running_var", np.ones_like(like))
    config = detectron2_resnet(depth, "fpn", resnext=resnext)
    notes = ()
    if not caffe2 and not resnext:
        # What has been converted from Caffe2 keeps its names; this is torchvision's.
        options = dataclasses.replace(config.backbone_options, stride_in_1x1=False)
        image = dataclasses.replace(
            config.convention.image,
            color="rgb",
            mean=(123.675, 116.28, 103.53),
            std=(58.395, 57.12, 57.375),
        )
        convention = dataclasses.replace(config.convention, image=image)
        config = dataclasses.replace(
            config, backbone_options=options, convention=convention
        )
        notes = (
            "it is taken to be torchvision's: strides in the 3 x 3 convolutions, RGB "
            "less ImageNet's mean",
        )
    dialect = torch_dialect(partial(_detectron2_trunk_name, ""))
    # conv1_b is a bias of zeros in Caffe2's files.
    left_out = (
        r"fc1000[._].*",
        r"pred_.*",
        r"stem\.fc\..*",
        r"stem\.conv1\.bias",
        r".*\.num_batches_tracked",
    )
    name = "X-101-32x8d" if resnext else f"R-{depth}"
    model = f"detectron2's {name}"
    return Recognised(model, config, dialect, arrays, True, left_out, notes)


def keras_squeezenet(arrays: Arrays) -> Recognised | None:
    """SqueezeNet 1.1 in Keras' layout, which is ours: `fire2/squeeze1x1/kernel`."""
    if "fire2/squeeze1x1/kernel" not in arrays:
        return None

    def name(path: Path) -> str | None:
        return _below_trunk("/".join(path[1:]))

    convention = dataclasses.replace(TORCHVISION, image=CAFFE_IMAGE)
    config = RPNConfig(convention=convention)
    dialect = Dialect(name, torch=False)
    return Recognised("Keras' SqueezeNet 1.1", config, dialect, arrays, True)


def with_second_stage(
    config: RPNConfig, arrays: Arrays, *, box_background: bool
) -> Config:
    """Put the second stage around an RPN, where the file holds one.

    Args:
        config: of the RPN.
        arrays: by name.
        box_background: whether boxes are predicted for the background too.
    """
    scores = arrays.get("roi_heads.box_predictor.cls_score.weight")
    if scores is None:
        return config
    box_head = "two_fc"
    if "roi_heads.box_head.5.weight" in arrays:
        box_head = "conv_fc"
    elif "roi_heads.res5.0.conv1.weight" in arrays:
        box_head = "res5"
    return FasterRCNNConfig(
        rpn=config,
        classes=class_names(np.shape(scores)[0] - 1),
        box_head=box_head,
        box_features=1024 if box_head == "res5" else np.shape(scores)[1],
        roi_size=14 if box_head == "res5" else 7,
        # RoIs come from the trunk's levels; MobileNet's are alike, and all from one.
        roi_levels=4 if len(config.strides) == 5 else 1,
        box_background=box_background,
    )


def torchvision_name(trunk: Callable[[str], str], module: str) -> str | None:
    """Name a module of a detector as torchvision does; `trunk` names the trunk's."""
    second = re.fullmatch(r"(box_head|box_predictor)/(\w+?)(\d?)", module)
    if second:
        part, kind, number = second.groups()
        if part == "box_head" and kind in ("conv", "norm"):
            name = f"{int(number) - 1}.{int(kind == 'norm')}"
        else:
            name = "5" if kind + number == "fc" else kind + number
        return f"roi_heads.{part}.{name}"
    pyramid = re.fullmatch(r"backbone/(lateral|output)(\d)(_norm)?", module)
    if pyramid:
        kind, level, norm = pyramid.groups()
        blocks = {"lateral": "inner_blocks", "output": "layer_blocks"}[kind]
        return f"backbone.fpn.{blocks}.{level}.{1 if norm else 0}"
    head = re.fullmatch(r"rpn/rpn_conv(?:_(\d))?", module)
    if head:
        return f"rpn.head.conv.{head[1] or 0}.0"
    names = {
        "rpn/rpn_cls_score": "rpn.head.cls_logits",
        "rpn/rpn_bbox_pred": "rpn.head.bbox_pred",
    }
    return names.get(module) or _trunk_name(trunk, "backbone.body.", module)


def _detectron2_name(prefix: str, module: str) -> str | None:
    pyramid = re.fullmatch(r"backbone/(lateral|output)(\d)", module)
    if pyramid:
        return f"backbone.fpn_{pyramid[1]}{int(pyramid[2]) + 2}"
    names = {
        "rpn/rpn_conv": "conv",
        "rpn/rpn_cls_score": "objectness_logits",
        "rpn/rpn_bbox_pred": "anchor_deltas",
    }
    if module in names:
        return f"proposal_generator.rpn_head.{names[module]}"
    part, _, below = module.partition("/")
    if part == "box_predictor":
        return f"roi_heads.box_predictor.{below}"
    if below in ("fc6", "fc7"):
        return f"roi_heads.box_head.fc{int(below[2]) - 5}"
    if part == "box_head" and below.startswith("res5"):
        return f"roi_heads.{trunks.detectron2_resnet(below)}"
    return _detectron2_trunk_name(prefix, module)


def _detectron2_trunk_name(prefix: str, module: str) -> str | None:
    return _trunk_name(trunks.detectron2_resnet, prefix, module)


def _trunk_name(trunk: Callable[[str], str], prefix: str, module: str) -> str | None:
    below = _below_trunk(module)
    if below is None:
        return None
    try:
        return prefix + trunk(below)
    except (KeyError, ValueError):  # a module of another trunk
        return None


def _below_trunk(module: str) -> str | None:
    """Strip what leads to the trunk; None for what lies elsewhere.

    The second stage of a C4 model is the trunk's last.
    """
    if module.startswith("box_head/res5"):
        return module.removeprefix("box_head/")
    for start in ("backbone/bottom_up/", "backbone/"):
        if module.startswith(start):
            return module.removeprefix(start)
    return None


def _resnet(arrays: Arrays, stage: str, first: int) -> tuple[int | None, bool]:
    """Tell the depth of a ResNet, None if none fits, and whether it is ResNeXt 32x8d.

    Args:
        arrays: by name.
        stage: prefix of a stage's names, `{}` its number.
        first: the number of res2.
    """

    def blocks(number: int) -> int:
        prefix = stage.format(number)
        names = [
            name.removeprefix(prefix) for name in arrays if name.startswith(prefix)
        ]
        return len({name.split(".")[0] for name in names})

    # res5 may lie elsewhere, or nowhere.
    counts = tuple(blocks(first + n) for n in range(3))
    conv = f"{stage.format(first)}0.conv"
    bottleneck = f"{conv}3.weight" in arrays
    fitting = [
        depth
        for depth, wanted in DEPTHS.items()
        if wanted[:3] == counts and (depth >= 50) == bottleneck
    ]
    resnext = bottleneck and np.shape(arrays[f"{conv}2.weight"])[:2] == (256, 8)
    return (fitting[0] if fitting else None), resnext


def _rename(arrays: Arrays, *rules: tuple[str, str]) -> tuple[Arrays, bool]:
    """Apply the first rule that matches each name; tell whether any did."""
    renamed, any_old = {}, False
    for name, value in arrays.items():
        for old, new in rules:
            if re.fullmatch(old, name):
                name, any_old = re.sub(old, new, name), True
                break
        renamed[name] = value
    return renamed, any_old
