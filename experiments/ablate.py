"""Replay on a trained network what the tables of the Faster R-CNN paper ask.

usage: python -m experiments.ablate MODEL [--data.field value ...] [--out DIR]

MODEL is a run's folder (its best checkpoint, else its last) or a weight file. The data
is what the run was evaluated on; `--data.val` and its fellows name other data. Each
image goes through the network once, by itself; what it gives becomes proposals in many
ways: without NMS, without scores, without regression, with anchors of one size or one
ratio, with NMS at other thresholds, and beside them those of selective search. Writes
`ablation.md`, `ablation.json`, `ablation.png` and, of the network beside selective
search, `recall.png` to the folder of the model, or to --out.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from experiments.ablation_report import (
    Ablation,
    Result,
    as_json,
    draw,
    draw_recall,
    markdown,
)
from experiments.config import (
    DataConfig,
    UsageError,
    classes_of,
    data_of,
    exit_with,
    make_folder,
    open_model,
    take_model,
    use_compilation_cache,
)
from experiments.data import Objects, eval_batches, load_objects, open_source
from experiments.progress import Progress
from experiments.variants import (
    FULL,
    SEARCH,
    Image,
    Proposed,
    proposer,
    selective_search,
    variants,
)
from rpn_jax.data import Source
from rpn_jax.evaluation import RecallTotals, matched_recall
from rpn_jax.faster_rcnn import FasterRCNNConfig, first_stage, make_network
from rpn_jax.objective import RPNOutputs
from rpn_jax.ops.losses import foreground_logit
from rpn_jax.rpn import RPNConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure on, how many proposals, and where to write.

    Attributes:
        data: images and boxes; its `val` is measured on.
        counts: numbers of proposals an image to report.
        pre_nms: best anchors a level that go on to NMS; the network's own number
            would leave too few for the larger counts.
        selective_search: its mode; "off" leaves it out.
        seed: of the random order.
        out: folder for the results.
    """

    data: DataConfig = DataConfig()
    counts: tuple[int, ...] = (50, 100, 300, 1000, 2000, 6000)
    pre_nms: int = 6000
    selective_search: Literal["fast", "quality", "off"] = "fast"
    seed: int = 0
    out: Path = Path()


class Timer:
    """Runs functions and remembers how long each took."""

    def __init__(self):
        self._seconds: dict[Any, list[float]] = {}

    def __call__(self, name: Any, function: Callable, *args, warm: bool = False) -> Any:
        """Run it until its result is there.

        Args:
            name: to remember it by.
            function: what to run.
            *args: of it.
            warm: run it once before, so that what ran last does not slow it.
        """
        if warm:
            jax.block_until_ready(function(*args))
        start = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        self._seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def milliseconds(self, name: Any) -> float:
        """Return the median; the first call compiles, so it does not count."""
        seconds = self._seconds[name]
        return 1000 * float(np.median(seconds[1:] or seconds))


