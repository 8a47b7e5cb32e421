"""Blood cells, Faster R-CNN on SqueezeNet with ImageNet weights.

    python -m experiments.train bccd_faster_rcnn --weights squeezenet.npz \
        --workdir runs/bccd_faster_rcnn

Data, trunk and recipe are those of `bccd`; three classes, RoIAlign of 7 x 7 bins, two
fully connected layers of 256, both stages trained together.

Its peer is `experiments/peers/train_faster_rcnn.py`, where no object is an ignore
region; `--model.rpn.convention.targets.ignore-threshold inf` gives the peer's rule.
Measured here with that, means of three seeds: AP 0.506 (AP50 0.821, AP75 0.570), the
proposals' AR 0.385 / 0.657 / 0.674 at 10 / 100 / 300; the peer: 0.506 (0.830, 0.563)
and 0.387 / 0.654 / 0.669 (see `experiments/results/detectors.md`).
"""

import dataclasses

from experiments.configs.bccd import CONFIG as BCCD
from rpn_jax.faster_rcnn import FasterRCNNConfig

CONFIG = dataclasses.replace(
    BCCD,
    model=FasterRCNNConfig(
        rpn=BCCD.rpn,
        classes=("RBC", "WBC", "Platelets"),
        box_features=256,
        box_background=True,
    ),
)
