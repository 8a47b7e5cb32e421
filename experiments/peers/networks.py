"""A detector's random weights, under torchvision's names, for both sides of a case."""

import jax
import numpy as np

from rpn_jax.faster_rcnn import FasterRCNNConfig, faster_rcnn
from rpn_jax.pretrained import model_config
from rpn_jax.pretrained.coco import class_names
from rpn_jax.pretrained.export import torchvision_state_dict

# Factors of initial kernels, after which scores and boxes spread about as trained ones
# do: proposals by the thousand, detections by the dozen.
GAINS = {"rpn.head.cls_logits.weight": 3.0, "rpn.head.bbox_pred.weight": 0.2}


def random_detector() -> dict[str, np.ndarray]:
    """Make the state dict of a `fasterrcnn_resnet50_fpn`."""
    config = FasterRCNNConfig(
        rpn=model_config("fasterrcnn_resnet50_fpn"),
        classes=class_names(90),
        roi_levels=4,
        box_background=True,
    )
    params = faster_rcnn(config).init(jax.random.key(0), image_size=(64, 64))
    arrays = torchvision_state_dict(config, params)
    return {name: np.float32(GAINS.get(name, 1)) * x for name, x in arrays.items()}
