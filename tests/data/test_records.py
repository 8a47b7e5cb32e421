"""Bad boxes are named, or left out and counted; nothing is dropped silently."""

import numpy as np
import pytest

from rpn_jax.data import DataError, Record, check_record
from rpn_jax.data.faults import count_and_warn

GOOD = [10, 20, 30, 60]
BAD = {
    "is not finite": [np.nan, 0, 5, 5],
    "looks like x, y, width, height": [60, 50, 30, 20],
    "has no area": [10, 10, 10, 40],
    "outside the image": [10, 10, 102.5, 40],
}


def record(boxes, labels=None) -> Record:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes)) if labels is None else np.array(labels)
    ignore = np.zeros(len(boxes), bool)
    areas = np.arange(len(boxes), dtype=np.float32)
    return Record(
        b"", 7, "cat.jpg", (80, 100), boxes, labels.astype(np.int32), ignore, areas
    )


def test_good_records_pass_unchanged():
    given = record([GOOD, [0, 0, 100, 80]])
    checked, counts = check_record(given, 1)
    np.testing.assert_array_equal(checked.boxes, given.boxes)
    assert not counts


def test_no_boxes_are_fine():
    checked, counts = check_record(record([]), 1)
    assert checked.boxes.shape == (0, 4)
    assert not counts


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_box_is_named_with_its_file_and_record(fault):
    with pytest.raises(DataError) as error:
        check_record(record([GOOD, BAD[fault]]), 1)
    for part in (fault, "cat.jpg", "image id 7", "box 1", "(--data.on-bad skip)"):
        assert part in str(error.value)


@pytest.mark.parametrize("label", [-1, 3])
def test_an_unknown_category_is_named(label):
    with pytest.raises(DataError, match="cat.jpg.*unknown category"):
        check_record(record([GOOD], [label]), 3)


def test_skipping_keeps_the_good_boxes_and_counts_the_others():
    given = record([BAD["is not finite"], GOOD, *BAD.values()])
    checked, counts = check_record(given, 1, on_bad="skip")
    np.testing.assert_array_equal(checked.boxes, [GOOD])
    assert checked.areas.tolist() == [1]
    assert sum(counts.values()) == 5
    assert counts["box is not finite"] == 2


def test_a_box_that_sticks_out_a_little_is_clipped_and_counted():
    checked, counts = check_record(record([[-1, 20, 101, 60]]), 1)
    assert checked.boxes.tolist() == [[0, 20, 100, 60]]
    assert counts == {"box clipped to the image": 1}


def test_an_impossible_area_becomes_the_box_s_and_is_counted():
    given = record([GOOD] * 5)
    areas = np.array([np.nan, -1, np.inf, 0, 7], np.float32)
    checked, counts = check_record(given._replace(areas=areas), 1)
    assert checked.areas.tolist() == [800, 800, 800, 0, 7]
    assert list(counts.values()) == [3] and "area" in next(iter(counts))


def test_a_box_that_lies_in_the_margin_outside_is_a_fault():
    with pytest.raises(DataError, match="outside the image"):
        check_record(record([[100, 20, 101, 60]]), 1)


def test_repeated_faults_are_logged_ever_more_rarely(caplog):
    for _ in range(150):
        count_and_warn("a fault met while reading", 1)
    assert [r.args[1] for r in caplog.records] == [1, 10, 100]
