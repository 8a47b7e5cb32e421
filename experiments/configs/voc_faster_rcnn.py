"""Any folder in the layout of PASCAL VOC, Faster R-CNN on SqueezeNet.

    python -m experiments.train voc_faster_rcnn --data.root DIR \
        --weights squeezenet.npz --workdir runs/voc_faster_rcnn

Data, trunk and recipe are those of `voc`; the twenty classes of VOC
(--model.classes names others), both stages trained together, 1200 steps. The peer is
that of `bccd_faster_rcnn`. Measured with the peer's rule for difficult objects and
`--steps 600`, means of three seeds: AP 0.097 (AP50 0.255, AP75 0.052), the proposals'
AR 0.200 / 0.386 / 0.450 at 10 / 100 / 300; the peer, two seeds: 0.097 (0.256, 0.047)
and 0.199 / 0.385 / 0.444.
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
