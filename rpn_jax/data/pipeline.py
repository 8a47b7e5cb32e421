"""From records to batches: shuffled, padded, resumable, read in the background.

What stands in batch number k is a pure function of the seed and k (`plan.py`), so that
resuming is exact and the number of workers does not change the order.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from rpn_jax.batch import Batch
from rpn_jax.data import transforms
from rpn_jax.data.faults import SKIP, DataError, OnBad, count_and_warn, log
from rpn_jax.data.images import image_size, load_image
from rpn_jax.data.plan import Plan
from rpn_jax.data.records import Record, Source
from rpn_jax.data.transforms import Jitter, Resize


def make_dataset(
    source: Source,
    *,
    batch: int,
    buckets: Sequence[tuple[int, int]],
    max_boxes: int = 100,
    resize: Resize | None = None,
    flip: float = 0.5,
    jitter: Jitter | None = None,
    seed: int = 0,
    train: bool = True,
    epochs: int | None = None,
    shard: tuple[int, int] = (0, 1),
    on_bad: OnBad = "raise",
    workers: int = 0,
    threads: int = 4,
    prefetch: int = 4,
    start: int = 0,
) -> Any:
    """Return a Grain iterator of `Batch`es of NumPy arrays.

    Training: every epoch is a new permutation. All images of a batch share one bucket;
    the buckets' batches are mixed. What does not fill a batch at the end of an epoch
    opens the next epoch's first one, so that no image is seen more than once more often
    than another. With a finite number of `epochs`, what does not fill the last batch of
    a bucket is not read.

    Evaluation (`train=False`): every record once and in order (bucket after bucket, if
    there are several), not flipped nor jittered; the last batch is filled up with empty
    images of id -1.

    The iterator is Grain's; `close()` it. Programs that use `workers` need
    `if __name__ == "__main__":`, for workers are spawned.

    Args:
        source: Records.
        batch: Images per batch of this process.
        buckets: The (height, width) that images are padded to; each image goes into the
            smallest one that holds it after resizing.
        max_boxes: Boxes are padded, or cut with a counted warning, to this number.
        resize: How images are resized; default: Pillow, longer side 384.
        flip: Probability of a horizontal flip in training.
        jitter: Photometric jitter in training; None for none.
        seed: Of order and augmentation.
        train: See above.
        epochs: In training: how often to read the source; None for without end.
        shard: (index, count) of this process. Each step's global batch of
            `batch * count` images is split over the processes, in one bucket.
        on_bad: What becomes of an image that cannot be read: "raise" a `DataError`, or
            "skip" it, which leaves an empty image of id -1 in its place and counts it
            in the log. One that fits into no bucket is raised, or left out and counted.
        workers: Worker processes; 0 reads in threads of this process.
        threads: Reader threads, of each worker if there are any.
        prefetch: Batches read ahead, by each worker if there are any.
        start: Batches to leave out at the beginning. Resuming from batch n so does not
            depend on the number of workers or processes that read those before.

    Raises:
        DataError: The source is empty, or an image fits into no bucket. Reading raises
            it too: of a broken image, and where a worker process has died.
    """
    import grain

    batches = Batches(
        Plan(
            _assign_buckets(source, buckets, resize or Resize(), on_bad),
            batch=batch,
            seed=seed,
            train=train,
            epochs=epochs,
            shard=shard,
        ),
        source,
        buckets=tuple(buckets),
        max_boxes=max_boxes,
        resize=resize or Resize(),
        flip=flip if train else 0.0,
        jitter=jitter if train else None,
        on_bad=on_bad,
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    dataset = grain.MapDataset.source(batches)[start:].to_iter_dataset(options)
    if workers:
        _let_workers_start()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=prefetch
            )
        )
    return _Workers(iter(dataset)) if workers else iter(dataset)


class _Workers:
    """Grain's iterator over worker processes; one that dies gives a `DataError`."""

    def __init__(self, batches: Any):
        self._batches = batches
        self.close = batches.close

    def __iter__(self) -> "_Workers":
        return self

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except RuntimeError as error:
            code = re.search(r"process .* exit code (-?\d+)", str(error))
            if code is None:
                raise
            raise DataError(
                f"a worker process that reads images ended with exit code {code[1]} "
                "(-9: it was killed, often because memory ran out); start again with "
                "fewer --data.workers or smaller images"
            ) from error


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of a plan, by number: random access for Grain."""

    plan: Plan
    source: Source
    _: dataclasses.KW_ONLY
    buckets: tuple[tuple[int, int], ...]
    max_boxes: int
    resize: Resize
    flip: float
    jitter: Jitter | None
    on_bad: OnBad = "raise"

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
        """Read one batch."""
        bucket, rows, epochs = self.plan[int(index)]
        shape = self.buckets[bucket]
        images = [
            self._empty(shape)
            if row < 0
            else self._read(
                int(row),
                shape,
                np.random.default_rng((self.plan.seed, 1, int(epoch), int(row))),
            )
            for row, epoch in zip(rows, epochs, strict=True)
        ]
        return Batch(*(np.stack(leaves) for leaves in zip(*images, strict=True)))

    def _read(
        self, row: int, shape: tuple[int, int], rng: np.random.Generator
    ) -> Batch:
        try:
            record = self.source[row]
            image, boxes, scales = resize_record(
                record, self.resize, rng if self.plan.train else None
            )
        except DataError as error:
            if self.on_bad == "raise":
                raise DataError(
                    f"{error}; mend it, or skip such records with {SKIP}"
                ) from error
            count_and_warn(f"left out: {error}", 1)
            return self._empty(shape)
        if self.flip and rng.random() < self.flip:
            image, boxes = transforms.flip_horizontal(image, boxes)
        if self.jitter:
            image = transforms.jitter_colours(rng, image, self.jitter)
        keep = transforms.keep_boxes(boxes, record.ignore, self.max_boxes)

        def pad(rows: np.ndarray, fill: float = 0) -> np.ndarray:
            return transforms.pad_rows(rows[keep], self.max_boxes, fill)

        return Batch(
            images=transforms.pad_image(image, shape),
            image_sizes=np.array(image.shape[:2], np.int32),
            boxes=pad(boxes),
            valid=np.arange(self.max_boxes) < len(keep),
            ignore=pad(record.ignore),
            scales=np.array(scales, np.float32),
            image_ids=np.int32(record.image_id),
            labels=pad(record.labels, -1),
        )

    def _empty(self, shape: tuple[int, int]) -> Batch:
        none = np.zeros(self.max_boxes, bool)
        return Batch(
            images=np.zeros((*shape, 3), self.resize.dtype),
            image_sizes=np.array(shape, np.int32),
            boxes=np.zeros((self.max_boxes, 4), np.float32),
            valid=none,
            ignore=none,
            scales=np.ones(2, np.float32),
            image_ids=np.int32(-1),
            labels=np.full(self.max_boxes, -1, np.int32),
        )


def resize_record(
    record: Record, resize: Resize, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Load and resize one record.

    Args:
        record: The record.
        resize: How.
        rng: Draws among several `min_size`s; None takes `resize.eval_size`.

    Returns:
        Pixels [h, w, 3]; boxes [n, 4] float32 xyxy in them; scales (y, x).
    """
    image, (sy, sx) = transforms.resize_pixels(load_image(record), resize, rng)
    return image, record.boxes * np.array([sx, sy, sx, sy], np.float32), (sy, sx)


