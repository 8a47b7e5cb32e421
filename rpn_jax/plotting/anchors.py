"""Anchors on an image, and what becomes of them when they meet the objects."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from rpn_jax.plotting.boxes import draw_boxes
from rpn_jax.plotting.style import (
    BLUE,
    COLORS,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
    show_image,
)


def plot_anchors(
    image: Any,
    anchors: Any,
    *,
    point: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the anchors of one grid point, a colour a size.

    Of each shape the anchor nearest to the point is drawn, so that anchors of several
    levels can be given at once. The picture is as large as the anchors need.

    Args:
        image: `[H, W, 3]` or `[H, W]`.
        anchors: `[A, 4]` xyxy, as `grid_anchors` makes them.
        point: (x, y) near which; default: the middle of the image.
        title: of the picture.
        ax: where to draw.

    Returns:
        The axes.
    """
    ax = plt.gca() if ax is None else ax
    size = np.array(show_image(image, ax)[::-1])
    anchors = np.asarray(anchors, np.float32).reshape(-1, 4)
    middle = size / 2 if point is None else point
    distance = np.square(_centres(anchors) - middle).sum(axis=1)
    order = np.argsort(distance, kind="stable")
    shapes = np.round(anchors[order, 2:] - anchors[order, :2], 2)
    _, nearest = np.unique(shapes, axis=0, return_index=True)
    drawn = anchors[order[nearest]]
    side = np.sqrt(np.prod(drawn[:, 2:] - drawn[:, :2], axis=1))
    rising = np.argsort(side, kind="stable")
    # Rounding makes the sizes of one group differ by a few per cent.
    new = np.diff(np.log(side[rising]), prepend=-np.inf) > 0.08
    group = np.empty(len(drawn), np.int64)
    group[rising] = np.cumsum(new) - 1
    for i in range(int(new.sum())):
        draw_boxes(
            drawn[group == i],
            ax=ax,
            color=COLORS[i % len(COLORS)],
            label=f"{np.median(side[group == i]):.0f} px",
            linewidth=2,
        )
    x, y = _centres(drawn).T
    ax.plot(x, y, "+", color="white", markersize=13, markeredgewidth=4)
    ax.plot(x, y, "+", color="black", markersize=11, markeredgewidth=2)
    low = np.minimum(drawn[:, :2].min(axis=0), 0)
    high = np.maximum(drawn[:, 2:].max(axis=0), size)
    margin = 0.02 * (high - low).max()
    ax.set(
        xlim=(low[0] - margin, high[0] + margin),
        ylim=(high[1] + margin, low[1] - margin),
    )
    ax.legend(title="size", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    if title:
        ax.set_title(title, fontsize=9)
    return ax


def plot_anchor_grid(
    image: Any, anchors: Any, *, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the points at which the anchors of one feature map are centred.

    Args:
        image: `[H, W, 3]` or `[H, W]`.
        anchors: `[A, 4]` xyxy of one level.
        title: of the picture; default: how many points there are, and how far apart.
        ax: where to draw.

    Returns:
        The axes.
    """
    ax = plt.gca() if ax is None else ax
    height, width = show_image(image, ax)
    points = np.unique(np.round(_centres(anchors), 2), axis=0)
    ax.plot(*points.T, ".", color=VERMILION, markersize=4, clip_on=False)
    x, y = np.unique(points[:, 0]), np.unique(points[:, 1])
    ax.set(
        xlim=(min(0, x[0]), max(width, x[-1])), ylim=(max(height, y[-1]), min(0, y[0]))
    )
    if title is None:
        step = np.diff(x)[0] if len(x) > 1 else np.nan
        title = f"{len(y)} x {len(x)} points, {step:g} px apart"
    ax.set_title(title, fontsize=9)
    return ax


def plot_targets(
    image: Any,
    anchors: Any,
    labels: Any,
    *,
    sampled: Any = None,
    gt_boxes: Any = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw what matching makes of anchors: positive, negative or not used.

    Positives are boxes. Of negatives and of those not used the centres are marked, for
    they are many. With a sample only its members are drawn.

    Args:
        image: `[H, W, 3]` or `[H, W]`.
        anchors: `[A, 4]` xyxy.
        labels: `[A]`: 1 positive, 0 negative, -1 not used; from `match_anchors`.
        sampled: `[A]` bool, from `anchor_targets`: draw these alone.
        gt_boxes: `[G, 4]` xyxy, the objects.
        title: of the picture.
        ax: where to draw.

    Returns:
        The axes.
    """
    ax = plt.gca() if ax is None else ax
    show_image(image, ax)
    anchors = np.asarray(anchors, np.float32).reshape(-1, 4)
    labels = np.asarray(labels)
    drawn = np.ones(len(labels), bool) if sampled is None else np.asarray(sampled)
    centres = _centres(anchors)
    for value, name, color, marker, size in (
        (0, "negative", ORANGE, ".", 5),
        (-1, "not used", PURPLE, "s", 3),
    ):
        chosen = drawn & (labels == value)
        if chosen.any():
            label = f"{name} ({chosen.sum():,})"
            points = centres[chosen].T
            ax.plot(*points, marker, color=color, markersize=size, label=label)
    positive = drawn & (labels == 1)
    if gt_boxes is not None:
        draw_boxes(gt_boxes, ax=ax, color=GREEN, label="object", linewidth=3)
    label = f"positive ({positive.sum():,})"
    draw_boxes(anchors[positive], ax=ax, color=BLUE, label=label, linewidth=1.8)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False)
    if title:
        ax.set_title(title, fontsize=9)
    return ax


def _centres(boxes: Any) -> np.ndarray:
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return (boxes[:, :2] + boxes[:, 2:]) / 2
