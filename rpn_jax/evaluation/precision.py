"""Average precision and recall of detections, counted as COCO counts them.

Shape legend: `R` area ranges, `T` IoU thresholds, `C` classes, `K` numbers of
detections, `P` = 101 recall points.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rpn_jax.evaluation.curves import at_recalls, collect, curve, over_classes
from rpn_jax.evaluation.detections import DetectionMatches
from rpn_jax.evaluation.matching import AREA_NAMES, IOU_THRESHOLDS

MAX_DETECTIONS = (1, 10, 100)
"""Numbers of best detections, of an image and class, to count with."""

# As pycocotools makes them: its 0.35, say, is a bit more than 35 of 100.
_RECALLS = np.linspace(0, 1, 101)


class AveragePrecision(NamedTuple):
    """Precision and recall of a data set, as COCO counts them.

    -1 stands where a class has no object in a range. `average[0].mean(0)` is the AP of
    each class.

    Attributes:
        average: `[R, T, C]` average precision, the mean of `precision` over recall.
        precision: `[R, T, C, P]` best precision at recall 0, 0.01, ..., 1 or more,
            0 where that recall is not reached.
        recall: `[R, K, T, C]` recall of the best detections of each image and class.
        objects: `[R, C]` objects counted.
    """

    average: Float[np.ndarray, "R T C"]
    precision: Float[np.ndarray, "R T C P"]
    recall: Float[np.ndarray, "R K T C"]
    objects: Int[np.ndarray, "R C"]


def average_precision(
    matches: DetectionMatches | Iterable[DetectionMatches],
    *,
    num_classes: int,
    max_detections: Sequence[int] = MAX_DETECTIONS,
) -> AveragePrecision:
    """Compute COCO's average precision and recall over images.

    Equal to pycocotools' `COCOeval`, also in the order of equal scores if the images
    come by ascending id: detections of equal score count in the order in which they
    are given.

    Args:
        matches: what `match_detections` gave, of one image or a batch of images each,
            or all in one.
        num_classes: C; classes are 0 to C - 1.
        max_detections: `[K]` numbers of best detections, of each image and class;
            precision is taken with the largest of them.

    Returns:
        `AveragePrecision`, NumPy float64 on the host.

    Raises:
        ValueError: there are no images, or a class is not below `num_classes`.

    Example:
        >>> from rpn_jax.evaluation import match_detections
        >>> boxes = np.array([[0.0, 0, 10, 10], [50, 0, 60, 10]])
        >>> labels, yes = np.array([0, 0]), np.array([True, True])
        >>> scores = np.array([0.8, 0.9])  # the best one finds nothing
        >>> found = match_detections(
        ...     boxes, scores, labels, yes, boxes[:1], labels[:1], yes[:1]
        ... )
        >>> result = average_precision(found, num_classes=1)
        >>> precision_metrics(result)["AP"]
        0.5

    References:
        Lin et al., Microsoft COCO (2014); `accumulate` of pycocotools.
    """
    found = collect(matches, num_classes)
    most = np.asarray(max_detections)
    ranges, thresholds = found.hit.shape[1:]
    shape = ranges, thresholds, num_classes, len(_RECALLS)
    precision = np.full(shape, -1.0)
    recall = np.full((ranges, len(most), thresholds, num_classes), -1.0)
    for c, rows in enumerate(found.rows):
        rows = rows[found.ranks[rows] < most.max()]
        within = found.ranks[rows] < most[:, None]  # [K, D]
        for r in np.flatnonzero(found.objects[:, c]):
            hit, objects = found.hit[rows, r], found.objects[r, c]
            recall[r, :, :, c] = within.astype(int) @ hit.astype(int) / objects
            reached, best = curve(hit, found.ignored[rows, r], objects)
            precision[r, :, c] = at_recalls(reached, best, _RECALLS)
    return AveragePrecision(precision.mean(-1), precision, recall, found.objects)


def precision_metrics(
    result: AveragePrecision,
    *,
    max_detections: Sequence[int] = MAX_DETECTIONS,
    area_names: Sequence[str] = AREA_NAMES,
) -> dict[str, float]:
    """Name COCO's figures of a result, for logs and tables.

    Args:
        result: what `average_precision` gave, at COCO's thresholds.
        max_detections: the numbers that it was counted with.
        area_names: names of its area ranges, "all" among them.

    Returns:
        `AP`, the mean over thresholds 0.5 to 0.95 and over the classes that have
        objects, `AP50`, `AP75`, and `AR@1` and so on, the mean recall of the best
        detections of each image and class; `AP_small`, `AR@100_small` and so on by
        size; -1 where there is no object.

    Raises:
        ValueError: the result is not at COCO's thresholds, or has other numbers of area
            ranges or detections.

    Example:
        >>> from rpn_jax.evaluation import match_detections
        >>> box, yes = np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([True])
        >>> one, label = np.ones(1), np.array([3])
        >>> found = match_detections(box, one, label, yes, box + 1, label, yes)
        >>> metrics = precision_metrics(average_precision(found, num_classes=20))
        >>> metrics["AP"], metrics["AP50"], metrics["AP_large"]  # IoU 0.68
        (0.4, 1.0, -1.0)
    """
    if result.average.shape[1] != len(IOU_THRESHOLDS):
        raise ValueError(
            f"result must be at COCO's {len(IOU_THRESHOLDS)} IoU thresholds, got "
            f"{result.average.shape[1]}"
        )
    shape = result.recall.shape[:2]
    if shape != (len(area_names), len(max_detections)):
        raise ValueError(
            f"the result is of {shape[0]} area ranges and {shape[1]} numbers of "
            f"detections, the names are {tuple(area_names)} and {tuple(max_detections)}"
        )
    metrics = {}
    for r, name in enumerate(area_names):
        suffix = "" if name == "all" else f"_{name}"
        average = over_classes(result.average[r], result.objects[r])
        recall = over_classes(result.recall[r], result.objects[r]).mean(-1)
        metrics[f"AP{suffix}"] = float(average.mean())
        metrics[f"AP50{suffix}"] = float(average[IOU_THRESHOLDS.index(0.5)])
        metrics[f"AP75{suffix}"] = float(average[IOU_THRESHOLDS.index(0.75)])
        for k, most in enumerate(max_detections):
            metrics[f"AR@{most}{suffix}"] = float(recall[k])
    return metrics
