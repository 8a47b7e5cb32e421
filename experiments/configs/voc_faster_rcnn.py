"""Any folder in the layout of PASCAL VOC, Faster R-CNN on SqueezeNet.

    python -m experiments.train voc_faster_rcnn --data.root DIR \
        --weights squeezenet.npz --workdir runs/voc_faster_rcnn

Data, trunk and recipe are those of `voc`; the twenty classes of VOC
(--model.classes names others), both stages trained together. The peer is that of
`bccd_faster_rcnn`.
"""

import dataclasses

from experiments.configs.voc import CONFIG as VOC
from rpn_jax.faster_rcnn import FasterRCNNConfig

CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
)

CONFIG = dataclasses.replace(
    VOC,
    model=FasterRCNNConfig(
        rpn=VOC.rpn,
        classes=tuple(CLASSES.split()),
        box_features=256,
        box_background=True,
    ),
)
