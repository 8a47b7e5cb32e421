"""What anchors reach, as numbers and pictures."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from rpn_jax import plotting
from rpn_jax.analysis import THRESHOLDS, Coverage, Layout, Objects, heat_map, shares
from rpn_jax.rpn import RPNConfig


class Found(NamedTuple):
    """What anchors there are for some objects."""

    objects: Objects
    layout: Layout
    coverage: Coverage
    groups: dict[str, dict[str, np.ndarray]]
    threshold: float


def describe(model: RPNConfig) -> str:
    """Say what anchors a network has."""
    ratios = ", ".join(f"{r:g}" for r in model.ratios)
    return "\n".join(
        f"stride {stride}: sizes {', '.join(f'{s:g}' for s in sizes)} px, "
        f"height / width {ratios}"
        for stride, sizes in zip(model.strides, model.sizes, strict=True)
    )


def summary(found: Found) -> dict[str, Any]:
    """Gather what tables and pictures show."""
    coverage, level = found.coverage, found.layout.level
    positives = coverage.positives.sum(axis=1)
    values = {**coverage._asdict(), "lost": coverage.lost, "positives": positives}
    heat = {
        name: heat_map(found.objects, values[name])
        for name in ("iou", "covered", "saved", "lost", "positives")
    }
    any_heat, edges = heat["iou"], np.linspace(0, 1, 21)
    return {
        "covered_from_iou": found.threshold,
        "iou_thresholds": THRESHOLDS,
        "groups": {
            title: {
                name: shares(coverage, group, found.threshold)._asdict()
                for name, group in rows.items()
            }
            for title, rows in found.groups.items()
        },
        "positives_by_level": [
            coverage.positives[:, level == i].sum(axis=1).mean()
            for i in np.unique(level)
        ],
        "iou_histogram": {
            "edges": edges,
            "objects": np.histogram(coverage.iou, edges)[0],
        },
        "heat_map": {
            "sizes": any_heat.sizes,
            "ratios": any_heat.ratios,
            "objects": any_heat.objects,
            "means": {name: one.mean for name, one in heat.items()},
        },
    }


def draw(file: Path, found: Found) -> None:
    """Draw the share covered by size and ratio, and the distribution of best IoU."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    plotting.plot_coverage(
        *heat_map(found.objects, found.coverage.covered),
        anchors=found.layout.cells,
        label=f"share with an anchor at IoU {found.threshold:g}",
        ax=left,
    )
    at = np.linspace(0, 1, 101).tolist()
    iou, sizes = found.coverage.iou, next(iter(found.groups.values()))
    curves = {
        f"{name} ({group.sum():,})": [float((iou[group] >= t).mean()) for t in at]
        for name, group in sizes.items()
        if group.any()
    }
    plotting.plot_recall(at, curves, ax=right)
    right.set(xlabel="IoU with the best anchor", ylabel="share that reaches it")
    right.axvline(found.threshold, color="black", linewidth=1, linestyle=":")
    # Below: the curves may go anywhere inside.
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12)}
    right.legend(**below, ncols=2, frameon=False)
    figure.savefig(file, dpi=110)


def draw_places(file: Path, found: Found) -> None:
    """Draw the highest IoU of one box over the places that it may have."""
    figure = Figure(figsize=(6, 5))
    ax = figure.subplots()
    side = math.isqrt(len(found.coverage.iou))
    ious = found.coverage.iou.reshape(side, side)
    x, y = found.objects.boxes[:side, 0], found.objects.boxes[::side, 1]
    (left, right), (top, bottom) = _ends(x), _ends(y)
    extent = left, right, bottom, top
    mesh = ax.imshow(ious, cmap="viridis", vmin=0, vmax=1, extent=extent)
    figure.colorbar(mesh, ax=ax, label="IoU with the best anchor")
    ax.set(xlabel="shift to the right, px", ylabel="shift down, px")
    figure.savefig(file, dpi=110, bbox_inches="tight")


def _ends(places: np.ndarray) -> tuple[float, float]:
    """Where a row of cells around equally spaced places begins and ends.

    Counted from its middle. A box as long as its image has one place; it gets a pixel.
    """
    half = (places[-1] - places[0]) * len(places) / (len(places) - 1) / 2
    return (-half, half) if half else (-0.5, 0.5)


def as_json(value: Any) -> Any:
    """Turn arrays, tuples and NaN into what JSON knows."""
    if isinstance(value, dict):
        return {key: as_json(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value
