"""Any folder in the layout of PASCAL VOC, SqueezeNet with ImageNet weights.

    python -m experiments.train voc --data.root DIR --weights squeezenet.npz \
        --workdir runs/voc

DIR holds JPEGImages, Annotations and ImageSets/Main. Without --data.root one of the
usual names is looked for under $RPN_JAX_DATA, else `data`. Train on the split train,
evaluate on val: 1200 steps of 8 images, 384 px. The recipe is that of `bccd`.

In torchvision it gave, trained on 828 and evaluated on 277 images of VOC 2012, AR
0.222 / 0.393 / 0.439 at 10 / 100 / 300 proposals and recall 0.846 at IoU 0.5 (one
seed). There, as in torchvision itself, difficult objects are simply absent and anchors
on them are negatives; here anchors within them are left out of the loss.
`--model.convention.targets.ignore-threshold inf` gives the peer's rule,
and measured here with it: 0.215 / 0.392 / 0.452 and 0.865 (one seed). Better is AdamW,
`--optimizer.name adamw --lr 3e-4`: 0.244 / 0.410 / 0.474 and 0.896 (seed 0), and with
the peer's rule 0.233 / 0.405 / 0.466 and 0.879 (seed 1).
"""

import dataclasses

from experiments.config import DataConfig
from experiments.configs.bccd import CONFIG as BCCD

CONFIG = dataclasses.replace(
    BCCD,
    steps=1200,
    data=DataConfig(
        kind="voc",
        folders=("VOCdevkit/VOC2012", "VOC2012", "voc12_subset", "VOCdevkit/VOC2007"),
        train="train",
        val="val",
    ),
)
