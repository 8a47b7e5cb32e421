"""Feature extractors and the RPN head, as thin Linen modules.

They map normalised NHWC images to tuples of feature maps and know nothing of anchors or
boxes.
"""

from rpn_jax.models.backbones import BackboneOptions, backbone_names, make_backbone
from rpn_jax.models.box_heads import BoxPredictor, ConvFC, Res5, TwoFC
from rpn_jax.models.fpn import FPN
from rpn_jax.models.freezing import frozen_mask, stop_frozen
from rpn_jax.models.heads import RPNHead, flatten_levels
from rpn_jax.models.mobilenet import MobileNetV3
from rpn_jax.models.norm import FrozenBatchNorm
from rpn_jax.models.resnet import ResNet
from rpn_jax.models.small_resnet import SmallResNet
from rpn_jax.models.squeezenet import SqueezeNet
from rpn_jax.models.vgg import VGG16

__all__ = [
    "FPN",
    "VGG16",
    "BackboneOptions",
    "BoxPredictor",
    "ConvFC",
    "FrozenBatchNorm",
    "MobileNetV3",
    "RPNHead",
    "Res5",
    "ResNet",
    "SmallResNet",
    "SqueezeNet",
    "TwoFC",
    "backbone_names",
    "flatten_levels",
    "frozen_mask",
    "make_backbone",
    "stop_frozen",
]
