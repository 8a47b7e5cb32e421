"""Curves: recall against IoU, metrics against the step."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from rpn_jax.plotting.style import COLORS


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
