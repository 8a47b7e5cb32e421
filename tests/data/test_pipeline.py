"""Batches: shuffled, sharded, padded, whole, and the same again after a resume."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from rpn_jax.batch import Batch
from rpn_jax.data import (
    CocoSource,
    DataError,
    Jitter,
    Record,
    Resize,
    ShapesSource,
    make_dataset,
)
from rpn_jax.data.plan import Plan

BUCKETS = ((48, 64), (64, 48), (64, 64))


class Flat:
    """Images of one colour, which tells their id, in three shapes."""

    classes = ("thing",)
    shapes = ((30, 40), (40, 30), (40, 40), (30, 40))

    def __init__(self, num: int, boxes: int = 2):
        self.num, self.boxes = num, boxes

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Record:
        height, width = self.shapes[index % 4]
        pixels = np.full((height, width, 3), index, np.uint8)
        boxes = np.array([[2, 3, 12, 23 + i] for i in range(self.boxes)], np.float32)
        boxes = boxes.reshape(-1, 4)
        number = np.arange(self.boxes)
        return Record(
            pixels,
            index,
            f"flat-{index}.png",
            (height, width),
            boxes,
            number.astype(np.int32),
            number == 1,
            np.full(self.boxes, 9.0, np.float32),
        )


def read(source, count=None, **options) -> list[Batch]:
    """Read `count` batches, or all."""
    options = dict(batch=4, buckets=BUCKETS, resize=Resize(max_size=64)) | options
    iterator = make_dataset(source, **options)
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def ids(batches: list[Batch]) -> list[int]:
    return np.concatenate([b.image_ids for b in batches]).tolist()


def assert_same(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_batch_holds_what_its_docstring_says():
    (batch,) = read(Flat(4), 1, train=False, buckets=((64, 64),), max_boxes=3)
    assert isinstance(batch, Batch)
    assert batch.images.shape == (4, 64, 64, 3)
    assert batch.images.dtype == np.uint8
    assert batch.image_sizes.tolist() == [[48, 64], [64, 48], [64, 64], [48, 64]]
    assert batch.boxes.dtype == np.float32
    assert batch.boxes[0].tolist() == [
        [pytest.approx(v * 1.6) for v in (2, 3, 12, 23)],
        [pytest.approx(v * 1.6) for v in (2, 3, 12, 24)],
        [0, 0, 0, 0],
    ]
    assert batch.valid.tolist() == [[True, True, False]] * 4
    assert batch.ignore.tolist() == [[False, True, False]] * 4
    assert batch.labels.tolist() == [[0, 1, -1]] * 4
    np.testing.assert_allclose(batch.scales, 1.6)
    assert batch.image_ids.dtype == batch.labels.dtype == np.int32
    assert (batch.images[3, :48] == 3).all()
    assert (batch.images[3, 48:] == 0).all()


def test_images_without_boxes_make_batches():
    (batch,) = read(Flat(4, boxes=0), 1)
    assert not batch.valid.any()
    assert batch.boxes.shape == (4, 100, 4)


def test_evaluation_reads_all_once_in_order_and_fills_up_with_nothing():
    batches = read(Flat(10), train=False, buckets=((64, 64),))
    assert ids(batches) == [*range(10), -1, -1]
    last = batches[-1]
    assert not last.valid[2:].any()
    assert not last.images[2:].any()
    assert last.image_sizes[2:].tolist() == [[64, 64]] * 2


def test_evaluation_with_several_buckets_reads_all_once():
    batches = read(Flat(11), train=False)
    read_ids = [i for i in ids(batches) if i >= 0]
    assert sorted(read_ids) == list(range(11))
    shapes = [b.images.shape[1:3] for b in batches]
    assert shapes == [(48, 64)] * 2 + [(64, 48), (64, 64)]


def test_training_batches_keep_to_one_bucket_and_mix_buckets():
    batches = read(Flat(40), 30)
    shapes = [b.images.shape[1:3] for b in batches]
    assert set(shapes) == set(BUCKETS)
    assert shapes != sorted(shapes)
    for batch, shape in zip(batches, shapes, strict=True):
        assert (batch.image_sizes == shape).all()


@pytest.mark.parametrize("buckets", [BUCKETS, ((64, 64),)])
def test_training_sees_every_image_equally_often_in_new_orders(buckets):
    # 20 images of 4 a batch: whole epochs, whichever the bucket's remainder.
    batches = read(Flat(20), 20, buckets=buckets)
    counts = np.bincount(ids(batches), minlength=20)
    assert counts.tolist() == [4] * 20
    assert ids(batches[:5]) != ids(batches[5:10])


def test_epochs_end_training_and_carry_remainders_over():
    batches = read(Flat(10), epochs=2, buckets=((64, 64),))
    assert len(batches) == 5
    assert np.bincount(ids(batches)).tolist() == [2] * 10
    # What does not fill the very last batch is not read.
    assert len(read(Flat(10), epochs=1, buckets=((64, 64),))) == 2


def test_a_source_smaller_than_a_batch_is_repeated():
    (batch,) = read(Flat(3), 1, buckets=((64, 64),), batch=6)
    assert sorted(batch.image_ids.tolist()) == [0, 0, 1, 1, 2, 2]


def test_seeds_give_other_orders_and_the_same_seed_the_same():
    one, two, other = (read(Flat(40), 6, seed=s) for s in (1, 1, 2))
    assert_same(one, two)
    assert ids(one) != ids(other)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("buckets", [BUCKETS, ((64, 64),)])
def test_shards_are_disjoint_and_join_to_the_global_batch(train, buckets):
    options = dict(train=train, buckets=buckets, flip=0.5, jitter=Jitter(contrast=0.5))
    whole = read(Flat(41), 10, **options)
    parts = [
        read(Flat(41), 10, **options | dict(batch=2, shard=(i, 2))) for i in range(2)
    ]
    joined = [
        Batch(*(np.concatenate(leaves) for leaves in zip(a, b, strict=True)))
        for a, b in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def batches_from(start: int, workers: int = 0, shard=(0, 1)) -> list[Batch]:
    """Batches `start` to 8 of a reader that begins there."""
    return read(
        ShapesSource(30, seed=0, size=64),
        8 - start,
        batch=4 // shard[1],
        buckets=((64, 64),),
        resize=Resize(min_size=(48, 64), max_size=64),
        jitter=Jitter(brightness=0.3, contrast=0.3, saturation=0.3),
        start=start,
        workers=workers,
        shard=shard,
    )


def test_a_reader_begins_anywhere():
    assert_same(batches_from(5), batches_from(0)[5:])


def test_a_reader_goes_on_with_another_number_of_processes():
    parts = [batches_from(5, shard=(i, 2)) for i in range(2)]
    joined = [
        Batch(*(np.concatenate(leaves) for leaves in zip(a, b, strict=True)))
        for a, b in zip(*parts, strict=True)
    ]
    assert_same(joined, batches_from(0)[5:])


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 5])
def test_order_and_resuming_are_the_same_with_workers(start):
    assert_same(batches_from(start, workers=2), batches_from(0)[start:])


def test_any_batch_of_a_long_training_is_found_at_once():
    bucket_of = np.random.default_rng(0).integers(0, 3, 1001)
    plan = Plan(bucket_of, batch=8, seed=0, train=True, epochs=None, shard=(0, 1))
    bucket, rows, _ = plan[10**9]
    assert (bucket_of[rows] == bucket).all()
    assert len(plan) > 10**10


def test_flips_happen_in_training_alone_and_move_boxes():
    options = dict(buckets=((64, 64),), flip=1.0)
    (flipped,) = read(Flat(4), 1, train=True, **options)
    (plain,) = read(Flat(4), 1, train=False, **options)
    order = np.argsort(flipped.image_ids)
    widths = plain.image_sizes[:, 1]
    np.testing.assert_allclose(
        flipped.boxes[order][:, 0, 0], widths - plain.boxes[:, 0, 2], atol=1e-4
    )


def test_float_rules_give_float_batches():
    (batch,) = read(Flat(4), 1, resize=Resize(max_size=64, rule="torch_bilinear"))
    assert batch.images.dtype == np.float32
    assert batch.images.max() <= 255


def test_boxes_beyond_the_maximum_are_cut_and_counted(caplog):
    (batch,) = read(Flat(4, boxes=7), 1, max_boxes=5, buckets=((64, 64),))
    assert batch.valid.sum() == 4 * 5
    assert "more than max_boxes=5" in caplog.text


def test_an_image_that_fits_no_bucket_is_named():
    with pytest.raises(DataError, match=r"flat-1\.png.*\(64, 48\).*none of the"):
        make_dataset(Flat(4), batch=2, buckets=((48, 64),), resize=Resize(max_size=64))


def test_an_empty_source_is_an_error():
    with pytest.raises(DataError, match="no records"):
        make_dataset(Flat(0), batch=2, buckets=BUCKETS)


@pytest.mark.parametrize("options", [dict(batch=0), dict(shard=(2, 2))])
def test_impossible_options_are_errors(options):
    with pytest.raises(ValueError, match="batch must be positive"):
        make_dataset(Flat(4), **dict(batch=2, buckets=((384, 384),)) | options)


class Broken(Flat):
    """The second image cannot be read."""

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return record._replace(image=b"") if index == 1 else record


def test_a_broken_image_stops_the_reader_with_its_name():
    with pytest.raises(
        DataError, match=r"flat-1\.png \(image id 1\): the image .*--data\.on-bad skip"
    ):
        read(Broken(4), 1, buckets=((64, 64),))


def test_a_broken_image_is_left_out_and_counted_where_that_is_chosen(caplog):
    (batch,) = read(
        Broken(4), 1, on_bad="skip", train=False, buckets=((64, 64),), max_boxes=2
    )
    assert batch.image_ids.tolist() == [0, -1, 2, 3]
    assert batch.valid.all(axis=1).tolist() == [True, False, True, True]
    assert "flat-1.png (image id 1): the image cannot be read" in caplog.text


class Unreadable(Flat):
    """The source itself cannot read the second record."""

    def __getitem__(self, index):
        if index == 1:
            raise DataError("data: record 1 is damaged")
        return super().__getitem__(index)


def test_a_record_that_the_source_cannot_read_is_left_out_like_an_image(caplog):
    options = dict(train=False, buckets=((64, 64),))
    with pytest.raises(DataError, match="data: record 1 is damaged; mend it, or skip"):
        read(Unreadable(4), 1, **options)
    (batch,) = read(Unreadable(4), 1, on_bad="skip", **options)
    assert batch.image_ids.tolist() == [0, -1, 2, 3]
    assert "left out: data: record 1 is damaged" in caplog.text
    # Where sizes are wanted first, the record is in no bucket.
    batches = read(Unreadable(4), on_bad="skip", train=False)
    assert sorted(i for i in ids(batches) if i >= 0) == [0, 2, 3]


def test_images_without_a_bucket_are_left_out_and_counted_where_that_is_chosen(caplog):
    options = dict(on_bad="skip", buckets=((48, 64),))
    in_order = ids(read(Flat(8), train=False, **options))
    assert in_order == [0, 3, 4, 7]
    assert "4 x image without a bucket, left out" in caplog.text
    assert set(ids(read(Flat(8), 6, **options))) == {0, 3, 4, 7}
    with pytest.raises(DataError, match="no image can be read and fits into a bucket"):
        read(Flat(8), 1, on_bad="skip", buckets=((8, 8),))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_reported_within_seconds():
    batches = make_dataset(
        Flat(8), batch=2, buckets=((384, 384),), workers=2, prefetch=1, threads=1
    )
    next(batches)
    worker = multiprocessing.active_children()[0]
    os.kill(worker.pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(
        DataError, match=r"worker process .* exit code -9 .*--data\.wor"
    ):
        for _ in range(20):
            next(batches)
    assert time.monotonic() - start < 10
    batches.close()


@pytest.mark.slow
def test_a_fault_in_a_worker_arrives_as_the_same_sentence():
    batches = make_dataset(Broken(4), batch=4, buckets=((384, 384),), workers=1)
    with pytest.raises(DataError) as error:
        next(batches)
    batches.close()
    assert str(error.value).startswith("flat-1.png (image id 1): the image cannot be")
    assert str(error.value).endswith("(--data.on-bad skip)")


def test_a_square_padded_batch_is_what_pillow_gives(shared_data):
    root = shared_data / "voc12_subset"
    source = CocoSource(root / "annotations/instances_val.json", root / "JPEGImages")
    (batch,) = read(
        source, 1, train=False, buckets=((384, 384),), resize=Resize(max_size=384)
    )
    for i in range(4):
        record = source[i]
        with Image.open(record.image) as image:
            scale = 384 / max(image.size)
            width, height = (round(side * scale) for side in image.size)
            expected = image.convert("RGB").resize(
                (width, height), Image.Resampling.BILINEAR
            )
            factors = (width / image.width, height / image.height) * 2
        padded = np.zeros((384, 384, 3), np.uint8)
        padded[:height, :width] = expected
        np.testing.assert_array_equal(batch.images[i], padded)
        boxes = batch.boxes[i][batch.valid[i]]
        np.testing.assert_allclose(boxes, record.boxes * factors, rtol=1e-6)


def test_importing_data_imports_neither_grain_nor_tfds():
    code = (
        "import sys, rpn_jax.data\n"
        "bad = {'grain', 'tensorflow_datasets', 'flax'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
