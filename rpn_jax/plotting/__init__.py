"""Pictures of anchors, targets, proposals, coverage and training.

NumPy and Matplotlib alone. Every function draws on the `Axes` it is given, or on the
current one, and returns it. Boxes are xyxy in pixels of the picture. Colours are those
of Okabe and Ito, or of the maps viridis and cividis, told apart with any colour vision.
"""

from rpn_jax.plotting.anchors import plot_anchor_grid, plot_anchors, plot_targets
from rpn_jax.plotting.boxes import draw_boxes, plot_detections, plot_proposals
from rpn_jax.plotting.curves import plot_recall, plot_training
from rpn_jax.plotting.maps import plot_coverage, plot_objectness
from rpn_jax.plotting.style import (
    BLUE,
    COLORS,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
)

__all__ = [
    "BLUE",
    "COLORS",
    "GREEN",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILION",
    "draw_boxes",
    "plot_anchor_grid",
    "plot_anchors",
    "plot_coverage",
    "plot_detections",
    "plot_objectness",
    "plot_proposals",
    "plot_recall",
    "plot_targets",
    "plot_training",
]
