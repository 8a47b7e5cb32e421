"""Where a trained network loses the objects of a data set: `evaluate --funnel`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.config import DataConfig
from experiments.data import eval_batches, load_objects
from experiments.progress import Progress
from rpn_jax import plotting
from rpn_jax.analysis import STAGES, Losses, batch_funnel, losses, stages_passed
from rpn_jax.data import Source, load_image
from rpn_jax.evaluation import AREA_NAMES, AREA_RANGES, IOU_THRESHOLDS
from rpn_jax.faster_rcnn import FasterRCNN, first_stage
from rpn_jax.plotting.style import add_legend, show_image
from rpn_jax.rpn import RPN

SHOWN = (0.5, 0.7)
"""IoUs that tables are printed for; the json holds all of COCO's."""

LEGEND = """\
anchor: objects that an anchor reaches by that IoU; matched: that an anchor learns
lost at: the first stage whose boxes hold none with that IoU: decoded, the boxes of all
anchors; top_k, those that score best; filtered, large and sure enough; nms, those it
keeps; cap, the best of these, as many as are returned. What is lost at the five stages
and what is found add up to the objects."""


class Found(NamedTuple):
    """What came near each object that counts, in the order of the images.

    Attributes:
        row: `[N]`, the record of each.
        objects: `[N, 4]` xyxy, original pixels.
        areas: `[N]`, square pixels of the original image, as annotated.
        iou: `[N, S]`, see `rpn_jax.analysis.Funnel`.
        boxes: `[N, S, 4]` xyxy, original pixels.
        anchor_iou: `[N]`.
        positives: `[N]`.
        skipped: images that could not be read; their objects are not among these.
    """

    row: np.ndarray
    objects: np.ndarray
    areas: np.ndarray
    iou: np.ndarray
    boxes: np.ndarray
    anchor_iou: np.ndarray
    positives: np.ndarray
    skipped: int


def follow(
    model: RPN | FasterRCNN, params: Any, source: Source, data: DataConfig, batch: int
) -> Found:
    """Follow every object of a source from the anchors to the proposals."""
    objects, rows = load_objects(source, data.on_bad)
    outputs_of, convention = first_stage(model), model.config.convention

    @jax.jit
    def near(params, batch, boxes, valid):
        scales = batch.scales[:, None, np.array([1, 0, 1, 0])]
        found = batch_funnel(
            outputs_of(params, batch.images, batch.image_sizes),
            batch.image_sizes,
            batch.scales.mean(axis=1),
            boxes * scales,
            valid,
            convention,
        )
        return found._replace(boxes=found.boxes / scales[:, None])

    progress, done, columns = Progress("images followed"), 0, []
    batches = eval_batches(source, data, batch=batch)
    for images in batches:
        at = np.array([rows[int(i)] for i in np.asarray(images.image_ids)])
        counts = objects.valid[at] & ~objects.ignore[at]
        found = jax.device_get(near(params, images, objects.boxes[at], counts))
        row = np.broadcast_to(at[:, None], counts.shape)
        every = (row, objects.boxes[at], objects.areas[at], *found)
        columns.append([x[counts] for x in every])
        done += int((at < len(source)).sum())
        progress(done, len(source))
    batches.close()
    joined = (np.concatenate(x) for x in zip(*columns, strict=True))
    return Found(*joined, skipped=len(source) - done)


def count(found: Found) -> dict[float, dict[str, Losses]]:
    """Count what was lost at each IoU, by size."""
    group = {
        name: (found.areas >= low) & (found.areas <= high)
        for name, (low, high) in zip(AREA_NAMES, AREA_RANGES, strict=True)
    }
    return {
        threshold: {
            name: losses(
                found.iou[g], found.anchor_iou[g], found.positives[g], threshold
            )
            for name, g in group.items()
        }
        for threshold in IOU_THRESHOLDS
    }


def table(counts: dict[str, Losses], threshold: float) -> str:
    """Lay the counts at one IoU out as text, a line a size."""
    head = ("objects", "anchor", "matched", *STAGES, "found")
    name = f"IoU {threshold:g}"
    above = "lost at".rjust(12 + 3 * 9 + 9)
    lines = [above, name.ljust(12) + "".join(f"{h:>9}" for h in head)]
    for size, c in counts.items():
        cells = (c.objects, c.anchor, c.matched, *c.lost, c.found)
        lines.append(size.ljust(12) + "".join(f"{x:>9,}" for x in cells))
    return "\n".join(lines)