def ablate(
    model: RPNConfig | FasterRCNNConfig, params: Any, source: Source, options: Options
) -> Ablation:
    """Make proposals for every image in every way, and count what they find."""
    shown, most = tuple(sorted(options.counts)), max(options.counts)
    rpn = model.rpn if isinstance(model, FasterRCNNConfig) else model
    ways = variants(rpn, pre_nms=options.pre_nms, most=most)
    if search := selective_search(options.selective_search, most):
        ways[SEARCH] = search
    so_many = {
        n: proposer(rpn.convention, pre_nms_top_n=options.pre_nms, post_nms_top_n=n)
        for n in shown
    }
    curve = np.unique(np.geomspace(1, most, 40).round().astype(int))
    counts = sorted({*curve.tolist(), *shown})

    @jax.jit
    def count(totals: RecallTotals, found: Proposed, scales, objects: Objects):
        boxes, rows = found.boxes / scales, objects.agnostic
        hits = matched_recall(boxes, found.valid, *rows, max_proposals=counts)
        return totals.add(hits)

    totals = dict.fromkeys(ways, RecallTotals.zeros(counts=len(counts)))
    boxes, timer, images = dict.fromkeys(ways, 0), Timer(), 0
    progress = Progress("images")
    for image, objects, scales in each_image(model, params, source, options, timer):
        images += 1
        for name, way in ways.items():
            args = way.prepare(image)
            found = timer(name, way.propose, *args, warm=name != SEARCH)
            totals[name] = count(totals[name], found, scales, objects)
            boxes[name] += int(found.valid.sum())
        for n, propose in so_many.items():
            timer(n, propose, *ways[FULL].prepare(image), warm=True)
        progress(images, len(source))
    if not images:
        raise UsageError("none of the images can be read")
    results = {
        name: Result(
            jax.device_get(totals[name].summarize()),
            boxes[name] / images,
            timer.milliseconds(name),
        )
        for name in ways
    }
    return Ablation(
        counts,
        shown,
        results,
        timer.milliseconds("network"),
        {n: timer.milliseconds(n) for n in shown},
        images,
        len(source) - images,
        options.pre_nms,
        options.selective_search,
    )


def each_image(
    model: RPNConfig | FasterRCNNConfig,
    params: Any,
    source: Source,
    options: Options,
    timer: Timer,
) -> Iterator[tuple[Image, Objects, np.ndarray]]:
    """Run the network on each image, by itself, and give its objects.

    Yields:
        Of each image that can be read: the image; its objects in original pixels; and
        by what to divide boxes to bring them there.
    """
    objects, rows = load_objects(source, options.data.on_bad)
    apply = jax.jit(first_stage(make_network(model)))
    softmax = model.convention.loss.objectness == "softmax"
    params, key = jax.device_put(params), jax.random.key(options.seed)
    batches = eval_batches(source, options.data, batch=1)
    for batch in batches:
        if batch.image_ids[0] < 0:  # it fills up for one that was skipped
            continue
        outputs = timer("network", apply, params, batch.images, batch.image_sizes)
        anchors, logits, deltas = jax.tree.map(
            lambda x: x[0], outputs._replace(anchors=())
        )
        if softmax:
            logits = tuple(foreground_logit(x) for x in logits)
        row = rows[int(batch.image_ids[0])]
        size, scales = batch.image_sizes[0], np.asarray(batch.scales[0])
        height, width = size
        image = Image(
            np.asarray(batch.images[0])[:height, :width],
            size,
            scales.mean(),
            RPNOutputs(outputs.anchors, logits, deltas),
            jax.random.fold_in(key, row),
        )
        yield image, Objects(*(x[row] for x in objects)), scales[[1, 0, 1, 0]]
    batches.close()


def main(argv: Sequence[str]) -> int:
    """Replay as the command line says; return the exit code."""
    prog = "python -m experiments.ablate MODEL"
    path = take_model(argv, Options, prog, __doc__)
    model = open_model(path)
    defaults = Options(
        data=data_of(model),
        out=path if path.is_dir() else path.parent,
    )
    options = tyro.cli(Options, default=defaults, args=argv[1:], prog=prog)
    if not options.counts or min(options.counts) < 1 or options.pre_nms < 1:
        raise UsageError("--counts and --pre-nms want numbers of at least 1")
    source = open_source(options.data, "val", classes=classes_of(model.config))
    use_compilation_cache()
    make_folder(options.out)
    found = ablate(model.config, model.params, source, options)
    file = options.out / "ablation.md"
    text = markdown(found)
    file.write_text(text)
    values = json.dumps(as_json(found))
    file.with_suffix(".json").write_text(values + "\n")
    draw(file.with_suffix(".png"), found)
    draw_recall(options.out / "recall.png", found)
    print(text)
    print(f"written: {file}, ablation.json, ablation.png and recall.png beside it")
    return 0


if __name__ == "__main__":
    exit_with(main)
