"""Which objects do anchors cover, and at which stage does a network lose the others.

Coverage and the design of anchors need annotations alone: no image is decoded. The
funnel looks at the outputs of a network.
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
from rpn_jax.analysis.funnel import (
    STAGES,
    Funnel,
    Losses,
    batch_funnel,
    funnel,
    losses,
    stages_passed,
)
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
    "STAGES",
    "THRESHOLDS",
    "Coverage",
    "Funnel",
    "HeatMap",
    "Layout",
    "Losses",
    "Objects",
    "Shares",
    "advise",
    "anchor_grids",
    "anchor_layout",
    "batch_funnel",
    "best_ious",
    "cluster_anchors",
    "cover",
    "design_anchors",
    "funnel",
    "groups",
    "heat_map",
    "losses",
    "matched_positives",
    "read_objects",
    "shares",
    "shifted_objects",
    "stages_passed",
    "table",
    "try_additions",
]
