"""The network as first published, on a VOC folder.

    python -m experiments.train classic --data.root DIR --weights vgg16.pth \
        --workdir runs/classic

Ren et al., Faster R-CNN (2015): nine anchors at scales 8, 16, 32 on stride 16, two
logits an anchor with cross-entropy, smooth-L1, anchors that straddle the border left
out; the conventions of py-faster-rcnn, shorter side 600 px. Two images a step, there
one. The trunk is VGG16; --model.backbone names another. torchvision's VGG16 was trained
on RGB images of another range than these conventions have: it starts from useful
filters, not from its own input.

As published, the best anchors of an object learn the object that they overlap most,
which may be another one: objects much smaller than 128 px may get no anchor of their
own. `--model.convention.targets.low-quality overwrite` gives them theirs; with it, and
SqueezeNet as the trunk, eight images of bccd are overfitted to recall 1.0 at IoU 0.5
(without: 0.993), see `experiments/results`.
"""

import dataclasses

from experiments.config import TrainConfig
from experiments.configs.voc import CONFIG as VOC
from rpn_jax.conventions import PY_FASTER_RCNN
from rpn_jax.data import Resize
from rpn_jax.rpn import RPNConfig
from rpn_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    steps=5000,
    batch=2,
    lr=0.001,
    data=dataclasses.replace(
        VOC.data,
        resize=Resize.of(PY_FASTER_RCNN.image),
        # Most photographs are 4:3 or 3:2, upright or not.
        buckets=((608, 800), (800, 608), (608, 1008), (1008, 608)),
    ),
    model=RPNConfig(
        backbone="vgg16",
        strides=(16,),
        sizes=((128.0, 256.0, 512.0),),
        ratios=(0.5, 1.0, 2.0),
        head_channels=512,
        convention=PY_FASTER_RCNN,
    ),
    optimizer=OptimizerConfig(weight_decay=5e-4, schedule="steps", milestones=(0.75,)),
    eval=dataclasses.replace(VOC.eval, batch=2),
)
