"""COCO, Faster R-CNN on ResNet-50 with a feature pyramid.

    python -m experiments.train coco_faster_rcnn_r50_fpn --data.root COCO \
        --weights R-50.pkl --workdir runs/coco_faster_rcnn

Data and recipe are those of `coco_r50_fpn`; the model is detectron2's
`faster_rcnn_R_50_FPN_1x`, for which it publishes AP 37.9. That is its figure, ours is
unmeasured.
"""

import dataclasses

from experiments.configs.coco_r50_fpn import CONFIG as RPN
from rpn_jax.faster_rcnn import FasterRCNNConfig
from rpn_jax.pretrained import model_config
from rpn_jax.pretrained.coco import COCO

CONFIG = dataclasses.replace(
    RPN,
    model=FasterRCNNConfig(
        rpn=dataclasses.replace(
            model_config("faster_rcnn_R_50_FPN"), freeze=RPN.rpn.freeze
        ),
        classes=COCO,
        roi_levels=4,
    ),
)
