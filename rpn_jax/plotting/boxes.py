"""Boxes on their image."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from rpn_jax.plotting.style import BLUE, COLORS, GREEN, ORANGE, show_image


def draw_boxes(
    boxes: Any,
    *,
    ax: Axes | None = None,
    color: str = BLUE,
    label: str | None = None,
    alpha: Any = 1.0,
    linewidth: float = 1.5,
    linestyle: str = "-",
) -> Axes:
    """Draw the outlines of boxes.

    Args:
        boxes: `[n, 4]` xyxy in pixels of the picture below.
        ax: where to draw.
        color: of the outlines.
        label: for a legend.
        alpha: opacity, a number or one a box.
        linewidth: in points.
        linestyle: as in Matplotlib.

    Returns:
        The axes.
    """
    ax = plt.gca() if ax is None else ax
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    alphas = np.broadcast_to(alpha, len(boxes))
    for i, ((x1, y1, x2, y2), opacity) in enumerate(zip(boxes, alphas, strict=True)):
        ax.add_patch(
            Rectangle(
                (x1, y1),
                x2 - x1,
                y2 - y1,
                fill=False,
                edgecolor=color,
                alpha=float(opacity),
                linewidth=linewidth,
                linestyle=linestyle,
                label=label if i == 0 else None,
            )
        )
    return ax


def plot_proposals(
    image: Any,
    boxes: Any,
    scores: Any = None,
    *,
    gt_boxes: Any = None,
    top: int = 20,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the best proposals on their image, the less opaque the lower they rank.

    With ground truth, proposals that meet an object at IoU 0.5 are blue, the others
    orange and dashed, and the objects green.

    Args:
        image: `[H, W, 3]` or `[H, W]`, uint8 or floats in 0..1.
        boxes: `[n, 4]` xyxy in pixels of the image, best first.
        scores: `[n]`; where given, the best five are written beside their boxes.
        gt_boxes: `[m, 4]` xyxy, the objects.
        top: draw so many.
        title: of the picture.
        ax: where to draw.

    Returns:
        The axes.
    """
    ax = plt.gca() if ax is None else ax
    show_image(image, ax)
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)[:top]
    opacity = np.linspace(1.0, 0.35, max(len(boxes), 1))[: len(boxes)]
    hit = np.ones(len(boxes), bool)
    if gt_boxes is not None:
        gt_boxes = np.asarray(gt_boxes, np.float32).reshape(-1, 4)
        hit = (_iou(boxes, gt_boxes) >= 0.5).any(axis=1)
        draw_boxes(gt_boxes, ax=ax, color=GREEN, label="object", linewidth=2.5)
    draw_boxes(
        boxes[~hit],
        ax=ax,
        color=ORANGE,
        label="elsewhere",
        alpha=opacity[~hit],
        linestyle="--",
    )
    meets = "proposal" if gt_boxes is None else "meets an object"
    draw_boxes(boxes[hit], ax=ax, color=BLUE, label=meets, alpha=opacity[hit])
    if scores is not None:
        for box, score in zip(boxes[:5], np.asarray(scores), strict=False):
            label = _write(f"{score:.2f}", box, image, "black", ax)
            label.set_color("white")
    if title:
        ax.set_title(title, fontsize=9)
    return ax


def plot_detections(
    image: Any,
    boxes: Any,
    scores: Any,
    names: Sequence[str],
    *,
    threshold: float = 0.5,
    ax: Axes | None = None,
) -> Axes:
    """Draw detections on their image, each with its name and score.

    Args:
        image: `[H, W, 3]` or `[H, W]`, uint8 or floats in 0..1.
        boxes: `[n, 4]` xyxy in pixels of the image, best first.
        scores: `[n]`.
        names: `[n]` of the classes; each name has its colour.
        threshold: detections of a lower score are left out.
        ax: where to draw.

    Returns:
        The axes.
    """
    ax = plt.gca() if ax is None else ax
    show_image(image, ax)
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    colors = {n: COLORS[i % len(COLORS)] for i, n in enumerate(sorted(set(names)))}
    for box, score, name in zip(boxes, np.asarray(scores), names, strict=True):
        if score < threshold:
            continue
        draw_boxes(box, ax=ax, color=colors[name])
        _write(f"{name} {score:.2f}", box, image, colors[name], ax)
    return ax


def _write(text: str, box: np.ndarray, image: Any, color: str, ax: Axes) -> Text:
    """Write above a box, or into it where it lies at the top of the image."""
    frame = dict(facecolor=color, alpha=0.8, pad=1, linewidth=0)
    x, y = box[:2]
    place = "top" if y < 0.05 * np.shape(image)[0] else "bottom"
    return ax.text(x, y, text, fontsize=7, bbox=frame, verticalalignment=place)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of `[n, 4]` and `[m, 4]` boxes, `[n, m]`; 0 where both are empty."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(np.maximum(x[:, 2:] - x[:, :2], 0), axis=-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
