"""What an ablation gave, as tables, numbers and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.variants import FULL, SEARCH
from rpn_jax import plotting
from rpn_jax.evaluation import AREA_NAMES, IOU_THRESHOLDS, AverageRecall

FIGURES = {"AR": None, "recall at IoU 0.5": 0, "recall at IoU 0.7": 4}
"""What is compared: the average over COCO's thresholds, or recall at one of them."""


class Result(NamedTuple):
    """What one way to make proposals gave.

    Attributes:
        recall: at each of the counts of the curves, by size.
        boxes: proposals an image, the mean.
        milliseconds: to make them, from the network's outputs or, in selective search,
            from the pixels; the median over images.
    """

    recall: AverageRecall
    boxes: float
    milliseconds: float

    def figure(self, name: str) -> np.ndarray:
        """One of `FIGURES` at each count."""
        at = FIGURES[name]
        recall = self.recall
        return np.asarray(
            recall.average[0] if at is None else recall.recall[0, :, at], np.float64
        )


class Ablation(NamedTuple):
    """All that was measured.

    Attributes:
        counts: numbers of proposals, those of the curves.
        shown: those of the tables.
        results: by variant.
        network: milliseconds an image of the network, without proposals.
        proposals: milliseconds to make so many proposals of its outputs.
        images: how many there were.
        skipped: how many more cannot be read; nothing of them counts.
        pre_nms: best anchors a level that went on to NMS.
        mode: of selective search.
    """

    counts: list[int]
    shown: tuple[int, ...]
    results: dict[str, Result]
    network: float
    proposals: dict[int, float]
    images: int
    skipped: int
    pre_nms: int
    mode: str


def crossings(counts: Sequence[int], ours: np.ndarray, theirs: np.ndarray) -> str:
    """Say who is ahead, and between which numbers of proposals that changes."""
    ahead = np.sign(ours - theirs)
    if not ahead.any():
        return "both are equal at every number"
    names = {1: "the network", -1: SEARCH}
    at = np.flatnonzero(ahead).tolist()
    changes = [
        f"{names[int(ahead[j])]} overtakes between {counts[i]:,} and {counts[j]:,}"
        for i, j in zip(at, at[1:], strict=False)
        if ahead[i] != ahead[j]
    ]
    first = f"{names[int(ahead[at[0]])]} is ahead"
    if not changes:
        return f"{first} at every number from {counts[at[0]]:,}"
    return f"{first} from {counts[at[0]]:,}; " + "; ".join(changes)


def markdown(found: Ablation) -> str:
    """Lay the results out as tables."""
    counts = found.shown
    columns = [found.counts.index(n) for n in counts]
    rule = "| --- " * (len(counts) + 3) + "|"
    lines = [
        "# Ablation",
        "",
        f"{found.images} images, one at a time on "
        f"{jax.device_count()} {jax.devices()[0].device_kind} "
        f"device{'s' * (jax.device_count() > 1)}; {found.pre_nms:,} anchors a level "
        "go on to NMS, except as configured. Times are medians over the images; those "
        "of the network's variants start from its outputs.",
    ]
    if found.skipped:
        lines[-1] += f" Left out, for they cannot be read: {found.skipped} more."
    for name in FIGURES:
        head = "".join(f"| {n:,} " for n in counts)
        lines += ["", f"## {name}, by proposals an image", ""]
        lines += [f"| {head}| boxes an image | ms |", rule]
        for variant, result in found.results.items():
            figures = [result.figure(name)[i] for i in columns]
            values = "".join(f"| {x:.3f} " if x >= 0 else "| - " for x in figures)
            tail = f"| {result.boxes:,.0f} | {result.milliseconds:,.1f} |"
            lines.append(f"| {variant} {values}{tail}")
    lines += ["", "## Milliseconds an image, by proposals", ""]
    lines += [f"| {''.join(f'| {n:,} ' for n in counts)}|"]
    lines += ["| --- " * (len(counts) + 1) + "|"]
    rows = {
        "network": [found.network] * len(counts),
        "proposals": [found.proposals[n] for n in counts],
        "both": [found.network + found.proposals[n] for n in counts],
    }
    if search := found.results.get(SEARCH):
        rows[f"{SEARCH}, {found.mode}"] = [search.milliseconds] * len(counts)
    for name, values in rows.items():
        lines.append(f"| {name} " + "".join(f"| {x:,.1f} " for x in values) + "|")
    if search:
        lines += ["", "## Where the curves cross", ""]
        lines += [f"* {name}: {line}." for name, line in crossed(found).items()]
    return "\n".join(lines) + "\n"


