"""Take the training steps that torchvision has taken, and compare the losses.

usage: python -m experiments.follow FILE [DOUBLE]

FILE was written by `experiments/peers/follow_torchvision.py --weights ...`: weights,
and for each step the images, the boxes, the anchors that were drawn and the losses.
This library loads the weights, matches the objects and takes the steps; the draw alone
is torchvision's, for no two random generators agree. Prints a line a step; the exit
code is 1 where a loss differs by more than 1e-3 of it, or an anchor has another label.
DOUBLE is from the same command with `--double`: how far torchvision's float32 is from
its float64 stands beside. No other float32 can be expected to be nearer.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import UsageError, exit_with, use_compilation_cache
from rpn_jax.conventions import options
from rpn_jax.models import stop_frozen
from rpn_jax.objective import rpn_loss
from rpn_jax.ops.coding import encode_boxes
from rpn_jax.ops.matching import match_anchors
from rpn_jax.pretrained import load, model_config
from rpn_jax.rpn import RPN, rpn
from rpn_jax.targets import AnchorTargets
from rpn_jax.training.mesh import data_mesh, put_batch
from rpn_jax.training.optimizer import OptimizerConfig, make_optimizer
from rpn_jax.training.state import create_state
from rpn_jax.training.step import make_train_step

LIMIT = 1e-3
PARTS = ("loss_objectness", "loss_box")
# What torchvision leaves as it is: three of the five parts of a trunk are trained.
FREEZE = ("backbone/bottom_up/stem", "backbone/bottom_up/res2")


class DrawnBatch(NamedTuple):
    """Images and objects as in `Batch`, and the anchors `[B, A]` that were drawn."""

    images: Any
    image_sizes: Any
    boxes: Any
    valid: Any
    positive: Any
    negative: Any


def follow(
    model: RPN, params: Any, record: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Train as the record says, from `params`.

    Args:
        model: the network; its `config.freeze` says what is not trained.
        params: its variables dict at the start.
        record: arrays of a file of `follow_torchvision.py`.

    Returns:
        `loss_objectness` and `loss_box`, and `mismatched`, how many of the anchors
        drawn have another label here; each an array, one entry a step.
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
    freeze, convention = model.config.freeze, model.config.convention
    optimizer = make_optimizer(
        config, lr=float(record["lr"]), steps=steps, freeze=freeze
    )

    def loss(_, params: Any, batch: DrawnBatch):
        params = stop_frozen(params, freeze)
        outputs = model.apply(params, batch.images, batch.image_sizes)
        anchors = jnp.concatenate(outputs.anchors)
        targets = jax.vmap(partial(drawn_targets, convention, anchors))(
            batch.boxes, batch.valid, batch.positive | batch.negative
        )
        objectness, box = rpn_loss(outputs, targets, convention)
        wrong = (batch.positive & (targets.labels != 1)).sum()
        wrong += (batch.negative & (targets.labels != 0)).sum()
        return objectness + box, {
            "loss_objectness": objectness,
            "loss_box": box,
            "mismatched": wrong,
        }

    train_step = make_train_step(loss, optimizer, key=jax.random.key(0), mesh=mesh)
    # A copy: the state is donated.
    state = create_state(jax.tree.map(jnp.array, params), optimizer)
    found = []
    for step in range(steps):
        batch = DrawnBatch(*(record[name][step] for name in DrawnBatch._fields))
        state, metrics = train_step(state, put_batch(mesh, batch))
        found.append(jax.device_get(metrics))
    names = (*PARTS, "mismatched")
    return {name: np.array([metrics[name] for metrics in found]) for name in names}


def drawn_targets(convention, anchors, boxes, valid, sampled) -> AnchorTargets:
    """Make the targets of an image as `anchor_targets` does, for a given draw."""
    draw = ("boundary", "boundary_first", "sample_size", "positive_fraction")
    matches = match_anchors(anchors, boxes, valid, **options(convention.targets, *draw))
    positive = (sampled & (matches.labels == 1))[:, None]
    objects = boxes[jnp.maximum(matches.gt_index, 0)]
    objects = jnp.where(positive, objects, anchors)
    deltas = encode_boxes(objects, anchors, weights=convention.coding.weights)
    return AnchorTargets(matches.labels, sampled, objects, deltas, matches.gt_iou)


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
    config = dataclasses.replace(model_config("fasterrcnn_resnet50_fpn"), freeze=FREEZE)
    try:
        loaded = load(start(record), config=config)
    except ValueError as error:
        raise UsageError(f"{files[0]} is no such file with weights: {error}") from error
    print(loaded.report, file=sys.stderr)
    found = follow(rpn(config), loaded.params, record)
    double = [f"{name}, float64" for name in ("objectness", "box")] if others else []
    columns = [
        "step",
        "objectness",
        "box",
        "objectness differs",
        "box differs",
        *double,
    ]
    print("| " + " | ".join(columns) + " |")
    print("| " + " | ".join("---" for _ in columns) + " |")
    apart = [differences(found[part], record[part]) for part in PARTS]
    noise = [differences(other[p], record[p]) for other in others for p in PARTS]
    for step in range(len(apart[0])):
        losses = [f"{record[part][step]:.4f}" for part in PARTS]
        ratios = [f"{values[step]:.1e}" for values in (*apart, *noise)]
        print("| " + " | ".join([str(step + 1), *losses, *ratios]) + " |")
    print(
        f"\nlargest difference {np.max(apart):.1e} of a loss; "
        f"{found['mismatched'].sum()} anchors matched in another way"
    )
    followed = np.max(apart) <= LIMIT and not found["mismatched"].any()
    return 0 if followed else 1  # NaN is not followed


if __name__ == "__main__":
    exit_with(main)
