"""How much of what is there the proposals find, measured on the device."""

from rpn_jax.evaluation.matching import (
    AREA_NAMES,
    AREA_RANGES,
    IOU_THRESHOLDS,
    match_objects,
)
from rpn_jax.evaluation.recall import (
    MAX_PROPOSALS,
    AverageRecall,
    RecallTotals,
    average_recall,
    matched_recall,
    recall_curve,
    recall_metrics,
)

__all__ = [
    "AREA_NAMES",
    "AREA_RANGES",
    "IOU_THRESHOLDS",
    "MAX_PROPOSALS",
    "AverageRecall",
    "RecallTotals",
    "average_recall",
    "match_objects",
    "matched_recall",
    "recall_curve",
    "recall_metrics",
]