def _assign_buckets(
    source: Source,
    buckets: Sequence[tuple[int, int]],
    resize: Resize,
    on_bad: OnBad,
) -> np.ndarray:
    """Find every record's bucket from its annotated size, [n] indices, -1: none."""
    if not len(source):
        raise DataError("the source has no records")
    sizes = getattr(source, "sizes", None)
    if sizes is None:
        if len(buckets) == 1 and min(buckets[0]) >= resize.max_size:
            return np.zeros(len(source), np.int64)  # all fit: no need to read them
        sizes = [_size(source, i, on_bad) for i in range(len(source))]
    sizes, inverse = np.unique(np.asarray(sizes), axis=0, return_inverse=True)
    inverse = inverse.ravel()
    fitting = [find_bucket(tuple(s), buckets, resize) for s in sizes.tolist()]
    bucket_of = np.array([-1 if b is None else b for b in fitting])[inverse]
    homeless = np.flatnonzero(bucket_of < 0)
    if len(homeless) and on_bad == "raise":
        row = int(homeless[0])
        shape = _resized(tuple(sizes[inverse[row]].tolist()), resize)
        raise DataError(
            f"{source[row].name}: resized to (height, width) = {shape} it fits into "
            f"none of the buckets {tuple(buckets)}; give one that holds it, or skip "
            f"such records with {SKIP}"
        )
    if len(homeless) == len(bucket_of):
        raise DataError("no image can be read and fits into a bucket")
    if len(homeless):
        log.warning("%d x image without a bucket, left out", len(homeless))
    return bucket_of


def _size(source: Source, index: int, on_bad: OnBad) -> tuple[int, int]:
    try:
        return image_size(source[index])
    except DataError as error:
        if on_bad == "raise":
            raise DataError(
                f"{error}; mend it, or skip such records with {SKIP}"
            ) from error
        count_and_warn(f"left out: {error}", 1)
        return 0, 0


def find_bucket(
    size: tuple[int, int], buckets: Sequence[tuple[int, int]], resize: Resize
) -> int | None:
    """Return the smallest bucket for an image of this (height, width), None if none."""
    if 0 in size:
        return None
    return transforms.smallest_bucket(_resized(size, resize), buckets)


def _resized(size: tuple[int, int], resize: Resize) -> tuple[int, int]:
    shape, _ = transforms.resize_shape(
        size,
        # With several shorter sides the image must fit whichever is drawn.
        min_size=max(resize.min_sizes, default=None),
        max_size=resize.max_size,
        rule=resize.rule,
    )
    return shape


def _let_workers_start() -> None:
    """Let Grain start processes where nobody has parsed absl's flags.

    Grain 0.2.18 reads one of its flags when it starts workers, and absl refuses before
    parsing; programs that do not use absl never parse.
    """
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