def crossed(found: Ablation) -> dict[str, str]:
    """Compare the network with selective search, figure by figure."""
    ours, theirs = found.results[FULL], found.results[SEARCH]
    return {
        name: crossings(found.counts, ours.figure(name), theirs.figure(name))
        for name in FIGURES
    }


def as_json(found: Ablation) -> dict[str, Any]:
    """Gather everything that was measured."""
    return {
        "images": found.images,
        "skipped": found.skipped,
        "counts": found.counts,
        "iou_thresholds": IOU_THRESHOLDS,
        "pre_nms": found.pre_nms,
        "selective_search": found.mode,
        "milliseconds": {
            "network": found.network,
            "proposals": found.proposals,
        },
        "variants": {
            name: {
                "boxes": round(result.boxes, 1),
                "milliseconds": round(result.milliseconds, 3),
                "AR": {
                    size: np.round(result.recall.average[i].astype(float), 4).tolist()
                    for i, size in enumerate(AREA_NAMES)
                },
                "recall": np.round(result.recall.recall[0].astype(float), 4).tolist(),
            }
            for name, result in found.results.items()
        },
        "crossings": crossed(found) if SEARCH in found.results else None,
    }


def draw(file: Path, found: Ablation) -> None:
    """Draw what each part does: AR against the number of proposals."""
    names = list(found.results)
    groups = {
        "parts of the network": [
            n for n in names if n in (FULL, SEARCH) or n.startswith("without")
        ],
        "anchors": [FULL, *(n for n in names if n.endswith("alone"))],
        "NMS": [FULL, "without NMS", *(n for n in names if n.startswith("NMS at"))],
    }
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for ax, (title, group) in zip(panels, groups.items(), strict=True):
        curves = {n: found.results[n].figure("AR").tolist() for n in group}
        plotting.plot_recall(found.counts, curves, ax=ax)
        ax.set_title(title)
        _finish(ax, found, ylabel="AR" if ax is panels[0] else "")
    best = max(r.figure("AR").max() for r in found.results.values())
    panels[0].set_ylim(0, 1.05 * max(best, 0.01))
    figure.savefig(file, dpi=90)


def draw_recall(file: Path, found: Ablation) -> None:
    """Draw the network beside selective search."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rivals = {"RPN": FULL, SEARCH: SEARCH}
    rivals = {name: v for name, v in rivals.items() if v in found.results}
    few = [n for n in (300, 2000) if n in found.shown] or [found.shown[-1]]
    for color, (name, variant) in zip(plotting.COLORS, rivals.items(), strict=False):
        result = found.results[variant]
        for iou, style in (("IoU 0.5", "-"), ("IoU 0.7", "--")):
            recall, label = result.figure(f"recall at {iou}"), f"{name}, {iou}"
            left.plot(found.counts, recall, style, color=color, label=label)
        for n, style in zip(few, ("-", "--"), strict=False):
            recall = result.recall.recall[0, found.counts.index(n)]
            label = f"{name}, {n:,} proposals"
            right.plot(IOU_THRESHOLDS, recall, style, color=color, label=label)
    left.set_ylim(0, 1)
    left.grid(alpha=0.3)
    right.set(xlabel="IoU threshold", ylabel="recall", xlim=(0.5, 0.95), ylim=(0, 1))
    right.grid(alpha=0.3)
    _finish(left, found, ylabel="recall")
    right.legend(**BELOW)
    figure.savefig(file, dpi=100)


BELOW: dict[str, Any] = dict(
    loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize=9
)
"""Where a legend hides no curve."""


def _finish(ax, found: Ablation, *, ylabel: str) -> None:
    """Label an axis of numbers of proposals."""
    ax.set(xscale="log", xlabel="proposals an image", ylabel=ylabel)
    ax.set_xlim(1, found.counts[-1])
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.legend(**BELOW)
