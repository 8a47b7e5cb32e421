"""Compare converted weights with the peers that they come from.

usage: python -m experiments.verify_peers [--torchvision PYTHON] [--detectron2 PYTHON]
           --images FILE FILE [--only NAME ...] [--out DIR]

PYTHON has torch and torchvision, or detectron2. For each model the peer makes random
weights, such that hundreds of proposals survive, and runs on the images, from the files
on; the weights are loaded here and run on the same files. Nothing is shared but weights
and images. Printed, and written to DIR/peers.md:

* input: largest difference of the network's input, normalised (torchvision) or in grey
  levels (detectron2);
* kept: proposals (detections) of the peer, how many of ours have no counterpart within
  0.01 px, and the largest differences of box (px) and score among the others.

Ends with code 1 where none of an image has one.
"""

import argparse
import dataclasses
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.config import UsageError, exit_with, use_compilation_cache
from rpn_jax.data import Resize
from rpn_jax.data.transforms import pad_image, resize_pixels
from rpn_jax.faster_rcnn import FasterRCNN, make_network
from rpn_jax.predict import decode
from rpn_jax.pretrained import load, model_config
from rpn_jax.rpn import normalize_images

PEERS = Path(__file__).parent / "peers"
TORCHVISION = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
DETECTRON2 = (
    "rpn_R_50_C4_1x",
    "rpn_R_50_FPN_1x",
    "faster_rcnn_R_50_C4_1x",
    "faster_rcnn_R_50_DC5_1x",
    "faster_rcnn_R_50_FPN_1x",
    "faster_rcnn_R_101_C4_3x",
    "faster_rcnn_R_101_DC5_3x",
    "faster_rcnn_R_101_FPN_3x",
    "faster_rcnn_X_101_32x8d_FPN_3x",
)
NEAR = 0.01
"""Pixels within which two boxes are the same."""
NONE_ALIKE = "none alike"

# The peer's own reader turns what it saved into arrays.
CONVERT = """
import sys, numpy, torch
state = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
numpy.savez(sys.argv[2], **{k: v.numpy() for k, v in state.items()})
"""


class Row(NamedTuple):
    """One model on one image."""

    model: str
    image: str
    input: float
    proposals: str
    detections: str


class Found(NamedTuple):
    """Boxes `[n, 4]`, scores `[n]` and labels `[n]`, without padding."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def main(argv: Sequence[str]) -> int:
    """Compare as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torchvision", metavar="PYTHON")
    parser.add_argument("--detectron2", metavar="PYTHON")
    parser.add_argument("--images", nargs="+", type=Path, required=True)
    names = [*TORCHVISION, *DETECTRON2]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME"
    )
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args(argv)
    if not (args.torchvision or args.detectron2):
        parser.error("a peer is wanted: --torchvision or --detectron2")
    if len({file.stem for file in args.images}) < len(args.images):
        parser.error("--images: two have the same name")
    use_compilation_cache()
    args.out.mkdir(parents=True, exist_ok=True)
    peers = ((args.torchvision, TORCHVISION), (args.detectron2, DETECTRON2))
    rows: list[Row] = []
    for python, names in peers:
        for name in names if python else ():
            if name not in args.only:
                continue
            with tempfile.TemporaryDirectory() as folder:
                run_peer(python, name, args.images, Path(folder))
                rows += compare(name, args.images, Path(folder))
            (args.out / "peers.md").write_text(table(rows))
            print("\n".join(map(str, rows[-len(args.images) :])), flush=True)
    print(table(rows))
    return int(any(NONE_ALIKE in row.proposals + row.detections for row in rows))


