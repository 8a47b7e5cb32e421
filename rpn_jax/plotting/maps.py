"""Heat maps: objectness over the image, coverage over sizes and ratios."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from rpn_jax.plotting.style import VERMILION, show_image


def plot_objectness(
    image: Any,
    scores: Any,
    *,
    stride: float | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the scores of one level over the image, the best anchor of each cell.

    Args:
        image: `[H, W, 3]` or `[H, W]`, as large as the network saw it.
        scores: `[h, w]` or `[h, w, C]`, probabilities of the C anchors of each cell of
            the feature map, which covers the image from its upper left corner.
        stride: pixels a cell; default: as the heights of image and map have it.
        title: of the picture.
        ax: where to draw.

    Returns:
        The axes.
    """
    ax = plt.gca() if ax is None else ax
    image = np.asarray(image)
    grey = image.mean(axis=2) if image.ndim == 3 else image  # colours are the scores'
    height, width = show_image(grey, ax)
    scores = np.asarray(scores, np.float32)
    best = scores.max(axis=2) if scores.ndim == 3 else scores
    step = height / best.shape[0] if stride is None else stride
    extent = (0, best.shape[1] * step, best.shape[0] * step, 0)
    shown = ax.imshow(best, cmap="viridis", vmin=0, vmax=1, alpha=0.65, extent=extent)
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.figure.colorbar(shown, ax=ax, label="objectness", fraction=0.046, pad=0.03)
    if title:
        ax.set_title(title, fontsize=9)
    return ax


def plot_coverage(
    sizes: Any,
    ratios: Any,
    objects: Any,
    covered: Any,
    *,
    anchors: Any = None,
    label: str = "share of objects covered",
    ax: Axes | None = None,
) -> Axes:
    """Draw which share of the objects of each size and ratio is covered.

    The number of objects stands in each cell; a cell without any is blank.

    Args:
        sizes: `[S + 1]` edges of the cells, square roots of areas in pixels.
        ratios: `[R + 1]` edges, heights over widths.
        objects: `[S, R]`, how many there are.
        covered: `[S, R]` shares in 0..1.
        anchors: `[C, 4]` xyxy; where given, their sizes and ratios are marked.
        label: what the colour means.
        ax: where to draw.

    Returns:
        The axes.
    """
    ax = plt.gca() if ax is None else ax
    sizes, ratios = np.asarray(sizes), np.asarray(ratios)
    objects = np.asarray(objects)
    share = np.ma.masked_where(objects == 0, np.asarray(covered))
    mesh = ax.pcolormesh(
        *(sizes, ratios, share.T), cmap="cividis", vmin=0, vmax=1, edgecolors="white"
    )
    for i, j in zip(*np.nonzero(objects), strict=True):
        # At the bottom of its cell: anchors often stand in the middle.
        middle = np.sqrt(sizes[i] * sizes[i + 1])
        bottom = ratios[j] ** 0.92 * ratios[j + 1] ** 0.08
        color = "black" if share[i, j] > 0.5 else "white"
        ax.text(
            middle,
            bottom,
            _short(objects[i, j]),
            color=color,
            fontsize=7,
            ha="center",
            va="bottom",
        )
    marks = [np.zeros(0)] * 2
    if anchors is not None:
        anchors = np.asarray(anchors, np.float64).reshape(-1, 4)
        width, height = (anchors[:, 2:] - anchors[:, :2]).T
        marks = [np.sqrt(width * height), height / width]
        ax.plot(
            *marks,
            "D",
            color=VERMILION,
            markeredgecolor="white",
            markersize=8,
            label="anchors",
        )
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    ax.set(xscale="log", yscale="log")
    for axis, edges, used, mark in (
        (ax.xaxis, sizes, objects.any(axis=1), marks[0]),
        (ax.yaxis, ratios, objects.any(axis=0), marks[1]),
    ):
        rows = np.flatnonzero(used)
        bounds = [edges[rows[0]], edges[rows[-1] + 1]] if len(rows) else edges[[0, -1]]
        low, high = min([*bounds, *mark / 1.1]), max([*bounds, *mark * 1.1])
        (ax.set_xlim if axis is ax.xaxis else ax.set_ylim)(low, high)
        axis.set_major_locator(FixedLocator([2.0**power for power in range(-4, 12)]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set(xlabel="square root of the area, px", ylabel="height / width")
    ax.figure.colorbar(mesh, ax=ax, label=label)
    return ax


def _short(number: int) -> str:
    """Write a number in at most four characters."""
    for unit, letter in ((1_000_000, "M"), (1000, "k")):
        if number >= unit:
            value = number / unit
            return f"{value:.0f}{letter}" if value >= 10 else f"{value:.1f}{letter}"
    return str(number)
