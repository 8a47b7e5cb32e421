"""Write the data of a config in another form, or check it.

usage: python -m experiments.prepare CONFIG FORM --out DIR [--data.field value ...]
       python -m experiments.prepare --check CONFIG [--data.field value ...]

FORM is `tfds` (a directory of tensorflow_datasets, array_record, made without
TensorFlow; read it with `--data.kind tfds`) or `coco` (json files and a folder of
images for each split). The splits `train` and `val` are written:

    python -m experiments.prepare shapes coco --out scenes --data.train 2000
    python -m experiments.train coco_json --data.root scenes \
        --data.train train/annotations.json --data.val val/annotations.json
    python -m experiments.prepare coco_json tfds --out prepared \
        --data.train train.json --data.val val.json --data.images IMAGES

`--check` reads every annotation and decodes every image of both splits, prints a line
for each fault (file, record, what is wrong), and then what the data holds and the
faults by kind. The exit code is 1 if there are any:

    python -m experiments.prepare --check voc --data.root VOCdevkit/VOC2012
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from experiments.check import check_data
from experiments.config import (
    DataConfig,
    TrainConfig,
    UsageError,
    classes_of,
    exit_with,
    load_config,
)
from experiments.data import open_source
from rpn_jax.data import export_coco, prepare_tfds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to write, and where.

    Attributes:
        data: images and boxes.
        out: folder to write to.
    """

    data: DataConfig = DataConfig()
    out: Path = Path("prepared")


def main(argv: Sequence[str]) -> int:
    """Prepare as the command line says; return the exit code."""
    prog = "python -m experiments.prepare CONFIG FORM"
    check, argv = "--check" in argv, [a for a in argv if a != "--check"]
    names = [a for a in argv[:2] if not a.startswith("-")]
    config = load_config(names[0]) if names else TrainConfig()
    options = tyro.cli(
        Options,
        default=Options(data=config.data),
        args=argv[len(names) :],
        prog=prog,
        description=__doc__,
    )
    if check and len(names) == 1:
        return 1 if check_data(options.data, classes_of(config.model)) else 0
    if check or len(names) < 2 or names[1] not in ("tfds", "coco"):
        raise UsageError(
            f"a config and a form, tfds or coco, are wanted: {prog}; or a config alone "
            "with --check"
        )
    train = open_source(options.data, "train")
    # One list of classes for both, whichever of them a split happens to hold.
    val = open_source(options.data, "val", classes=train.classes)
    splits, on_bad = {"train": train, "val": val}, options.data.on_bad
    if names[1] == "tfds":
        print(f"written: {prepare_tfds(splits, options.out, on_bad)}")
        return 0
    for split, source in splits.items():
        print(f"written: {export_coco(source, options.out / split, on_bad)}")
    return 0


if __name__ == "__main__":
    exit_with(main)
