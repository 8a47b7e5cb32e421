"""COCO, ResNet-50 with a feature pyramid: detectron2's `rpn_R_50_FPN_1x`.

    python -m experiments.train coco_r50_fpn --data.root COCO --weights R-50.pkl \
        --workdir runs/coco_r50_fpn

COCO holds annotations/instances_{train,val}2017.json, train2017 and val2017; R-50.pkl
is detectron2's ImageNet trunk. 90,000 steps of 16 images, shorter side 640 to 800 px;
stem and res2 stay as they are. detectron2 publishes AR@1000 58.0 for this model; that
is its figure, ours is unmeasured.
"""

import dataclasses
from pathlib import Path

from experiments.config import DataConfig, EvalConfig, TrainConfig
from rpn_jax.data import Resize
from rpn_jax.pretrained import model_config
from rpn_jax.training.optimizer import OptimizerConfig

MODEL = model_config("rpn_R_50_FPN")

CONFIG = TrainConfig(
    steps=90_000,
    batch=16,
    lr=0.02,
    data=DataConfig(
        kind="coco",
        train="annotations/instances_train2017.json",
        val="annotations/instances_val2017.json",
        images=Path("train2017"),
        val_images=Path("val2017"),
        resize=Resize(
            min_size=(640, 672, 704, 736, 768, 800), max_size=1333, rule="pil_bilinear"
        ),
        # Most photographs are 4:3 or 3:2, upright or not.
        buckets=((800, 1088), (1088, 800), (800, 1344), (1344, 800)),
    ),
    model=dataclasses.replace(
        MODEL,
        freeze=("backbone/bottom_up/stem", "backbone/bottom_up/res2"),
    ),
    optimizer=OptimizerConfig(
        clip_norm=0.0, warmup=1000, schedule="steps", milestones=(2 / 3, 8 / 9)
    ),
    eval=EvalConfig(every=10_000),
    save_every=2000,
)