def run_peer(python: str, name: str, images: Sequence[Path], folder: Path) -> None:
    """Have the peer write its weights and outputs.

    Raises:
        UsageError: it fails.
    """
    script = "torchvision" if name in TORCHVISION else "detectron2"
    command = [python, str(PEERS / f"{script}_models.py"), str(folder), name]
    command += ["--images", *map(str, images)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise UsageError(f"{python} is no Python: {error}") from error
    if done.returncode == 0 and name in TORCHVISION:
        files = [str(folder / f"{name}{suffix}") for suffix in (".pth", ".npz")]
        convert = [python, "-c", CONVERT, *files]
        done = subprocess.run(convert, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"{name} does not run in {python}:\n{done.stderr[-2000:]}")


def compare(name: str, images: Sequence[Path], folder: Path) -> list[Row]:
    """Load the peer's weights, run them on its images, and compare."""
    suffix = ".npz" if name in TORCHVISION else ".pkl"
    loaded = load(folder / f"{name}{suffix}")
    config = loaded.config
    if name.endswith("_320_fpn"):  # which the names of the weights do not tell
        config = dataclasses.replace(config, rpn=model_config(name))
    print(loaded.report, flush=True)
    network = make_network(config)
    detects = isinstance(network, FasterRCNN)
    find = jax.jit(network.find if detects else network.propose)
    image = config.convention.image
    rows = []
    with np.load(folder / f"{name}_outputs.npz") as outputs:
        for file in images:
            theirs = {
                key.removeprefix(f"{file.stem}/"): outputs[key]
                for key in outputs.files
                if key.startswith(f"{file.stem}/")
            }
            pixels, _ = resize_pixels(decode(file), Resize.of(image))
            size = np.array([pixels.shape[:2]], np.int32)
            padded = tuple(-(-s // image.pad_to) * image.pad_to for s in size[0])
            batch = pad_image(pixels, padded)[None]
            found = jax.device_get(find(loaded.params, batch, size))
            proposals, detections = found if detects else (found, None)
            rows.append(
                Row(
                    name,
                    f"{padded[0]} x {padded[1]}",
                    input_difference(batch, size, theirs, image),
                    difference(unpad(proposals), their_proposals(theirs)),
                    difference(unpad(detections), their_detections(theirs, name)),
                )
            )
    return rows


def input_difference(batch, size, theirs: dict, image) -> float:
    """Largest difference of the network's input."""
    if "batch" in theirs:
        ours = np.asarray(normalize_images(batch, size, image))
        return float(np.abs(ours - theirs["batch"].transpose(0, 2, 3, 1)).max())
    height, width = size[0]
    ours = batch[0, :height, :width, ::-1].astype(np.float32)
    return float(np.abs(ours - theirs["image"]).max())


def their_proposals(theirs: dict) -> Found:
    """Read the peer's proposals."""
    scores = theirs.get("proposal_scores", theirs.get("proposal_logits"))
    boxes = theirs["proposals"]
    return Found(boxes, np.asarray(scores), np.zeros(len(boxes), int))


def their_detections(theirs: dict, name: str) -> Found | None:
    """Read the peer's detections; torchvision's labels count from 1."""
    if "detections" not in theirs:
        return None
    labels = theirs["detection_labels"] - (name in TORCHVISION)
    return Found(theirs["detections"], theirs["detection_scores"], labels)


def unpad(found) -> Found | None:
    """Drop the padding of the first image of a batch."""
    if found is None:
        return None
    valid = found.valid[0]
    labels = getattr(found, "labels", np.zeros((1, len(valid)), int))
    return Found(found.boxes[0][valid], found.scores[0][valid], labels[0][valid])


def difference(ours: Found | None, theirs: Found | None) -> str:
    """Pair two sets and describe how they differ."""
    if ours is None or theirs is None:
        return "-"
    if not len(ours.boxes) and not len(theirs.boxes):
        return "0"
    if not len(ours.boxes) or not len(theirs.boxes):
        return f"{len(theirs.boxes)} kept, {NONE_ALIKE}"
    far = np.abs(ours.boxes[:, None] - theirs.boxes[None]).max(axis=-1)
    far[ours.labels[:, None] != theirs.labels[None]] = np.inf
    # Of several boxes in one place, those of like scores belong together.
    cost = far + np.abs(ours.scores[:, None] - theirs.scores[None])
    pairs, taken = [], np.zeros(len(theirs.boxes), bool)
    for row in range(len(ours.boxes)):
        column = int(np.where(taken, np.inf, cost[row]).argmin())
        if far[row, column] <= NEAR and not taken[column]:
            taken[column] = True
            pairs.append((row, column))
    alone = len(ours.boxes) - len(pairs) + int((~taken).sum())
    if not pairs:
        return f"{len(theirs.boxes)} kept, {NONE_ALIKE}"
    rows, columns = np.array(pairs).T
    score = np.abs(ours.scores[rows] - theirs.scores[columns]).max()
    box = far[rows, columns].max()
    kept = f"{len(theirs.boxes)}, {alone} alone" if alone else f"{len(pairs)}"
    return f"{kept}; {box:.1e} px; {score:.1e}"


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out as Markdown."""
    lines = [
        "| model | input | its difference | proposals | detections |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row.model} | {row.image} | {row.input:.1e} | {row.proposals} | "
            f"{row.detections} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    exit_with(main)