def report(folder: Path, found: Found, source: Source) -> None:
    """Print the tables; write `funnel.json` and, of what was lost, `funnel.png`."""
    counts = count(found)
    values = {
        "stages": STAGES,
        "iou": {
            f"{threshold:g}": {name: c._asdict() for name, c in by_size.items()}
            for threshold, by_size in counts.items()
        },
        "skipped": found.skipped,
    }
    file = folder / "funnel.json"
    file.write_text(json.dumps(values, indent=1) + "\n")
    for threshold in counts:
        if any(abs(threshold - shown) < 1e-6 for shown in SHOWN):
            print(f"\n{table(counts[threshold], threshold)}")
    print(f"\n{LEGEND}")
    if found.skipped:
        print(
            f"images skipped because they cannot be read: {found.skipped}; their "
            "objects are not counted here"
        )
    worst = worst_cases(found, SHOWN[0])
    if len(worst):
        draw(file.with_suffix(".png"), found, worst, source, SHOWN[0])
        print(f"funnel {file} and {file.with_suffix('.png')}")
    else:
        print(f"funnel {file}; nothing was lost at IoU {SHOWN[0]:g}")


def worst_cases(found: Found, threshold: float, most: int = 12) -> np.ndarray:
    """Choose lost objects to show: of each stage those that ended farthest from found.

    Returns:
        Their indices, by stage; the stages take turns until there are enough.
    """
    passed = stages_passed(found.iou, threshold)
    order = np.argsort(found.iou[:, -1], kind="stable")
    queues = [order[passed[order] == stage] for stage in range(len(STAGES))]
    turns = [(turn, s, i) for s, q in enumerate(queues) for turn, i in enumerate(q)]
    chosen = sorted(turns)[:most]
    return np.array([i for _, _, i in sorted(chosen, key=lambda x: x[1])], np.int64)


def draw(
    file: Path,
    found: Found,
    worst: Sequence[int] | np.ndarray,
    source: Source,
    threshold: float,
) -> None:
    """Draw lost objects, with the last box that would have found each."""
    columns = min(4, len(worst))
    lines = -(-len(worst) // columns)
    size = (max(3.2 * columns, 5), 3.5 * lines + 0.5)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.1))
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes[len(worst) :]:
        ax.set_axis_off()
    passed = stages_passed(found.iou, threshold)
    for ax, i in zip(axes, worst, strict=False):
        stage, iou, boxes = passed[i], found.iou[i], found.boxes[i]
        image = load_image(source[int(found.row[i])])
        show_image(image, ax)
        layers = [("object", plotting.GREEN, "-", found.objects[i])]
        if stage:
            before = boxes[stage - 1]
            layers.append(("best box before", plotting.ORANGE, "--", before))
        if iou[-1] > 0:
            layers.append(("nearest proposal", plotting.BLUE, ":", boxes[-1]))
        for label, color, style, box in layers:
            line = {"color": color, "linestyle": style, "linewidth": 2}
            plotting.draw_boxes(box, ax=ax, label=label, **line)
        before = f"IoU {iou[stage - 1]:.2f} before, " if stage else "IoU "
        title = f"lost at {STAGES[stage]}\n{before}{iou[-1]:.2f} at the end"
        ax.set_title(title, fontsize=9)
        _zoom(ax, np.array([box for *_, box in layers]), image.shape)
    add_legend(figure)
    figure.savefig(file, dpi=100)


def _zoom(ax, boxes: np.ndarray, shape: tuple[int, ...], least: float = 64.0) -> None:
    """Show the square about some boxes, at least `least` pixels wide."""
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    side = max(least, 1.5 * (high - low).max())
    size = np.array([shape[1], shape[0]])
    room = size - side  # where there is none, the image is in the middle
    least_corner, most_corner = np.minimum(0, room / 2), np.maximum(room, room / 2)
    x, y = np.clip((low + high - side) / 2, least_corner, most_corner)
    ax.set(xlim=(x, x + side), ylim=(y + side, y))
