"""How much of what is there is found, and how much of what is found is there."""

from rpn_jax.evaluation.detections import DetectionMatches, match_detections
from rpn_jax.evaluation.matching import (
    AREA_NAMES,
    AREA_RANGES,
    IOU_THRESHOLDS,
    match_objects,
)
from rpn_jax.evaluation.precision import (
    MAX_DETECTIONS,
    AveragePrecision,
    average_precision,
    precision_metrics,
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
from rpn_jax.evaluation.voc import (
    VOCAveragePrecision,
    match_voc_detections,
    voc_average_precision,
)

__all__ = [
    "AREA_NAMES",
    "AREA_RANGES",
    "IOU_THRESHOLDS",
    "MAX_DETECTIONS",
    "MAX_PROPOSALS",
    "AveragePrecision",
    "AverageRecall",
    "DetectionMatches",
    "RecallTotals",
    "VOCAveragePrecision",
    "average_precision",
    "average_recall",
    "match_detections",
    "match_objects",
    "match_voc_detections",
    "matched_recall",
    "precision_metrics",
    "recall_curve",
    "recall_metrics",
    "voc_average_precision",
]
