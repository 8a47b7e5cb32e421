"""Synthetic scenes drawn on the fly: no download, minutes on a laptop.

    python -m experiments.train shapes --workdir runs/shapes

A small ResNet with group norm from scratch, 256 px, one map of stride 16; 200 scenes
that training never sees to evaluate on.
"""

import dataclasses

from experiments.config import DataConfig, TrainConfig
from rpn_jax.conventions import TORCHVISION
from rpn_jax.data import Resize
from rpn_jax.rpn import RPNConfig
from rpn_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    steps=600,
    batch=8,
    lr=0.05,
    data=DataConfig(
        kind="shapes",
        train="20000",
        val="200",
        resize=Resize(max_size=256),
        max_boxes=32,
    ),
    model=RPNConfig(
        backbone="small_resnet",
        sizes=((16.0, 32.0, 64.0, 128.0),),
        convention=dataclasses.replace(
            TORCHVISION,
            proposals=dataclasses.replace(
                TORCHVISION.proposals, test_pre_nms=1000, test_post_nms=1000
            ),
        ),
    ),
    optimizer=OptimizerConfig(),
)
