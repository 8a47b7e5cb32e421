"""Feature extractors and the RPN head, as thin Linen modules.

They map normalised NHWC images to tuples of feature maps and know nothing of anchors or
boxes.
"""

from rpn_jax.models.fpn import FPN
from rpn_jax.models.heads import RPNHead, flatten_levels
from rpn_jax.models.resnet import SmallResNet
from rpn_jax.models.squeezenet import SqueezeNet

__all__ = ["FPN", "RPNHead", "SmallResNet", "SqueezeNet", "flatten_levels"]
