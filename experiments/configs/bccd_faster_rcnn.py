"""Blood cells, Faster R-CNN on SqueezeNet with ImageNet weights.

    python -m experiments.train bccd_faster_rcnn --weights squeezenet.npz \
        --workdir runs/bccd_faster_rcnn

Data, trunk and recipe are those of `bccd`; three classes, RoIAlign of 7 x 7 bins, two
fully connected layers of 256, both stages trained together.

Its peer is `experiments/peers/train_faster_rcnn.py`, where no object is an ignore
region; `--model.rpn.convention.targets.ignore-threshold inf` gives the peer's rule.
Measured here with that, means of two seeds: AP 0.505 (AP50 0.819, AP75 0.576), the
proposals' AR 0.380 / 0.657 / 0.673 at 10 / 100 / 300; the peer: 0.508 (0.838, 0.548)
and 0.384 / 0.654 / 0.668 (see `experiments/results/detectors.md`).
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
