"""Measure the recall of a trained network, and the precision of a detector.

usage: python -m experiments.evaluate MODEL [--data.field value ...] [--funnel]
                                             [--out DIR]

MODEL is a run's folder (its best checkpoint, else its last) or a weight file. The data
is what the run was evaluated on; `--data.val` and its fellows name other data. Writes
`recall.json`, `recall.png` and a detector's `detections.json` (COCO results) to the
folder of the model, or to --out. --funnel says at which stage objects were lost that no
proposal meets, and writes `funnel.json` and, with the worst cases, `funnel.png`.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.config import (
    DataConfig,
    EvalConfig,
    UsageError,
    as_one_of,
    classes_of,
    data_of,
    exit_with,
    make_folder,
    open_model,
    take_model,
    use_compilation_cache,
)
from experiments.data import Objects, eval_batches, load_objects, open_source
from experiments.funnel import follow, report
from rpn_jax import plotting
from rpn_jax.data import Source, coco_results, load_image
from rpn_jax.detections import Detections
from rpn_jax.evaluation import (
    AREA_NAMES,
    IOU_THRESHOLDS,
    MAX_PROPOSALS,
    RecallTotals,
    average_precision,
    match_detections,
    match_voc_detections,
    matched_recall,
    precision_metrics,
    recall_metrics,
    voc_average_precision,
)
from rpn_jax.faster_rcnn import FasterRCNN, make_network
from rpn_jax.plotting.style import add_legend
from rpn_jax.rpn import RPN
from rpn_jax.training.hosts import HostsConfig
from rpn_jax.training.mesh import data_mesh, gather, put_batch, replicated


class Example(NamedTuple):
    """One image, its proposals and its objects, boxes xyxy in original pixels.

    A detector's has its detections, with scores and names, instead of proposals.
    """

    image: np.ndarray
    boxes: np.ndarray
    gt_boxes: np.ndarray
    scores: np.ndarray | None = None
    names: list[str] | None = None


class Evaluation(NamedTuple):
    """What was measured; -1 stands where there is no object of a size.

    Attributes:
        figures: by name, as `recall_metrics` gives them: `AR@k` and `AR@k_size`, recall
            with the k best proposals an image averaged over IoU 0.5 to 0.95; `R50@k`
            and `R50@k_size`, recall at IoU 0.5. Of a detector also COCO's `AP`, `AP50`,
            `AP75` and `AP_size`, and PASCAL VOC's, `VOC AP` (area) and `VOC AP 11`.
        curves: k -> recall at each of `IOU_THRESHOLDS`.
        examples: the first images.
        kept: proposals that the network keeps of an image at most.
        skipped: images that could not be read; their objects, where they are known,
            count as missed.
        results: a detector's detections, as COCO results.
    """

    figures: dict[str, float]
    curves: dict[int, list[float]]
    examples: list[Example]
    kept: int
    skipped: int
    results: list[dict[str, Any]]


class Evaluator:
    """Measures a network on one source; compiled once, used after any step.

    Args:
        model: the network.
        source: records to measure on.
        data: how they become batches.
        config: how many at a time.
        mesh: devices, each of which takes its part of a batch.
    """

    def __init__(
        self,
        model: RPN | FasterRCNN,
        source: Source,
        data: DataConfig,
        config: EvalConfig,
        mesh: jax.sharding.Mesh,
    ):
        self._source, self._data, self.mesh = source, data, mesh
        self._batch = -(-config.batch // mesh.size) * mesh.size
        self._examples = config.examples
        self._objects, self._row = load_objects(source, data.on_bad)
        self._detects = isinstance(model, FasterRCNN)

        def count(params, batch, objects: Objects, totals: RecallTotals):
            find = {"image_scales": batch.scales.mean(axis=1)}
            to_original = batch.scales[:, None, np.array([1, 0, 1, 0])]
            images = (params, batch.images, batch.image_sizes)
            if isinstance(model, FasterRCNN):
                found, detections = model.find(*images, **find)
                detections = detections._replace(boxes=detections.boxes / to_original)
            else:
                found, detections = model.propose(*images, **find), None
            boxes = found.boxes / to_original
            counts = jax.vmap(matched_recall)(boxes, found.valid, *objects.agnostic)
            totals = totals.add(counts)
            return totals, (boxes, found.valid), detections, batch.image_ids, objects

        self._count = jax.jit(count, out_shardings=replicated(mesh))
        self._precision = Precision(source)

    def __call__(self, params: Any) -> Evaluation:
        """Propose, and detect, on every image and measure."""
        first, kept = {}, 0
        # Where the next ones will lie, or the second batch would compile anew.
        totals = jax.device_get(RecallTotals.zeros())
        totals = jax.device_put(totals, replicated(self.mesh))
        params = gather(self.mesh, params)
        unread = set(range(len(self._source)))
        batches = eval_batches(self._source, self._data, batch=self._batch)
        self._precision.clear()
        with jax.set_mesh(self.mesh):  # each device proposes for its own images
            for batch in batches:
                rows = [self._row[int(i)] for i in batch.image_ids]
                objects = Objects(*(x[rows] for x in self._objects))
                placed = put_batch(self.mesh, (batch, objects))
                # What comes back is that of the whole batch, on every process.
                totals, found, *rest = self._count(params, *placed, totals)
                detections, ids, objects = jax.device_get(rest)
                rows = [self._row[int(i)] for i in ids]
                unread.difference_update(rows)
                kept = found[1].shape[1]
                if detections is not None:
                    detections = detections._replace(
                        valid=detections.valid & (ids >= 0)[:, None]
                    )
                    self._precision.add(ids, detections, objects)
                if len(first) < self._examples:
                    shown = detections or found
                    shown = zip(*jax.device_get(tuple(shown)), strict=True)
                    first |= dict(zip(rows, shown, strict=True))
        batches.close()
        totals = jax.device_get(totals)
        if unread:
            totals = self._add_missed(totals, sorted(unread))
        result = totals.summarize()
        recall = np.asarray(result.recall[0]).tolist()
        figures = recall_metrics(result)
        if self._detects:
            figures |= self._precision.figures()
        return Evaluation(
            figures,
            dict(zip(MAX_PROPOSALS, recall, strict=True)),
            self._show(first),
            kept,
            len(unread),
            self._precision.results,
        )

    def _add_missed(self, totals: RecallTotals, rows: list[int]) -> RecallTotals:
        """Count the objects of images that gave no proposals."""
        objects = Objects(*(x[rows] for x in self._objects))
        none = np.zeros((len(rows), 1), bool)
        boxes = np.zeros((len(rows), 1, 4), np.float32)
        if self._detects:
            zeros = np.zeros((len(rows), 1), np.float32)
            nothing: Any = (boxes, zeros, zeros.astype(np.int32) - 1, none)
            nothing = Detections(*nothing)
            self._precision.add(np.full(len(rows), -1), nothing, objects)
        count = jax.jit(jax.vmap(matched_recall))
        return totals.add(count(boxes, none, *objects.agnostic))

    def _show(self, found: dict[int, Any]) -> list[Example]:
        rows = [row for row in found if row < len(self._source)][: self._examples]
        return [self._example(row, found[row]) for row in rows]

    def _example(self, row: int, found: Any) -> Example:
        record, boxes, valid = self._source[row], found[0], found[-1]
        example = Example(
            load_image(record), boxes[valid], record.boxes[~record.ignore]
        )
        if not self._detects:
            return example
        names = [self._source.classes[label] for label in found[2][valid]]
        return example._replace(scores=found[1][valid], names=names)


class Precision:
    """Collects detections and what they match, image by image.

    Args:
        source: whose classes, and category ids if it has them, are meant.
    """

    def __init__(self, source: Source):
        self._classes = len(source.classes)
        self._category_ids = getattr(source, "category_ids", None)
        self._coco = jax.jit(jax.vmap(match_detections))
        self._voc = jax.jit(jax.vmap(match_voc_detections))
        self.clear()

    def clear(self) -> None:
        """Start again."""
        self._matches, self._voc_matches = [], []
        self.results: list[dict[str, Any]] = []

    def add(self, image_ids: np.ndarray, found: Detections, objects: Objects) -> None:
        """Count a batch; boxes in original pixels."""
        arrays = (*found, objects.boxes, objects.labels, objects.valid, objects.ignore)
        matches = self._coco(*arrays, objects.areas), self._voc(*arrays)
        coco, voc = jax.device_get(matches)
        self._matches.append(coco)
        self._voc_matches.append(voc)
        ids = self._category_ids
        self.results += coco_results(image_ids, *found, category_ids=ids)

    def figures(self) -> dict[str, float]:
        """Compute the average precision of all that was added."""
        count = self._classes
        coco = average_precision(self._matches, num_classes=count)
        coco = precision_metrics(coco)
        figures = {k: v for k, v in coco.items() if k.startswith("AP")}
        for name, method in (("VOC AP", "area"), ("VOC AP 11", "11point")):
            voc = voc_average_precision(
                self._voc_matches, num_classes=count, method=method
            )
            figures[name] = float(voc.mean[0])
        return figures


def table(result: Evaluation) -> str:
    """Lay the figures out as text: a line a number of proposals, a column a size."""
    figures = result.figures
    lines = [" " * 9 + "all" + "".join(f"{name:>9}" for name in AREA_NAMES[1:])]
    for name in [f"AR@{k}" for k in MAX_PROPOSALS] + ["R50@300"]:
        keys = [name, *(f"{name}_{size}" for size in AREA_NAMES[1:])]
        values = [figures[key] for key in keys if key in figures]
        first, *rest = [f"{value:.4f}" if value >= 0 else "-" for value in values]
        # "AR@100 0.1234" whatever the length of the name, for those who look for it.
        lines.append(f"{name} {first}".ljust(15) + "".join(f"{x:<9}" for x in rest))
    precision = {k: v for k, v in figures.items() if "AP" in k}
    lines += [f"{k} {v:.4f}" if v >= 0 else f"{k} -" for k, v in precision.items()]
    if result.kept < max(MAX_PROPOSALS):
        lines.append(f"at most {result.kept} proposals an image are kept")
    if result.skipped:
        lines.append(
            f"images skipped because they cannot be read: {result.skipped}; their "
            "objects, where they are known, count as missed"
        )
    return "\n".join(line.rstrip() for line in lines)


def draw_examples(file: Path, examples: Sequence[Example]) -> None:
    """Draw the best proposals on some images, at least one, and the objects there."""
    figure = Figure(figsize=(4 * len(examples), 4.2), layout="constrained")
    axes = figure.subplots(1, len(examples), squeeze=False)[0]
    for ax, example in zip(axes, examples, strict=True):
        if example.names is not None and example.scores is not None:
            plotting.plot_detections(
                example.image, example.boxes, example.scores, example.names, ax=ax
            )
            continue
        plotting.plot_proposals(
            example.image, example.boxes, gt_boxes=example.gt_boxes, ax=ax
        )
    add_legend(figure)
    figure.savefig(file, dpi=100)


def write_results(folder: Path, result: Evaluation) -> None:
    """Write figures, recall-IoU curves and detections; see the head of this file."""
    values = {
        "figures": result.figures,
        "iou_thresholds": IOU_THRESHOLDS,
        "recall": {f"@{k}": curve for k, curve in result.curves.items()},
    }
    (folder / "recall.json").write_text(json.dumps(values, indent=2) + "\n")
    figure = Figure(figsize=(5, 4), layout="constrained")
    curves = {f"{k} proposals": curve for k, curve in result.curves.items()}
    plotting.plot_recall(IOU_THRESHOLDS, curves, ax=figure.subplots())
    figure.savefig(folder / "recall.png", dpi=120)
    if "AP" in result.figures:  # a detector's
        (folder / "detections.json").write_text(json.dumps(result.results) + "\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsOption:
    """What has to be known before anything else is done.

    Attributes:
        hosts: how several processes find each other.
    """

    hosts: HostsConfig = HostsConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(HostsOption):
    """What to measure on, and where to write.

    Attributes:
        data: images and boxes; its `val` is measured on.
        eval: how recall is measured.
        funnel: tell at which stage of making proposals objects were lost.
        out: folder for `recall.json` and `recall.png`.
    """

    data: DataConfig = DataConfig()
    eval: EvalConfig = EvalConfig()
    funnel: bool = False
    out: Path = Path()


def main(argv: Sequence[str]) -> int:
    """Evaluate as the command line says; return the exit code."""
    prog = "python -m experiments.evaluate MODEL"
    path = take_model(argv, Options, prog, __doc__)
    if {"-h", "--help"} & set(argv):  # before the options of hosts alone are parsed
        take_model(["--help"], Options, prog, __doc__)
    hosts, rest = tyro.cli(HostsOption, args=argv[1:], return_unknown_args=True)
    use_compilation_cache()
    with as_one_of(hosts.hosts):
        return measure(path, rest, prog)


def measure(path: Path, argv: Sequence[str], prog: str) -> int:
    """Measure the model at `path` as the options say; return the exit code."""
    model = open_model(path)
    defaults = Options(
        data=data_of(model),
        out=path if path.is_dir() else path.parent,
    )
    options = tyro.cli(Options, default=defaults, args=argv, prog=prog)
    if options.funnel and jax.process_count() > 1:
        raise UsageError("--funnel follows the objects in one process; start one")
    source = open_source(options.data, "val", classes=classes_of(model.config))
    network = make_network(model.config)
    if jax.process_index() == 0:
        make_folder(options.out)
    evaluate = Evaluator(network, source, options.data, options.eval, data_mesh())
    result = evaluate(model.params)
    if jax.process_index() == 0:
        write_results(options.out, result)
        print(f"curves {options.out / 'recall.json'} and {options.out / 'recall.png'}")
        print(f"{len(source)} images\n{table(result)}")
        if options.funnel:
            batch = options.eval.batch
            found = follow(network, model.params, source, options.data, batch)
            report(options.out, found, source)
    return 0


if __name__ == "__main__":
    exit_with(main)
