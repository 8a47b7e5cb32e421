"""Write a network and its weights to one file that JAX alone can run.

usage: python -m experiments.export MODEL --out FILE [--size H W]
                                    [--platforms cpu cuda tpu]

MODEL is a run's folder (its best checkpoint, else its last), a weight file, ours,
torchvision's or detectron2's, or `demo` for the packaged weights. FILE holds the
function for batches of any number of images of one padded size: by default the square
that every image of the model's own scale fits in.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from experiments.config import UsageError, classes_of, exit_with, open_model
from rpn_jax.export import PLATFORMS, export_network
from rpn_jax.predict import DEMO

LOADER = """\
import jax, jax.export, numpy as np
from pathlib import Path

network = jax.export.deserialize(Path("{file}").read_bytes())
images = np.zeros((1, {height}, {width}, 3), np.uint8)  # RGB, zero where padded
sizes = np.array([[{height}, {width}]], np.int32)  # (height, width) of the content
scales = np.ones(1, np.float32)  # network size / original size
found = jax.jit(network.call)(images, sizes, scales)  # a dict: {fields}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to write.

    Attributes:
        out: the file.
        size: (height, width) of the padded images; by default a square that holds every
            image of the model's own scale.
        platforms: where the file is to run: cpu, cuda, rocm, tpu.
    """

    out: Path
    size: tuple[int, int] | None = None
    platforms: tuple[str, ...] = PLATFORMS


def main(argv: Sequence[str]) -> None:
    """Export as the command line says."""
    prog = "python -m experiments.export MODEL"
    named = bool(argv) and not argv[0].startswith("-")
    rest = argv[1:] if named else argv
    options = tyro.cli(Options, args=rest, prog=prog, description=__doc__)
    if not named:
        raise UsageError(f"a model is wanted: {prog} --out FILE")
    if options.out.is_dir():
        raise UsageError(f"--out: {options.out} is a folder, a file is wanted")
    name = argv[0]
    model = open_model(DEMO if name == "demo" else Path(name))
    resize, pad_to = model.resize, model.pad_to
    side = -(-resize.max_size // pad_to) * pad_to
    height, width = options.size or (side, side)
    try:
        data = export_network(
            model.config,
            model.params,
            image_size=(height, width),
            platforms=options.platforms,
        )
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(data)
    names = classes_of(model.config)
    print(f"{options.out}  {len(data) / 1e6:.1f} MB  {', '.join(options.platforms)}")
    if names is not None:
        print("labels: " + ", ".join(f"{i} {name}" for i, name in enumerate(names)))
    fields = f"boxes, scores, {'levels' if names is None else 'labels'}, valid"
    print(
        LOADER.format(file=options.out, height=height, width=width, fields=fields),
        end="",
    )


if __name__ == "__main__":
    exit_with(main)
