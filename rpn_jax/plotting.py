"""Pictures of proposals, recall and training; NumPy and Matplotlib alone.

Every function draws on the `Axes` it is given, or on the current one, and returns it.
Colours are those of Okabe and Ito, told apart with any colour vision.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
VERMILION, PURPLE, SKY = "#D55E00", "#CC79A7", "#56B4E9"
COLORS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)


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
    image = np.asarray(image)
    ax.imshow(image, cmap="gray" if image.ndim == 2 else None)
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
        for (x, y, _, _), score in zip(boxes[:5], np.asarray(scores), strict=False):
            box = dict(facecolor="black", alpha=0.6, pad=1, linewidth=0)
            ax.text(x, y, f"{score:.2f}", color="white", fontsize=7, bbox=box)
    ax.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0), xticks=[], yticks=[])
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
    image = np.asarray(image)
    ax.imshow(image, cmap="gray" if image.ndim == 2 else None)
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    colors = {n: COLORS[i % len(COLORS)] for i, n in enumerate(sorted(set(names)))}
    for box, score, name in zip(boxes, np.asarray(scores), names, strict=True):
        if score < threshold:
            continue
        draw_boxes(box, ax=ax, color=colors[name])
        frame = dict(facecolor=colors[name], alpha=0.8, pad=1, linewidth=0)
        text = f"{name} {score:.2f}"
        # At the top of the image the name goes into the box.
        below = box[1] < 0.05 * image.shape[0]
        x, y = box[:2]
        label = ax.text(x, y, text, color="black", fontsize=7, bbox=frame)
        label.set_verticalalignment("top" if below else "bottom")
    ax.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0), xticks=[], yticks=[])
    return ax


def plot_recall(
    thresholds: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw recall against the IoU that a proposal must reach.

    Args:
        thresholds: `[T]` IoU thresholds, ascending.
        curves: name -> `[T]` recalls, such as one curve a number of proposals.
        ax: where to draw.

    Returns:
        The axes.
    """
    ax = plt.gca() if ax is None else ax
    styles = ("-", "--", "-.", ":")
    for i, (name, recall) in enumerate(curves.items()):
        color, style = COLORS[i % len(COLORS)], styles[i % len(styles)]
        ax.plot(thresholds, recall, style, color=color, label=name, linewidth=2)
    ax.set(xlabel="IoU threshold", ylabel="recall", ylim=(0, 1))
    ax.set_xlim(thresholds[0], thresholds[-1])
    ax.grid(alpha=0.3)
    if curves:
        ax.legend(frameon=False)
    return ax


def plot_training(
    metrics: str | Path | Sequence[Mapping[str, Any]],
    *,
    keys: Sequence[str] = ("loss", "loss_objectness", "loss_box"),
    smooth: int = 20,
    ax: Axes | None = None,
) -> Axes:
    """Draw metrics against the step, faint as written and bold as a running mean.

    Args:
        metrics: a file of JSON lines with `step`, or its rows.
        keys: metrics to draw; those that no row has are left out.
        smooth: steps that the running mean spans.
        ax: where to draw.

    Returns:
        The axes.
    """
    ax = plt.gca() if ax is None else ax
    if isinstance(metrics, str | Path):
        lines = Path(metrics).read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in lines]
    for i, key in enumerate(keys):
        rows = [(r["step"], r[key]) for r in metrics if r.get(key) is not None]
        if not rows:
            continue
        steps, values = np.array(rows, np.float64).T
        color = COLORS[i % len(COLORS)]
        ax.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        width = min(smooth, len(values))
        mean = np.convolve(values, np.ones(width) / width, mode="valid")
        ax.plot(steps[width - 1 :], mean, color=color, linewidth=2, label=key)
    ax.set(xlabel="step")
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
    return ax


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of `[n, 4]` and `[m, 4]` boxes, `[n, m]`; 0 where both are empty."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(np.maximum(x[:, 2:] - x[:, :2], 0), axis=-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
