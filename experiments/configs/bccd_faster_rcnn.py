"""Blood cells, Faster R-CNN on SqueezeNet with ImageNet weights.

    python -m experiments.train bccd_faster_rcnn --weights squeezenet.npz \
        --workdir runs/bccd_faster_rcnn

Data, trunk and recipe are those of `bccd`; three classes, RoIAlign of 7 x 7 bins, two
fully connected layers of 256, both stages trained together.

Its peer is `experiments/peers/train_faster_rcnn.py`, where no object is an ignore
region; `--model.rpn.convention.targets.ignore-threshold inf` gives the peer's rule.
Measured here with that, one seed: AP 0.501 (AP50 0.818, AP75 0.559), the proposals' AR
0.384 / 0.659 / 0.672 at 10 / 100 / 300; the peer: 0.510 (0.832, 0.541) and 0.381 /
0.656 / 0.670 (see `experiments/results/detectors.md`).
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
