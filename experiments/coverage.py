"""Say which objects the anchors of a config cover, before anything is trained.

usage: python -m experiments.coverage CONFIG [--split val] [--design] [--out DIR]
       python -m experiments.coverage CONFIG --box 12x30 --image 800x800

CONFIG names a file of `experiments/configs`, whose data, image size and anchors are
taken; `--data.field` and `--model.field` change them. Annotations are read, images are
not. With --box (width x height in pixels, as --image) one hypothetical object is looked
at, at many places. With --design sizes and ratios are proposed from the split train,
as many as there are, and measured on the split val, or on every fifth image of train
where both are the same. Writes `coverage.json` and `coverage.png` to --out.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.config import (
    DataConfig,
    UsageError,
    config_names,
    exit_with,
    load_config,
    make_folder,
    use_compilation_cache,
)
from experiments.data import open_source
from experiments.progress import Progress
from rpn_jax import plotting
from rpn_jax.analysis import (
    LEGEND,
    THRESHOLDS,
    Coverage,
    Layout,
    Objects,
    advise,
    anchor_layout,
    cover,
    design_anchors,
    groups,
    heat_map,
    matched_positives,
    read_objects,
    shares,
    shifted_objects,
    table,
    try_additions,
)
from rpn_jax.faster_rcnn import FasterRCNNConfig
from rpn_jax.rpn import RPNConfig, rpn

MATCHED = 500
"""Images in which all anchors are matched."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to look at, and where to write.

    Attributes:
        data: images and boxes, and the size that images get.
        model: the network whose anchors they are.
        split: the part of the data to look at.
        box: WIDTHxHEIGHT of one hypothetical object, pixels; no data is read.
        image: WIDTHxHEIGHT of its image.
        design: propose sizes and ratios from the data.
        out: folder for `coverage.json` and `coverage.png`.
    """

    data: DataConfig = DataConfig()
    model: RPNConfig = RPNConfig()
    split: Literal["train", "val"] = "train"
    box: str | None = None
    image: str | None = None
    design: bool = False
    out: Path = Path("coverage")


class Found(NamedTuple):
    """What anchors there are for some objects."""

    objects: Objects
    layout: Layout
    coverage: Coverage
    groups: dict[str, dict[str, np.ndarray]]
    threshold: float


def main(argv: Sequence[str]) -> int:
    """Measure coverage as the command line says; return the exit code."""
    prog = "python -m experiments.coverage CONFIG"
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        tyro.cli(Options, args=["--help"], prog=prog, description=__doc__)
    if name.startswith("-"):
        known = ", ".join(config_names())
        raise UsageError(f"a config ({known}) is wanted before the options: {prog}")
    config = load_config(name)
    defaults = Options(data=config.data, model=config.rpn)
    options = tyro.cli(Options, default=defaults, args=rest, prog=f"{prog} {name}")
    try:
        rpn(options.model)
    except ValueError as error:
        raise UsageError(f"--model: {error}") from error
    use_compilation_cache()
    make_folder(options.out)
    if options.box or options.image:
        results = one_box(options)
    else:
        detector = isinstance(config.model, FasterRCNNConfig)
        results = data_set(options, "--model.rpn" if detector else "--model")
    file = options.out / "coverage.json"
    file.write_text(json.dumps(_plain(results), indent=1) + "\n")
    print(f"\nwritten: {file} and {file.with_suffix('.png')}")
    return 0


def data_set(options: Options, prefix: str) -> dict[str, Any]:
    """Look at the objects of a split; return what to write.

    Args:
        options: which, and what to look at.
        prefix: of the options that set the anchors in training.
    """
    model = options.model
    objects = load_objects(options.data, options.split)
    print(
        f"{len(objects.boxes):,} objects in {len(objects.image_sizes):,} images; "
        f"{objects.ignored:,} crowd or difficult ones are left out"
    )
    print(describe(model))
    found = measure(objects, model)
    for title, rows in found.groups.items():
        print(f"\n{table(found.coverage, title, rows, found.threshold)}")
    print(f"\n{LEGEND.format(threshold=found.threshold)}")
    matching = match(found, model)
    advice = advise(objects, found.coverage, model)
    print("\n" + "\n".join(advice))
    draw(options.out / "coverage.png", found)
    results = {**summary(found), "matching": matching, "advice": advice}
    if options.design:
        results["design"] = design(objects, options, prefix)
    return results


def load_objects(data: DataConfig, split: str) -> Objects:
    """Read the annotations of a split.

    Raises:
        UsageError: the data is not there, is broken, or holds no object.
    """
    source = open_source(data, split, images=False)
    progress = Progress("images read")
    objects = read_objects(source, data.resize, data.padded_sizes, progress)
    if not len(objects.boxes):
        raise UsageError(f"there are no objects in the data of --data.{split}")
    return objects


def measure(objects: Objects, model: RPNConfig) -> Found:
    """Cover the objects, and group them."""
    layout, targets = anchor_layout(model, objects.buckets), model.convention.targets
    coverage = cover(objects, layout, targets, Progress("objects compared"))
    named = groups(objects, coverage, layout)
    return Found(objects, layout, coverage, named, targets.high_threshold)


def match(found: Found, model: RPNConfig) -> dict[str, Any]:
    """Match the anchors of some images, and print what the objects get.

    The share of objects that get an anchor is the ceiling of recall.
    """
    objects = found.objects
    images = len(objects.image_sizes)
    chosen = np.zeros(images, bool)
    chosen[np.linspace(0, images - 1, min(MATCHED, images)).astype(np.int64)] = True
    part = objects.of_images(chosen)
    positives = matched_positives(part, model, Progress("images matched"))
    alone = (~found.coverage.lost)[chosen[objects.image]]
    result = {
        "images": int(chosen.sum()),
        "objects": len(positives),
        "ceiling": np.mean(positives > 0),
        "lost_to_others": np.mean((positives == 0) & alone),
        "positives_an_object": np.mean(positives),
    }
    print(
        f"\nAll anchors of {result['images']:,} images matched: "
        f"{result['ceiling']:.1%} of the {len(positives):,} objects get an anchor, "
        f"{result['positives_an_object']:.1f} on average: the ceiling of recall if all "
        f"offsets were perfect. {result['lost_to_others']:.1%} get none because theirs "
        "fit another object better."
    )
    return result


def design(objects: Objects, options: Options, prefix: str) -> dict[str, Any]:
    """Propose sizes and ratios; print and return what they gain on other objects."""
    data, model = options.data, options.model
    if data.train == data.val:
        held_out = np.arange(len(objects.image_sizes)) % 5 == 4
        train, val = objects.of_images(~held_out), objects.of_images(held_out)
        where = "every fifth image"
    else:
        train, val = (
            objects if split == options.split else load_objects(data, split)
            for split in ("train", "val")
        )
        where = "the split val"
    if not len(train.boxes) or not len(val.boxes):
        raise UsageError(
            f"--design wants objects to learn from and others, in {where}, to measure: "
            f"there are {len(train.boxes)} and {len(val.boxes)}"
        )
    print(f"\nDesign from {len(train.boxes):,} objects:", flush=True)
    found = design_anchors(train, model)
    now, then = (measure(val, config) for config in (model, found))
    print(describe(found))
    for name, one in (("as they are", now), ("as designed", then)):
        print(f"\nOn {where}, anchors {name}:")
        title, rows = next(iter(one.groups.items()))
        print(table(one.coverage, title, rows, one.threshold))
    before, after = (one.coverage.covered.mean() for one in (now, then))
    print(
        f"\nCovered at IoU {now.threshold:g}: {before:.1%} of the objects with the "
        f"anchors as they are, {after:.1%} as designed."
    )
    flags = command_line(found, prefix)
    print(
        f"\nTo use them, in an RPNConfig:\n\n    sizes={found.sizes},\n"
        f"    ratios={found.ratios},\n\nor with experiments.train:\n\n    {flags}"
    )
    return {
        "sizes": found.sizes,
        "ratios": found.ratios,
        "command_line": flags,
        "held_out": where,
        "now": summary(now)["groups"],
        "designed": summary(then)["groups"],
    }


def command_line(model: RPNConfig, prefix: str) -> str:
    """Write sizes and ratios as options of `experiments.train`."""
    words = [
        f"{prefix}.sizes.{level} " + " ".join(f"{s:g}" for s in sizes)
        for level, sizes in enumerate(model.sizes)
    ]
    words.append(f"{prefix}.ratios " + " ".join(f"{r:g}" for r in model.ratios))
    return " ".join(words)


def describe(model: RPNConfig) -> str:
    """Say what anchors a network has."""
    ratios = ", ".join(f"{r:g}" for r in model.ratios)
    return "\n".join(
        f"stride {stride}: sizes {', '.join(f'{s:g}' for s in sizes)} px, "
        f"height / width {ratios}"
        for stride, sizes in zip(model.strides, model.sizes, strict=True)
    )


def one_box(options: Options) -> dict[str, Any]:
    """Look at one hypothetical object at many places; return what to write."""
    if not (options.box and options.image) or options.design:
        raise UsageError("--box and --image belong together, and without --design")
    data, model = options.data, options.model
    box, image = _size(options.box, "--box"), _size(options.image, "--image")
    objects = shifted_objects(box, image, data.resize, data.padded_sizes, model.strides)
    found = measure(objects, model)
    coverage, threshold = found.coverage, found.threshold
    width, height = objects.boxes[0, 2:] - objects.boxes[0, :2]
    image_height, image_width = objects.image_sizes[0]
    print(
        f"A box of {options.box} in an image of {options.image} becomes {width:.1f} x "
        f"{height:.1f} px of {image_width} x {image_height} (width x height)."
    )
    print(describe(model))
    rows = {"all": np.ones(len(coverage.iou), bool)}
    print("\n" + table(coverage, "places within a stride", rows, threshold))
    print(f"\n{LEGEND.format(threshold=threshold)}\n")
    iou = coverage.iou
    advice = [
        f"Its highest IoU with any anchor is {iou.max():.3f} at the best place, "
        f"{iou.mean():.3f} on average, {iou.min():.3f} at the worst; it reaches "
        f"{threshold:g} at {coverage.covered.mean():.0%} of the places."
    ]
    side, smallest = np.sqrt(width * height), min(map(min, model.sizes))
    if side**2 < threshold * smallest**2:  # too small even where it lies best
        advice.append(
            f"The square root of its area is {side:.1f} px, that of the smallest "
            f"anchors {smallest:g}: it needs smaller anchors, or an image "
            f"{smallest / side:.1f} times as large."
        )
    advice += try_additions(objects, coverage, model, "places")
    print("\n".join(advice))
    draw_places(options.out / "coverage.png", found)
    extremes = {"best": iou.max(), "mean": iou.mean(), "worst": iou.min()}
    return {**summary(found), "iou": extremes, "advice": advice}


def _size(text: str, option: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT; return (height, width)."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"{option} {text}: WIDTHxHEIGHT is wanted, such as 12x30")
    return int(height), int(width)


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
    right.legend(framealpha=0.9, edgecolor="none")  # the line is behind it
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


def _plain(value: Any) -> Any:
    """Turn arrays, tuples and NaN into what JSON knows."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value


if __name__ == "__main__":
    exit_with(main)
