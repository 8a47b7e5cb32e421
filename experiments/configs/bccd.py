"""Blood cells (github.com/Shenggan/BCCD_Dataset), SqueezeNet with ImageNet weights.

    python -m experiments.train bccd --weights squeezenet.npz --workdir runs/bccd

The folder is looked for as `BCCD` or `bccd/BCCD` under --data.root (default
$RPN_JAX_DATA, else `data`), or is --data.root itself. 205 images to train on, 72 (split
test) to evaluate on: 600 steps of 8 images, 384 px.

The recipe was run in torchvision too, where it gave AR 0.347 / 0.623 / 0.643 at 10 /
100 / 300 proposals and recall 0.992 at IoU 0.5 (means of three seeds). Measured here:
0.344 / 0.622 / 0.644 and 0.988 (likewise). With the anchors that `python -m
experiments.coverage bccd --design` proposes (`--model.sizes.0 26.9 57.5 69.6 123
--model.ratios 0.72 0.999 1.35`), seed 0: 0.356 / 0.626 / 0.650 and 0.991; with
`--model.convention.loss.box-weight 5` too: 0.372 / 0.637 / 0.665 and 0.993 (means of
two seeds).
"""

import dataclasses

from experiments.config import DataConfig, TrainConfig
from rpn_jax.conventions import TORCHVISION
from rpn_jax.pretrained.zoo import CAFFE_IMAGE
from rpn_jax.rpn import RPNConfig

# Caffe's input, which the published SqueezeNet weights were trained on, and how many
# proposals each image gets.
CAFFE = dataclasses.replace(
    TORCHVISION,
    image=CAFFE_IMAGE,
    proposals=dataclasses.replace(
        TORCHVISION.proposals,
        train_pre_nms=2000,
        train_post_nms=1000,
        test_pre_nms=1000,
        test_post_nms=300,
    ),
)

CONFIG = TrainConfig(
    steps=600,
    batch=8,
    lr=0.01,
    data=DataConfig(
        kind="voc", folders=("bccd/BCCD", "BCCD"), train="train", val="test"
    ),
    model=RPNConfig(
        backbone="squeezenet",
        sizes=((32.0, 64.0, 128.0, 256.0),),
        convention=CAFFE,
    ),
)
