"""Colours, the image below everything else, and one legend below all images."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
VERMILION, PURPLE, SKY = "#D55E00", "#CC79A7", "#56B4E9"
COLORS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)


def show_image(image: Any, ax: Axes, *, alpha: float = 1.0) -> tuple[int, int]:
    """Show an image, its pixels as the coordinates; return its (height, width)."""
    image = np.asarray(image)
    height, width = image.shape[:2]
    cmap = "gray" if image.ndim == 2 else None
    ax.imshow(image, cmap=cmap, alpha=alpha, extent=(0, width, height, 0))
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    return height, width


def add_legend(figure: Figure) -> None:
    """Name below a figure, once, what any of its axes shows."""
    entries = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        place = {"loc": "outside lower center", "ncols": 3, "frameon": False}
        figure.legend(list(entries.values()), list(entries), **place)
