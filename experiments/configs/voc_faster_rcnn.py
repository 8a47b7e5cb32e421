"""Any folder in the layout of PASCAL VOC, Faster R-CNN on SqueezeNet.

    python -m experiments.train voc_faster_rcnn --data.root DIR \
        --weights squeezenet.npz --workdir runs/voc_faster_rcnn

Data, trunk and recipe are those of `voc`; the twenty classes of VOC
(--model.classes names others), both stages trained together, 1200 steps. The peer is
that of `bccd_faster_rcnn`. Measured with the peer's rule for difficult objects and
`--steps 600`, one seed: AP 0.085 (AP50 0.229, AP75 0.046), the proposals' AR 0.202 /
0.384 / 0.450 at 10 / 100 / 300; the peer: 0.089 (0.245, 0.039) and 0.198 / 0.389 /
0.450.
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
