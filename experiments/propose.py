"""Propose boxes, or with a detector detect objects, in images.

usage: python -m experiments.propose MODEL IMAGE... [--out DIR] [--top N] [--draw N]
                                                    [--crops N]

MODEL is a run's folder (its best checkpoint, else its last), a weight file, ours,
torchvision's or detectron2's, or `demo` for the packaged weights. IMAGE is a file or a
folder of images. For each image NAME `NAME.json` gets its boxes (x1, y1, x2, y2 in
pixels of the image) and scores, of a detector labels and names too, best first,
`NAME.png` a picture and, if asked for, `NAME_crop1.png` to `NAME_cropN.png` what lies
in the best boxes. A folder of the images themselves is refused as DIR. An image that
cannot be read is named, the others go on, and the exit code is 1.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure
from PIL import Image

from experiments.config import (
    UsageError,
    exit_with,
    make_folder,
    open_model,
    use_compilation_cache,
)
from rpn_jax import plotting
from rpn_jax.data import DataError
from rpn_jax.predict import DEMO, Objects, Prediction, Predictor, decode
from rpn_jax.training.metrics import duration

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to write.

    Attributes:
        out: folder for json files and pictures.
        top: write so many proposals an image at most.
        draw: draw so many; 0 draws no picture.
        crops: save the pixels of so many as images of their own.
    """

    out: Path = Path("proposals")
    top: int = 300
    draw: int = 20
    crops: int = 0


def main(argv: Sequence[str]) -> int:
    """Propose as the command line says; return the exit code."""
    prog = "python -m experiments.propose MODEL IMAGE..."
    start = next((i for i, a in enumerate(argv) if a.startswith("-")), len(argv))
    names, rest = argv[:start], argv[start:]
    options = tyro.cli(Options, args=rest, prog=prog, description=__doc__)
    if min(options.top, options.draw, options.crops) < 0:
        raise UsageError("--top, --draw and --crops want numbers of at least 0")
    if len(names) < 2:
        raise UsageError(f"a model and an image are wanted: {prog}")
    files = [file for name in names[1:] for file in list_images(Path(name))]
    if options.out.resolve() in {file.resolve().parent for file in files}:
        raise UsageError(
            f"--out {options.out} is where images lie, and could overwrite them; name "
            "another folder"
        )
    use_compilation_cache()
    predictor = Predictor(open_model(DEMO if names[0] == "demo" else Path(names[0])))
    make_folder(options.out)
    broken, seconds = 0, []
    results = result_names(files, crops=options.crops)
    for n, (file, name) in enumerate(zip(files, results, strict=True), 1):
        start = time.perf_counter()
        try:
            pixels = decode(file, name=str(file))
        except DataError as error:
            broken += 1
            print(f"{n}/{len(files)}  {error}", file=sys.stderr, flush=True)
            continue
        found = predictor(pixels)
        found = found.best(options.top)
        write(options.out / name, file, pixels, found, draw=options.draw)
        save_crops(options.out / name, pixels, found.boxes[: options.crops])
        seconds.append(time.perf_counter() - start)
        # The median: images of a size not met before wait for a compilation.
        typical = statistics.median(seconds)
        print(
            f"{n}/{len(files)}  {file}  {len(found.boxes)} boxes  "
            f"{1 / typical:.1f} images/s  ETA {duration(typical * (len(files) - n))}",
            flush=True,
        )
    print(f"results in {options.out}")
    if broken:
        print(f"{broken} of {len(files)} images could not be read", file=sys.stderr)
    return 1 if broken else 0


def list_images(path: Path) -> list[Path]:
    """Return the images of a folder, sorted, or the file itself.

    Raises:
        UsageError: there is no such path, or no image in the folder.
    """
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder")
    if path.is_file():
        return [path]
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
    if not files:
        raise UsageError(f"{path}: the folder holds no images ({', '.join(SUFFIXES)})")
    return files


def result_names(files: Sequence[Path], *, crops: int = 0) -> list[str]:
    """Name the results after the images; a name that comes again gets a number."""
    names, taken = [], set()
    for file in files:
        name, n = file.stem, 1
        while not taken.isdisjoint(own := {name, *crop_names(name, crops)}):
            n += 1
            name = f"{file.stem}_{n}"
        names.append(name)
        taken |= own
    return names


def crop_names(name: str, crops: int) -> list[str]:
    """Name the crops of an image, best first."""
    return [f"{name}_crop{n}" for n in range(1, crops + 1)]


def write(
    target: Path,
    file: Path,
    pixels: np.ndarray,
    found: Prediction | Objects,
    *,
    draw: int,
) -> None:
    """Write `target`.json and `target`.png."""
    height, width = pixels.shape[:2]
    values = {
        "image": str(file),
        "height": height,
        "width": width,
        "boxes": np.round(found.boxes.astype(float), 2).tolist(),
        "scores": np.round(found.scores.astype(float), 5).tolist(),
    }
    if isinstance(found, Objects):
        values |= {"labels": found.labels.tolist(), "names": found.names}
    target.with_name(target.name + ".json").write_text(json.dumps(values) + "\n")
    if draw:
        side = 8 / max(height, width)
        inches = max(width * side, 0.5), max(height * side, 0.5)  # a hair has no room
        figure = Figure(figsize=inches, layout="constrained")
        ax = figure.subplots()
        if isinstance(found, Objects):
            boxes, scores, _, names = found.best(draw)
            plotting.plot_detections(pixels, boxes, scores, names, ax=ax)
        else:
            plotting.plot_proposals(pixels, *found, top=draw, ax=ax)
        figure.savefig(target.with_name(target.name + ".png"), dpi=100)


def save_crops(target: Path, pixels: np.ndarray, boxes: np.ndarray) -> None:
    """Write every pixel that a box touches, as `target`_crop1.png and so on."""
    limits = np.array(pixels.shape[1::-1])
    for name, box in zip(crop_names(target.name, len(boxes)), boxes, strict=True):
        x1, y1 = np.minimum(np.floor(box[:2]).astype(int), limits - 1)
        x2, y2 = np.maximum(np.ceil(box[2:]).astype(int), [x1 + 1, y1 + 1])
        Image.fromarray(pixels[y1:y2, x1:x2]).save(target.with_name(name + ".png"))


if __name__ == "__main__":
    exit_with(main)
