"""Read a whole data set and say all that is wrong with it, and what it holds."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from experiments.config import DataConfig, UsageError
from experiments.data import open_source
from rpn_jax.data import DataError, Source
from rpn_jax.data.images import load_image
from rpn_jax.data.pipeline import find_bucket

SHOWN_CLASSES = 40
PROGRESS_EVERY = 10.0  # seconds


class Image(NamedTuple):
    """What one image and its objects count as."""

    size: tuple[int, int]
    labels: np.ndarray
    ignore: np.ndarray


class Split:
    """What a split holds and what is wrong with it; faults are printed as they come.

    Args:
        name: `train` or `val`.
    """

    def __init__(self, name: str):
        self.name = name
        self.classes: tuple[str, ...] = ()
        self.faults: Counter[str] = Counter()
        self.mended: Counter[str] = Counter()
        self.images: list[Image] = []
        self._lock = threading.Lock()

    def tell(self, kind: str, number: int, sentence: str | None) -> None:
        """Count what a source found; a sentence says that it is a fault."""
        with self._lock:
            if sentence is None:
                self.mended[kind] += number
            else:
                self.faults[kind] += number
                print(f"{self.name}: {sentence}", flush=True)


def check_data(config: DataConfig, classes: Sequence[str] | None = None) -> int:
    """Read both splits of `config` to the last pixel and report; return the faults.

    A category that is none of `classes`, those of a detector, is one.
    No fault stops it, except one of a whole file; then the other split is read still.
    """
    splits = [_read(config, name, classes) for name in ("train", "val")]
    print("\n".join(_summary(splits, config)))
    return sum(sum(split.faults.values()) for split in splits)


def _read(config: DataConfig, name: str, classes: Sequence[str] | None) -> Split:
    split = Split(name)
    try:
        source = open_source(config, name, classes=classes, on_bad=split.tell)
    except UsageError as error:
        split.tell("split that cannot be read", 1, str(error))
        return split
    split.classes = tuple(source.classes)
    ids: dict[int, str] = {}

    def read(index: int) -> tuple[int, str, Image] | None:
        try:
            record = source[index]
            height, width = load_image(record).shape[:2]
        except DataError as error:
            split.tell(error.kind, 1, str(error))
            return None
        image = Image((height, width), record.labels, record.ignore)
        return record.image_id, record.name, image

    with ThreadPoolExecutor(max(config.threads, 1)) as pool:
        for found in _with_progress(pool.map(read, range(len(source))), source, split):
            if found is None:
                continue
            image_id, record_name, image = found
            if ids.setdefault(image_id, record_name) != record_name:
                split.tell(
                    "image id used twice",
                    1,
                    f"{record_name}: {ids[image_id]} has the image id {image_id} too",
                )
            if find_bucket(image.size, config.padded_sizes, config.resize) is None:
                split.tell(
                    "image that fits into no bucket",
                    1,
                    f"{record_name}: resized from (height, width) = {image.size} it "
                    f"fits into none of the buckets {config.padded_sizes}; give one "
                    "with --data.buckets",
                )
            split.images.append(image)
    return split


def _with_progress(results: Iterator, source: Source, split: Split) -> Iterator:
    start = last = time.monotonic()
    for number, result in enumerate(results, 1):
        yield result
        now = time.monotonic()
        if now - last > PROGRESS_EVERY:
            last = now
            print(
                f"{split.name}: {number} of {len(source)} images, "
                f"{number / (now - start):.0f} images/s, "
                f"{sum(split.faults.values())} faults",
                file=sys.stderr,
                flush=True,
            )


def _summary(splits: list[Split], config: DataConfig) -> list[str]:
    names = [split.name for split in splits]
    lines = ["", _row("", *names)]
    columns = [_figures(split, config) for split in splits]
    lines += [_row(key, *(column[key] for column in columns)) for key in columns[0]]
    for title, counts in (
        ("mended:", [split.mended for split in splits]),
        ("faults:", [split.faults for split in splits]),
    ):
        kinds = sorted(set().union(*counts))
        lines += [title] if kinds else []
        lines += [_row(f"  {kind}", *(c[kind] for c in counts)) for kind in kinds]
    lines += [f"classes of {split.name}: {_classes(split)}" for split in splits]
    total = sum(sum(split.faults.values()) for split in splits)
    lines.append(f"{total} faults" if total else "no faults")
    return lines


def _figures(split: Split, config: DataConfig) -> dict[str, object]:
    numbers = [len(image.labels) for image in split.images]
    cut = sum(max(number - config.max_boxes, 0) for number in numbers)
    return {
        "images read whole": len(split.images),
        "  without objects": numbers.count(0),
        "objects": sum(numbers),
        "  crowd or difficult": sum(int(i.ignore.sum()) for i in split.images),
        f"  cut by --data.max-boxes {config.max_boxes}": cut,
        "  in an image at most": max(numbers, default=0),
        "height: least, median, most": _spread([i.size[0] for i in split.images]),
        "width: least, median, most": _spread([i.size[1] for i in split.images]),
    }


def _spread(values: list[int]) -> str:
    if not values:
        return "-"
    return f"{min(values)}, {np.median(values):.0f}, {max(values)}"


def _classes(split: Split) -> str:
    counts = Counter({name: 0 for name in split.classes})
    for image in split.images:
        counts.update(split.classes[label] for label in image.labels)
    common = counts.most_common(SHOWN_CLASSES)
    more = len(counts) - len(common)
    text = ", ".join(f"{name} {number}" for name, number in common)
    return text + (f" and {more} more" if more else "")


def _row(title: str, *values: object) -> str:
    return f"{title:<45}" + "".join(f"{value!s:>20}" for value in values)
