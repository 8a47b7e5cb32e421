"""Average precision of detections as PASCAL VOC defines it, matching included.

Shape legend: `N` detections and `G` objects of an image, `T` IoU thresholds, `C`
classes. Boxes are xyxy, continuous, detections and objects in one frame.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from rpn_jax.evaluation.curves import at_recalls, collect, curve, over_classes
from rpn_jax.evaluation.detections import (
    DetectionMatches,
    as_detections,
    as_labels,
    class_ranks,
    places,
    same_class,
)
from rpn_jax.evaluation.matching import (
    as_real_boxes,
    as_thresholds,
)
from rpn_jax.ops._checks import as_mask, check_option
from rpn_jax.ops.boxes import iou_of_corners, pairs_of_corners

# As VOC's ports make them: their 0.3, 0.6 and 0.7 are a bit more than 3, 6, 7 of 10.
_RECALLS = np.linspace(0, 1, 11)


class VOCAveragePrecision(NamedTuple):
    """Average precision of a data set, as PASCAL VOC counts it.

    Attributes:
        average: `[T, C]` average precision; -1 where a class has no object.
        mean: `[T]` mean over the classes that have objects (mAP); -1 if none has.
        objects: `[C]` objects counted.
    """

    average: Float[np.ndarray, "T C"]
    mean: Float[np.ndarray, "T"]
    objects: Int[np.ndarray, "C"]


def match_voc_detections(
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    valid: ArrayLike,
    gt_boxes: ArrayLike,
    gt_labels: ArrayLike,
    gt_valid: ArrayLike,
    gt_ignore: ArrayLike | None = None,
    *,
    iou_thresholds: ArrayLike | Sequence[float] = (0.5,),
) -> DetectionMatches:
    """Match the detections of one image to its objects as PASCAL VOC does.

    Each detection belongs to the object of its class with the highest IoU, whether
    another has found that object or not; of equal IoUs to the first object. Where that
    IoU is at least the threshold, the best score finds the object (of equal scores the
    lower row) and all others are false positives; those of a difficult object are
    ignored. Below the threshold a detection is a false positive.

    "At least" is what the development kit does; its Python ports ask for more than the
    threshold. VOC counts pixels from 1 and includes the last: as continuous boxes
    (xmin - 1, ymin - 1, xmax, ymax) they have the same IoU.

    Args:
        boxes: `[N, 4]` xyxy, pixels.
        scores: `[N]`, in any order.
        labels: `[N]` integers, 0-based classes; a negative one counts as padding.
        valid: `[N]` bool; an image that only fills a batch has no valid detection.
        gt_boxes: `[G, 4]` xyxy objects.
        gt_labels: `[G]` integers, classes of the objects.
        gt_valid: `[G]` bool.
        gt_ignore: `[G]` bool, difficult objects; None: none.
        iou_thresholds: `[T]`.

    Returns:
        `DetectionMatches` with one area range, everything; detections in the order
        given.

    Raises:
        ValueError: a shape or dtype is wrong.

    Example:
        >>> box = jnp.array([[0.0, 0.0, 10.0, 10.0]])
        >>> one, yes = jnp.array([1]), jnp.array([True])
        >>> match_voc_detections(box, one, one, yes, box, one, yes).hit
        Array([[[ True]]], dtype=bool)

    References:
        Everingham et al., The PASCAL Visual Object Classes challenge (2010);
        `VOCevaldet.m` of its development kit.
    """
    boxes, gt_boxes = as_real_boxes(boxes, "boxes"), as_real_boxes(gt_boxes, "gt_boxes")
    scores, labels, valid = as_detections(boxes, scores, labels, valid)
    shape = gt_boxes.shape[:1]
    gt_labels = as_labels(gt_labels, shape, "gt_labels")
    gt_valid = counted = as_mask(gt_valid, shape, "gt_valid")
    counted &= True if gt_ignore is None else ~as_mask(gt_ignore, shape, "gt_ignore")
    cut = as_thresholds(iou_thresholds, boxes.dtype)[:, None, None]

    overlaps = iou_of_corners(*pairs_of_corners(boxes, gt_boxes))
    same = same_class(labels, gt_labels, gt_valid)
    overlaps = jnp.where(same & (overlaps >= 0), overlaps, -1)  # NaN is no overlap
    best = overlaps == jnp.max(overlaps, axis=-1, keepdims=True, initial=-1)
    own = same & best & (jnp.cumsum(best, axis=-1) == 1)  # the first of the best
    own = own & (overlaps >= cut)  # [T, N, G]
    ranks = class_ranks(places(scores, valid), labels, valid)
    nobody = ranks.size
    claim = jnp.where(own & counted, ranks[:, None], nobody)
    first = jnp.min(claim, axis=1, keepdims=True, initial=nobody)
    return DetectionMatches(
        jnp.any((claim == first) & (claim < nobody), axis=-1)[None],
        jnp.any(own & ~counted, axis=-1)[None],
        scores,
        labels,
        ranks,
        jnp.where(counted, gt_labels, -1)[None],
    )


def voc_average_precision(
    matches: DetectionMatches | Iterable[DetectionMatches],
    *,
    num_classes: int,
    method: str = "area",
) -> VOCAveragePrecision:
    """Compute PASCAL VOC's average precision over images.

    Precision at a recall is the best precision at that recall or more. Its average is
    the area under the curve (VOC 2010 and after), or the mean over the recalls
    0, 0.1, ..., 1 (VOC 2007).

    Args:
        matches: what `match_voc_detections` gave, of one image or a batch of images
            each, or all in one. Detections of equal score count in the order given.
        num_classes: C; classes are 0 to C - 1.
        method: "area" or "11point".

    Returns:
        `VOCAveragePrecision`, NumPy float64 on the host.

    Raises:
        ValueError: the method is unknown, there are no images or more than one area
            range, or a class is not below `num_classes`.

    Example:
        >>> boxes = jnp.array([[0.0, 0, 10, 10], [50, 0, 60, 10]])
        >>> labels, yes = jnp.array([0, 0]), jnp.array([True, True])
        >>> found = match_voc_detections(
        ...     boxes[:1], jnp.ones(1), labels[:1], yes[:1], boxes, labels, yes
        ... )
        >>> float(voc_average_precision(found, num_classes=1).mean[0])
        0.5
        >>> result = voc_average_precision(found, num_classes=1, method="11point")
        >>> round(float(result.mean[0]), 4)  # 6 of 11 recalls are reached
        0.5455

    References:
        Everingham et al., The PASCAL Visual Object Classes challenge (2010);
        `VOCevaldet.m` and `VOCap.m` of its development kit.
    """
    check_option(method, ("area", "11point"), "method")
    found = collect(matches, num_classes)
    if found.hit.shape[1] != 1:
        raise ValueError(
            "matches must have one area range, as match_voc_detections gives, got "
            f"{found.hit.shape[1]}"
        )
    objects = found.objects[0]
    average = np.full((found.hit.shape[2], num_classes), -1.0)
    for c in np.flatnonzero(objects):
        hit = found.hit[found.rows[c], 0]
        recall, best = curve(hit, found.ignored[found.rows[c], 0], objects[c])
        if method == "area":  # each hit is a step of recall
            average[:, c] = (best * hit).sum(0) / objects[c]
        else:
            average[:, c] = at_recalls(recall, best, _RECALLS).mean(-1)
    return VOCAveragePrecision(average, over_classes(average, objects), objects)
