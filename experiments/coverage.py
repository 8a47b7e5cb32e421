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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from experiments.config import (
    DataConfig,
    UsageError,
    config_names,
    exit_with,
    load_config,
    make_folder,
    use_compilation_cache,
)
from experiments.coverage_report import (
    Found,
    as_json,
    describe,
    draw,
    draw_places,
    summary,
)
from experiments.data import open_source
from experiments.progress import Progress
from rpn_jax.analysis import (
    LEGEND,
    Objects,
    advise,
    anchor_layout,
    cover,
    design_anchors,
    groups,
    matched_positives,
    read_objects,
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
    file.write_text(json.dumps(as_json(results), indent=1) + "\n")
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


if __name__ == "__main__":
    exit_with(main)
