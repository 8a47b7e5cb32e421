"""Synthetic scenes drawn on the fly: no download, minutes on a laptop.

    python -m experiments.train shapes --workdir runs/shapes

A small ResNet with group norm and a feature pyramid (0.35 million parameters) from
random weights: 1500 steps of 8 scenes, 256 px, objects of 12 to 200 px. Measured on 200
held-out scenes: AR@100 0.460 (untrained 0.015), recall at IoU 0.5 with 300 proposals
0.961.
"""

import dataclasses

from experiments.config import DataConfig, TrainConfig
from rpn_jax.conventions import TORCHVISION
from rpn_jax.data import Resize
from rpn_jax.rpn import RPNConfig
from rpn_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    steps=1500,
    batch=8,
    lr=0.003,
    data=DataConfig(
        kind="shapes",
        train="20000",
        val="200",
        resize=Resize(max_size=256),
        max_boxes=32,
    ),
    model=RPNConfig(
        backbone="small_resnet_fpn",
        strides=(8, 16, 32),
        sizes=((16.0, 28.0), (44.0, 72.0), (112.0, 176.0)),
        convention=dataclasses.replace(
            TORCHVISION,
            # The published balance of the two losses, lambda = 10: with torchvision's
            # normaliser the few positives hardly count otherwise.
            loss=dataclasses.replace(TORCHVISION.loss, box_weight=10.0),
            targets=dataclasses.replace(TORCHVISION.targets, low_quality_above=0.0),
        ),
    ),
    optimizer=OptimizerConfig(name="adamw"),
)
