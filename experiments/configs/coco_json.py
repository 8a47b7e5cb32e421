"""Your own data: two COCO json files and a folder of images.

    python -m experiments.train coco_json --data.train train.json --data.val val.json \
        --data.images IMAGES --weights squeezenet.npz --workdir runs/mine

Without --data.images the folder `images` beside each json is taken, as
`experiments.prepare` writes it. The recipe is that of `voc`.
"""

import dataclasses

from experiments.config import DataConfig
from experiments.configs.voc import CONFIG as VOC

CONFIG = dataclasses.replace(
    VOC,
    data=DataConfig(kind="coco", train="train.json", val="val.json"),
)
