"""Average recall of proposals, counted on the device as COCO counts it.

Boxes are xyxy in one frame for proposals and objects. COCO's sizes are meant in pixels
of the original image: bring both back to it before counting.

Shape legend: `N` proposals and `G` objects of an image, `B` images, `R` area ranges,
`K` numbers of proposals, `T` IoU thresholds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from rpn_jax.evaluation.matching import (
    AREA_NAMES,
    AREA_RANGES,
    IOU_THRESHOLDS,
    as_real_boxes,
    counted_objects,
    match_objects,
)

MAX_PROPOSALS = (1, 10, 100, 300, 1000)
"""Numbers of best proposals to count with."""


class AverageRecall(NamedTuple):
    """Recall of a data set. -1 stands where a range holds no object, as in COCO.

    Attributes:
        average: `[R, K]` float32, recall averaged over the IoU thresholds (AR).
        recall: `[R, K, T]` float32, recall at each threshold: the recall-IoU curve.
        objects: `[R]` int32, objects counted.
    """

    average: Float[Array, "R K"]
    recall: Float[Array, "R K T"]
    objects: Int[Array, "R"]


class RecallTotals(NamedTuple):
    """What to add up over images: integers, so that no order of adding matters.

    Attributes:
        hits: `[..., R, K, T]` int32, objects found.
        objects: `[..., R]` int32, objects to find.
    """

    hits: Int[Array, "*images R K T"]
    objects: Int[Array, "*images R"]

    @classmethod
    def zeros(cls, ranges: int = 4, counts: int = 5, thresholds: int = 10):
        """Start with no image; the arguments are R, K and T."""
        return cls(
            jnp.zeros((ranges, counts, thresholds), jnp.int32),
            jnp.zeros((ranges,), jnp.int32),
        )

    def add(self, counts: "RecallTotals") -> "RecallTotals":
        """Return these totals plus those of one image, or of a batch of images.

        Raises:
            ValueError: they were counted with other ranges, counts or thresholds.
        """
        if counts.hits.shape[-3:] != self.hits.shape:
            raise ValueError(
                f"counts must be [R, K, T] = {self.hits.shape} at the end as these "
                f"totals are, got {counts.hits.shape}; see RecallTotals.zeros"
            )
        hits = counts.hits.reshape(-1, *self.hits.shape)
        objects = counts.objects.reshape(-1, *self.objects.shape)
        return RecallTotals(
            self.hits + hits.sum(0, dtype=jnp.int32),
            self.objects + objects.sum(0, dtype=jnp.int32),
        )

    def summarize(self) -> AverageRecall:
        """Turn the totals of a data set into recall and average recall."""
        recall = recall_curve(self)
        return AverageRecall(recall.mean(-1), recall, self.objects)


def matched_recall(
    boxes: ArrayLike,
    valid: ArrayLike,
    gt_boxes: ArrayLike,
    gt_valid: ArrayLike,
    gt_ignore: ArrayLike | None = None,
    gt_areas: ArrayLike | None = None,
    *,
    max_proposals: ArrayLike | Sequence[int] = MAX_PROPOSALS,
    iou_thresholds: ArrayLike | Sequence[float] = IOU_THRESHOLDS,
    area_ranges: ArrayLike | Sequence[tuple[float, float]] = AREA_RANGES,
) -> RecallTotals:
    """Count the objects of one image that its best proposals find.

    One pass gives all numbers of proposals, since what a proposal takes does not depend
    on those after it. Use `jax.vmap` for a batch, and `RecallTotals.add` over batches.

    Args:
        boxes: `[N, 4]` xyxy proposals, best first.
        valid: `[N]` bool.
        gt_boxes: `[G, 4]` xyxy objects.
        gt_valid: `[G]` bool.
        gt_ignore: `[G]` bool, objects that do not count (crowd); None: none.
        gt_areas: `[G]` areas for the ranges; None: the boxes'.
        max_proposals: `[K]` numbers of best proposals to count with.
        iou_thresholds: `[T]`.
        area_ranges: `[R, 2]` least and greatest area, both included.

    Returns:
        Hits `[R, K, T]` and objects `[R]`. See `match_objects` for the matching.

    Raises:
        ValueError: a shape or dtype is wrong.

    Example:
        >>> box, yes = jnp.array([[0.0, 0.0, 10.0, 10.0]]), jnp.array([True])
        >>> counts = matched_recall(box, yes, box, yes, max_proposals=[1])
        >>> counts.hits.sum(-1)[:, 0], counts.objects  # all, small, medium, large
        (Array([10, 10, 0, 0], dtype=int32), Array([1, 1, 0, 0], dtype=int32))
    """
    taken_by = match_objects(
        boxes,
        valid,
        gt_boxes,
        gt_valid,
        gt_ignore,
        gt_areas,
        iou_thresholds=iou_thresholds,
        area_ranges=area_ranges,
    )
    most = jnp.asarray(max_proposals, jnp.int32)
    if most.ndim != 1:
        raise ValueError(f"max_proposals must be [K], got shape {most.shape}")
    taken_by = taken_by[:, None]
    hits = (taken_by >= 0) & (taken_by < most[:, None, None])
    counted = counted_objects(
        as_real_boxes(gt_boxes, "gt_boxes"), gt_valid, gt_ignore, gt_areas, area_ranges
    )
    return RecallTotals(hits.sum(-1, dtype=jnp.int32), counted.sum(-1, dtype=jnp.int32))


def average_recall(
    boxes: ArrayLike,
    valid: ArrayLike,
    gt_boxes: ArrayLike,
    gt_valid: ArrayLike,
    gt_ignore: ArrayLike | None = None,
    gt_areas: ArrayLike | None = None,
    *,
    max_proposals: ArrayLike | Sequence[int] = MAX_PROPOSALS,
    iou_thresholds: ArrayLike | Sequence[float] = IOU_THRESHOLDS,
    area_ranges: ArrayLike | Sequence[tuple[float, float]] = AREA_RANGES,
) -> AverageRecall:
    """Compute the class-agnostic average recall of proposals over images.

    Equal to pycocotools' `COCOeval` with `useCats = 0`. For more images than fit in
    one call, add up `matched_recall`.

    Args:
        boxes: `[B, N, 4]` xyxy proposals, best first.
        valid: `[B, N]` bool.
        gt_boxes: `[B, G, 4]` xyxy objects.
        gt_valid: `[B, G]` bool.
        gt_ignore: `[B, G]` bool, objects that do not count (crowd); None: none.
        gt_areas: `[B, G]` areas for the ranges; None: the boxes'.
        max_proposals: `[K]` numbers of best proposals to count with.
        iou_thresholds: `[T]`.
        area_ranges: `[R, 2]` least and greatest area, both included.

    Returns:
        AR `[R, K]`, recall `[R, K, T]` and objects `[R]`; -1 where a range is empty.

    Raises:
        ValueError: a shape or dtype is wrong.

    Example:
        >>> box, yes = jnp.array([[[0.0, 0.0, 10.0, 10.0]]]), jnp.array([[True]])
        >>> average_recall(box, yes, box + 2, yes, max_proposals=[1]).average[0]
        Array([0.], dtype=float32)

    References:
        Lin et al., Microsoft COCO (2014); Hosang et al., What makes for effective
        detection proposals? (2015).
    """
    if jnp.ndim(boxes) != 3:
        raise ValueError(f"boxes must be [B, N, 4], got shape {jnp.shape(boxes)}")

    def one(*arrays) -> RecallTotals:
        return matched_recall(
            *arrays,
            max_proposals=max_proposals,
            iou_thresholds=iou_thresholds,
            area_ranges=area_ranges,
        )

    counts = jax.vmap(one)(boxes, valid, gt_boxes, gt_valid, gt_ignore, gt_areas)
    return RecallTotals.zeros(*counts.hits.shape[1:]).add(counts).summarize()


def recall_curve(totals: RecallTotals) -> Float[Array, "*images R K T"]:
    """Divide hits by objects: recall against IoU, for each range and number.

    Args:
        totals: counts of a data set, or of each image.

    Returns:
        `[..., R, K, T]` float32; -1 where a range holds no object.

    Example:
        >>> recall_curve(RecallTotals(jnp.full((1, 1, 2), 3), jnp.array([4])))
        Array([[[0.75, 0.75]]], dtype=float32)
    """
    objects = totals.objects[..., None, None].astype(jnp.float32)
    return jnp.where(
        objects > 0, totals.hits.astype(jnp.float32) / jnp.maximum(objects, 1), -1
    )


def recall_metrics(
    result: AverageRecall,
    *,
    max_proposals: Sequence[int] = MAX_PROPOSALS,
    area_names: Sequence[str] = AREA_NAMES,
) -> dict[str, float]:
    """Name the figures of a result on the host, for logs and tables.

    Args:
        result: what `summarize` or `average_recall` gave.
        max_proposals: the numbers that it was counted with.
        area_names: names of its area ranges, "all" among them.

    Returns:
        `AR@100` and so on over all objects, `AR@100_small` by size; likewise `R50@100`
        and `R50@100_small`, the recall at the first threshold (IoU 0.5 by default).
        Where fewer proposals an image were kept, say 300, `AR@1000` is the recall of
        those 300.

    Raises:
        ValueError: the result has other numbers of area ranges or proposals.

    Example:
        >>> box, yes = jnp.array([[[0.0, 0.0, 10.0, 10.0]]]), jnp.array([[True]])
        >>> recall_metrics(average_recall(box, yes, box, yes))["AR@100_small"]
        1.0
    """
    average, recall = np.asarray(result.average), np.asarray(result.recall)
    if average.shape != (len(area_names), len(max_proposals)):
        raise ValueError(
            f"the result is of {average.shape[0]} area ranges and {average.shape[1]} "
            f"numbers of proposals, the names are {tuple(area_names)} and "
            f"{tuple(max_proposals)}"
        )
    metrics = {}
    for r, name in enumerate(area_names):
        suffix = "" if name == "all" else f"_{name}"
        for k, most in enumerate(max_proposals):
            metrics[f"AR@{most}{suffix}"] = float(average[r, k])
            metrics[f"R50@{most}{suffix}"] = float(recall[r, k, 0])
    return metrics
