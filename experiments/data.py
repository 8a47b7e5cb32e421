"""From a `DataConfig` to sources of records and iterators of batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.config import DataConfig, UsageError, data_root
from rpn_jax.data import (
    CocoSource,
    DataError,
    Jitter,
    Record,
    ShapesSource,
    Source,
    TfdsSource,
    VocSource,
    make_dataset,
)
from rpn_jax.data.coco import OTHER_CLASSES
from rpn_jax.data.faults import OnFault
from rpn_jax.data.transforms import pad_rows

MODEL_CLASSES = "; a detector to be trained gets its own with --model.classes"


class Objects(NamedTuple):
    """The objects of images in original pixels, padded; none is cut off.

    Shapes: boxes `[n, G, 4]` xyxy, the others `[n, G]`.
    """

    boxes: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray

    @property
    def agnostic(self) -> tuple[Any, ...]:
        """Everything but the labels."""
        return (self.boxes, self.valid, self.ignore, self.areas)


NO_OBJECTS = Objects(
    np.zeros((0, 4), np.float32),
    np.zeros(0, np.int32),
    np.zeros(0, bool),
    np.zeros(0, bool),
    np.zeros(0, np.float32),
)


def open_source(
    config: DataConfig,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    images: bool = True,
    on_bad: OnFault | None = None,
) -> Source:
    """Open the records of a split, `train` or `val`.

    Args:
        config: where they lie.
        split: which.
        classes: names of a detector's classes, among which the data's must be; None:
            any.
        images: whether images will be read; if not, a COCO json suffices, unless
            `config` names their folder.
        on_bad: what becomes of faults; None: as `config` says.

    Raises:
        UsageError: the files are not there, or broken.
    """
    try:
        source = _open(config, split, classes, images, on_bad or config.on_bad)
    except DataError as error:
        hint = MODEL_CLASSES if error.kind == OTHER_CLASSES else ""
        raise UsageError(f"{error}{hint}") from error
    if config.limit:
        source = First(source, config.limit)
    if classes is not None and tuple(source.classes) != tuple(classes):
        raise UsageError(
            f"the data of --data.{split} has the classes {', '.join(source.classes)}, "
            f"wanted are {', '.join(classes)}{MODEL_CLASSES}"
        )
    if not len(source):
        raise UsageError(f"there are no images in the data of --data.{split}")
    return source


class First:
    """The first `number` records of a source."""

    def __init__(self, source: Source, number: int):
        self._source, self._number = source, number
        self.classes = source.classes
        self.category_ids = getattr(source, "category_ids", None)

    def __len__(self) -> int:
        """Return the number of records."""
        return min(self._number, len(self._source))

    def __getitem__(self, index: int) -> Record:
        """Return one record."""
        return self._source[range(len(self))[index]]


def train_batches(
    source: Source, config: DataConfig, *, batch: int, seed: int, start: int = 0
) -> Any:
    """Return an endless iterator of training batches from number `start` on.

    A batch has `batch` images over all processes, of which this one gets its part.
    """
    return make_dataset(
        source,
        batch=batch // jax.process_count(),
        buckets=config.padded_sizes,
        max_boxes=config.max_boxes,
        resize=config.resize,
        flip=config.flip,
        jitter=None if config.jitter == Jitter() else config.jitter,
        seed=seed,
        shard=(jax.process_index(), jax.process_count()),
        on_bad=config.on_bad,
        threads=config.threads,
        workers=config.workers,
        start=start,
    )


def eval_batches(source: Source, config: DataConfig, *, batch: int) -> Any:
    """Return an iterator over every record once, the last batch filled up.

    A batch has `batch` images over all processes, of which this one gets its part.
    """
    return make_dataset(
        source,
        batch=batch // jax.process_count(),
        buckets=config.padded_sizes,
        max_boxes=config.max_boxes,
        resize=config.resize,
        on_bad=config.on_bad,
        threads=config.threads,
        shard=(jax.process_index(), jax.process_count()),
        train=False,
    )


def load_objects(
    source: Source, on_bad: OnFault = "raise"
) -> tuple[Objects, dict[int, int]]:
    """Return the objects of every record, a last row of none, and rows by image id.

    The images that fill the last batch have id -1 and no objects; a record that cannot
    be read has none either, if such are to be skipped.

    Raises:
        DataError: a record cannot be read.
        UsageError: two records have the same image id.
    """
    rows, row = [], {-1: len(source)}
    for i in range(len(source)):
        try:
            record = source[i]  # its image is not kept: memory may not hold all
        except DataError:
            if on_bad == "raise":
                raise
            rows.append(NO_OBJECTS)
            continue
        if row.setdefault(record.image_id, i) != i:
            raise UsageError(
                f"two images to evaluate on have the id {record.image_id}, "
                f"{record.name} is the second; every image needs its own"
            )
        exists = np.ones(len(record.boxes), bool)
        rows.append(
            Objects(record.boxes, record.labels, exists, record.ignore, record.areas)
        )
    rows.append(NO_OBJECTS)
    most = max(1, *(len(objects.boxes) for objects in rows))
    columns = zip(*rows, strict=True)
    return Objects(*(np.stack([pad_rows(x, most) for x in c]) for c in columns)), row


def _open(
    config: DataConfig,
    split: str,
    classes: Sequence[str] | None,
    with_images: bool,
    on_bad: OnFault,
) -> Source:
    name = config.train if split == "train" else config.val
    if config.kind == "shapes":
        # Scenes of different seeds are different scenes: none is in both splits.
        if not name.isdecimal():
            raise UsageError(f"--data.{split} {name}: a number of scenes is wanted")
        return ShapesSource(int(name), seed=0 if split == "train" else 1)
    root = data_root(config)
    if config.kind == "coco":
        file = _existing(root, Path(name), f"--data.{split}")
        if not (with_images or config.images or config.val_images):
            return CocoSource(file, None, on_bad=on_bad, classes=classes)
        beside = file.parent / "images"
        images = config.images or (beside if beside.is_dir() else Path("images"))
        option = "--data.images"
        if split == "val" and config.val_images:
            images, option = config.val_images, "--data.val-images"
        images = _existing(root, images, option)
        return CocoSource(file, images, on_bad=on_bad, classes=classes)
    folder = _folder(root, config)
    if config.kind == "voc":
        return VocSource(folder, name, classes, on_bad=on_bad)
    return TfdsSource(folder, name, on_bad=on_bad)


def _existing(root: Path, path: Path, option: str) -> Path:
    """Return `path` as it stands or below `root`, whichever exists."""
    for candidate in (path, root / path):
        if candidate.exists():
            return candidate
    raise UsageError(
        f"{path} does not exist, here or in {root}; name it with {option} PATH"
    )


def _folder(root: Path, config: DataConfig) -> Path:
    """Find the VOC or tfds folder: `root` itself or one of `folders` below it."""
    marks = ("ImageSets/Main",) if config.kind == "voc" else ("dataset_info.json",)
    candidates = [root, *(root / folder for folder in config.folders)]
    for folder in candidates:
        if any((folder / mark).exists() for mark in marks):
            return folder
    looked = " or ".join(str(folder) for folder in candidates)
    raise UsageError(
        f"no {config.kind} data (a folder with {marks[0]}) in {looked}; name the "
        "folder with --data.root DIR or set RPN_JAX_DATA"
    )
