"""Take the training steps that torchvision has taken, and compare the losses.

usage: python -m experiments.follow FILE [DOUBLE]

FILE was written by `experiments/peers/follow_torchvision.py`: weights of a detector,
and for each step the images, the objects and the four losses. This library loads the
weights and takes the same steps with its own: proposals, targets, losses, gradients and
updates. Every anchor and every RoI is trained on, for no two random generators agree.
Prints a line a step; the exit code is 1 where a loss differs by more than 1e-3 of it.
DOUBLE is from the same command with `--double`: how far torchvision's float32 is from
its float64 stands beside. No other float32 can be expected to be nearer.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.config import UsageError, exit_with, use_compilation_cache
from rpn_jax.batch import Batch
from rpn_jax.conventions import Convention
from rpn_jax.faster_rcnn import FasterRCNN, FasterRCNNConfig, faster_rcnn
from rpn_jax.pretrained import load
from rpn_jax.training.mesh import data_mesh, gather, put_batch
from rpn_jax.training.optimizer import OptimizerConfig, make_optimizer
from rpn_jax.training.state import create_state
from rpn_jax.training.step import make_train_step

LIMIT = 1e-3
# torchvision's name of each loss, and ours.
PARTS = {
    "loss_classifier": "loss_class",
    "loss_box_reg": "loss_box",
    "loss_objectness": "loss_rpn_objectness",
    "loss_rpn_box_reg": "loss_rpn_box",
}
# What torchvision leaves as it is: three of the five parts of a trunk are trained.
FREEZE = ("backbone/bottom_up/stem", "backbone/bottom_up/res2")
NORMS = {"norm_epsilon": 0.0}  # of its builder, for its published weights
EVERYTHING = 20_000  # anchors of an image, or RoIs: more than there are


def detector(record: Mapping[str, np.ndarray]) -> tuple[FasterRCNN, Any]:
    """Make the detector of a record and its first params.

    Raises:
        ValueError: the weights are not a detector's.
    """
    loaded = load(start(record))
    print(loaded.report, file=sys.stderr)
    config = loaded.config
    if not isinstance(config, FasterRCNNConfig):
        raise ValueError("they are not a detector's")
    change = dataclasses.replace
    first = change(
        config.rpn,
        convention=without_draws(config.convention, int(record["proposals"])),
        freeze=FREEZE,
        backbone_options=change(config.rpn.backbone_options, **NORMS),
    )
    return faster_rcnn(change(config, rpn=first)), loaded.params


def follow(
    model: FasterRCNN, params: Any, record: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Train as the record says, from `params`.

    Args:
        model: the detector, of a configuration as `without_draws` makes it; its
            `freeze` says what is not trained.
        params: its variables dict at the start.
        record: arrays of a file of `follow_torchvision.py`.

    Returns:
        The losses by torchvision's names, each an array, one entry a step.
    """
    mesh = data_mesh(1)
    config = OptimizerConfig(
        momentum=float(record["momentum"]),
        weight_decay=float(record["weight_decay"]),
        clip_norm=0.0,
        warmup=0,
        schedule="constant",
    )
    steps = len(record["images"])
    optimizer = make_optimizer(
        config, lr=float(record["lr"]), steps=steps, freeze=model.config.freeze
    )
    train_step = make_train_step(
        model.loss, optimizer, key=jax.random.key(0), mesh=mesh
    )
    state = gather(mesh, create_state(params, optimizer))
    found = []
    for step in range(steps):
        state, metrics = train_step(state, put_batch(mesh, batch_of(record, step)))
        found.append(jax.device_get(metrics))
    return {
        name: np.array([metrics[ours] for metrics in found])
        for name, ours in PARTS.items()
    }


def batch_of(record: Mapping[str, np.ndarray], step: int) -> Batch:
    """Make the batch of a step."""
    images, labels = record["images"][step], record["labels"][step]
    count = len(images)
    return Batch(
        images=images,
        image_sizes=record["image_sizes"][step],
        boxes=record["boxes"][step],
        valid=labels >= 0,
        ignore=np.zeros_like(labels, bool),
        scales=np.ones((count, 2), np.float32),
        image_ids=np.arange(count, dtype=np.int32),
        labels=labels,
    )


def without_draws(convention: Convention, proposals: int) -> Convention:
    """Return the convention with every anchor and every RoI trained on."""
    change = dataclasses.replace
    return change(
        convention,
        targets=change(
            convention.targets, sample_size=EVERYTHING, positive_fraction=0.5
        ),
        roi=change(convention.roi, sample_size=EVERYTHING, positive_fraction=0.5),
        proposals=change(convention.proposals, train_post_nms=proposals),
    )


def differences(found: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Compute the difference of losses, relative to theirs; 0 for two zeros."""
    return np.abs(found - theirs) / np.maximum(np.abs(theirs), 1e-12)


def read(file: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file."""
    with np.load(file) as arrays:
        return dict(arrays)


def start(record: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights of a record by their names in torchvision."""
    prefix = "weights/"
    return {
        name.removeprefix(prefix): value
        for name, value in record.items()
        if name.startswith(prefix)
    }


def table(record: Mapping[str, np.ndarray], differences: Sequence[np.ndarray]) -> str:
    """Write the steps as a table: the losses there, and columns of differences."""
    names = [part.removeprefix("loss_") for part in PARTS]
    columns = ["step", *names, *(f"{name} differs" for name in names)]
    if len(differences) > len(names):
        columns += [f"{name}, float64" for name in names]
    rows = [columns, ["---"] * len(columns)]
    for step in range(len(record["images"])):
        losses = [f"{record[part][step]:.4f}" for part in PARTS]
        ratios = [f"{values[step]:.1e}" for values in differences]
        rows.append([str(step + 1), *losses, *ratios])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(argv: Sequence[str]) -> int:
    """Compare as the command line says; return the exit code."""
    files = [Path(name) for name in argv]
    if len(files) not in (1, 2) or not all(file.is_file() for file in files):
        raise UsageError(
            "files of experiments/peers/follow_torchvision.py are wanted: "
            "python -m experiments.follow FILE [DOUBLE]"
        )
    use_compilation_cache()
    record, *others = (read(file) for file in files)
    try:
        model, params = detector(record)
    except ValueError as error:
        raise UsageError(f"{files[0]} is no such file with weights: {error}") from error
    found = follow(model, params, record)
    apart = {part: differences(found[part], record[part]) for part in PARTS}
    noise = [
        differences(other[part], record[part]) for other in others for part in PARTS
    ]
    print(table(record, [*apart.values(), *noise]))
    largest = [values.max() for values in apart.values()]
    worst = int(np.argmax(largest))  # NaN, if there is one
    print(f"\nlargest difference: {largest[worst]:.1e} of {list(apart)[worst]}")
    return 0 if largest[worst] <= LIMIT else 1


if __name__ == "__main__":
    exit_with(main)
