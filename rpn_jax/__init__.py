"""Region proposals in JAX: exact, jit-able functions and the network around them."""

from rpn_jax.detections import Detections, generate_detections
from rpn_jax.ops.anchors import cell_anchors, grid_anchors, pyramid_anchors
from rpn_jax.ops.boxes import (
    box_area,
    box_convert,
    box_ioa,
    box_iou,
    clip_boxes_to_image,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
)
from rpn_jax.ops.coding import decode_boxes, encode_boxes
from rpn_jax.ops.losses import (
    RPNLosses,
    ciou_loss,
    diou_loss,
    giou_loss,
    rpn_losses,
    sigmoid_objectness_loss,
    smooth_l1_loss,
    softmax_objectness_loss,
)
from rpn_jax.ops.matching import Matches, match_anchors
from rpn_jax.ops.multiclass_nms import MulticlassNMSResult, multiclass_nms
from rpn_jax.ops.nms import NMSResult, nms
from rpn_jax.ops.roi_align import multilevel_roi_align, roi_align
from rpn_jax.ops.roi_levels import assign_levels
from rpn_jax.ops.roi_pool import roi_pool
from rpn_jax.ops.sampling import sample_balanced
from rpn_jax.ops.soft_nms import SoftNMSResult, soft_nms
from rpn_jax.ops.topk import TopK, top_k
from rpn_jax.proposals import Proposals, generate_proposals
from rpn_jax.roi_targets import RoITargets, roi_targets
from rpn_jax.targets import AnchorTargets, anchor_targets

__version__ = "0.1.0"

__all__ = [
    "AnchorTargets",
    "Detections",
    "Matches",
    "MulticlassNMSResult",
    "NMSResult",
    "Proposals",
    "RPNLosses",
    "RoITargets",
    "SoftNMSResult",
    "TopK",
    "anchor_targets",
    "assign_levels",
    "box_area",
    "box_convert",
    "box_ioa",
    "box_iou",
    "cell_anchors",
    "ciou_loss",
    "clip_boxes_to_image",
    "complete_box_iou",
    "decode_boxes",
    "diou_loss",
    "distance_box_iou",
    "encode_boxes",
    "generalized_box_iou",
    "generate_detections",
    "generate_proposals",
    "giou_loss",
    "grid_anchors",
    "match_anchors",
    "multiclass_nms",
    "multilevel_roi_align",
    "nms",
    "pyramid_anchors",
    "roi_align",
    "roi_pool",
    "roi_targets",
    "rpn_losses",
    "sample_balanced",
    "sigmoid_objectness_loss",
    "smooth_l1_loss",
    "soft_nms",
    "softmax_objectness_loss",
    "top_k",
]
