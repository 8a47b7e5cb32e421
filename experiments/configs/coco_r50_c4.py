"""COCO, ResNet-50 up to res4: detectron2's `rpn_R_50_C4_1x`.

    python -m experiments.train coco_r50_c4 --data.root COCO --weights R-50.pkl \
        --workdir runs/coco_r50_c4

Data and recipe are those of `coco_r50_fpn`; one map at stride 16, fifteen anchors a
cell. detectron2 publishes AR@1000 51.6 for this model; that is its figure, ours is
unmeasured.
"""

import dataclasses

from experiments.configs.coco_r50_fpn import CONFIG as FPN
from rpn_jax.pretrained import model_config

CONFIG = dataclasses.replace(
    FPN,
    model=dataclasses.replace(
        model_config("rpn_R_50_C4"), freeze=("backbone/stem", "backbone/res2")
    ),
)
