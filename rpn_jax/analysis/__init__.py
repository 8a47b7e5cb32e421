"""Which objects can anchors cover, which will they miss, and which anchors would not.

From annotations alone, before any training: no image is decoded.
"""

from rpn_jax.analysis.advice import advise, try_additions
from rpn_jax.analysis.coverage import (
    Coverage,
    Layout,
    anchor_grids,
    anchor_layout,
    best_ious,
    cover,
)
from rpn_jax.analysis.design import cluster_anchors, design_anchors
from rpn_jax.analysis.matched import matched_positives
from rpn_jax.analysis.objects import Objects, read_objects, shifted_objects
from rpn_jax.analysis.report import (
    LEGEND,
    THRESHOLDS,
    HeatMap,
    Shares,
    groups,
    heat_map,
    shares,
    table,
)

__all__ = [
    "LEGEND",
    "THRESHOLDS",
    "Coverage",
    "HeatMap",
    "Layout",
    "Objects",
    "Shares",
    "advise",
    "anchor_grids",
    "anchor_layout",
    "best_ious",
    "cluster_anchors",
    "cover",
    "design_anchors",
    "groups",
    "heat_map",
    "matched_positives",
    "read_objects",
    "shares",
    "shifted_objects",
    "table",
    "try_additions",
]
