"""COCO json files are read as they are meant, and faults in them are named."""

import json
import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from rpn_jax.data import CocoSource, DataError, load_image

CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}]


@pytest.fixture
def write(tmp_path):
    """Write a json with two 100 x 80 images (width x height) and these boxes."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (100, 80)).save(tmp_path / name)

    def write(*annotations, **changes):
        images = [
            {"id": 5, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 2, "file_name": "b.png", "width": 100, "height": 80},
        ]
        filled = [
            {"id": i, "image_id": 5, "category_id": 3, "iscrowd": 0, **a}
            for i, a in enumerate(annotations)
        ]
        data = {"images": images, "annotations": filled, "categories": CATEGORIES}
        path = tmp_path / "boxes.json"
        path.write_text(json.dumps(data | changes))
        return path

    return write


def test_boxes_classes_crowds_and_areas(write, tmp_path):
    path = write(
        {"bbox": [1.5, 2, 10, 20], "area": 77},
        {"bbox": [0, 0, 100, 80], "image_id": 2, "category_id": 90},
        {"bbox": [3, 4, 5, 6], "iscrowd": 1},
    )
    source = CocoSource(path, tmp_path)
    assert len(source) == 2
    assert source.classes == ("cat", "dog")
    assert source.category_ids == (3, 90)
    first, second = source[0], source[1]
    assert (first.image_id, first.name, first.size) == (5, "a.png", (80, 100))
    assert first.boxes.tolist() == [[1.5, 2, 11.5, 22], [3, 4, 8, 10]]
    assert first.labels.tolist() == [0, 0]
    assert first.ignore.tolist() == [False, True]
    assert first.areas.tolist() == [77, 30]
    assert second.labels.tolist() == [1]
    assert load_image(first).shape == (80, 100, 3)
    with pytest.raises(IndexError):
        source[2]


def test_labels_count_by_the_classes_of_a_network(write, tmp_path):
    path = write({"bbox": [1, 2, 3, 4]}, {"bbox": [0, 0, 9, 8], "category_id": 90})
    source = CocoSource(path, tmp_path, classes=("cow", "dog", "-", "cat"))
    assert source.classes == ("cow", "dog", "-", "cat")
    assert source.category_ids == (-1, 90, -1, 3)
    assert source[0].labels.tolist() == [3, 1]
    with pytest.raises(DataError, match="of the classes cow, dog; it has cat$"):
        CocoSource(path, tmp_path, classes=("cow", "dog"))


@pytest.mark.parametrize("area", [None, float("nan"), -3, "missing"])
def test_an_area_that_makes_no_sense_is_the_box_s(write, tmp_path, area, caplog):
    given = {} if area == "missing" else {"area": area}
    boxes = {"bbox": [1, 2, 10, 20], **given}, {"bbox": [3, 4, 5, 6], "area": 29.5}
    assert CocoSource(write(*boxes), tmp_path)[0].areas.tolist() == [200, 29.5]
    assert "1 x area missing" in caplog.text


def test_an_area_that_is_no_number_is_an_error(write, tmp_path):
    with pytest.raises(
        DataError, match=r"boxes\.json: annotation 0 needs a number as area"
    ):
        CocoSource(write({"bbox": [1, 2, 3, 4], "area": "big"}), tmp_path)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 3}], "category 0 .* lacks the field 'name'"),
        ([{"name": "cat"}], "category 0 .* lacks the field 'id'"),
        ([{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}], "2 categories .* id 3"),
    ],
)
def test_faulty_categories_are_named(write, tmp_path, categories, message):
    with pytest.raises(DataError, match=f"boxes.json: {message}"):
        CocoSource(write(categories=categories), tmp_path)


def test_images_without_boxes_stay(write, tmp_path):
    source = CocoSource(write(), tmp_path)
    assert [source[i].boxes.shape for i in range(2)] == [(0, 4)] * 2


def test_sizes_are_read_from_the_files_where_the_json_has_none(write, tmp_path):
    path = write(images=[{"id": 1, "file_name": "a.png"}], annotations=[])
    assert CocoSource(path, tmp_path)[0].size == (80, 100)
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(
        DataError, match=r"a\.png \(id 1\): .*broken.*--data\.on-bad skip"
    ):
        CocoSource(path, tmp_path)
    assert len(CocoSource(path, tmp_path, on_bad="skip")) == 0


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"bbox": [50, 40, 90, 70]}, "looks like x1, y1, x2, y2"),
        ({"bbox": [50, 40, 20, 70]}, "outside the image"),
        ({"bbox": [50, 40, -20, 10]}, "negative width or height"),
        ({"bbox": [5, 5, 0, 10]}, "no area"),
        ({"bbox": [5, 5, float("nan"), 10]}, "not finite"),
        ({"bbox": [5, 5, 5, 5], "category_id": 1}, "unknown category 1"),
        ({"bbox": [5, 5, 5, 5], "image_id": 99}, "image 99, which"),
    ],
)
def test_a_faulty_annotation_is_named(write, tmp_path, annotation, message, caplog):
    path = write({"bbox": [1, 1, 5, 5]}, annotation)
    with pytest.raises(DataError, match=message) as error:
        CocoSource(path, tmp_path)
    assert "boxes.json" in str(error.value)
    assert "annotation 1" in str(error.value)
    source = CocoSource(path, tmp_path, on_bad="skip")
    assert source[0].boxes.tolist() == [[1, 1, 6, 6]]
    assert "1 x" in caplog.text


@pytest.mark.parametrize("bbox", [[1, 2, 3], "1 2 3 4", None, [[1, 2], [3, 4], 5, 6]])
def test_a_bbox_of_another_form_is_an_error(write, tmp_path, bbox):
    with pytest.raises(DataError, match="bbox of four numbers"):
        CocoSource(write({"bbox": bbox}), tmp_path)


@pytest.mark.parametrize("field", ["bbox", "image_id", "category_id"])
def test_a_missing_field_is_named(write, tmp_path, field):
    path = write({"bbox": [1, 1, 5, 5]})
    data = json.loads(path.read_text())
    del data["annotations"][0][field]
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=f"boxes.json: annotation 0 lacks .*{field}"):
        CocoSource(path, tmp_path)


def test_coco_s_own_overshoot_is_clipped_and_counted_once(write, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        path = write(
            {"bbox": [-0.5, 0, 10, 10], "area": 90},
            {"bbox": [50, 40, 50.4, 40.2], "area": 90},
        )
        source = CocoSource(path, tmp_path)
    assert source[0].boxes.tolist() == [[0, 0, 9.5, 10], [50, 40, 100, 80]]
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: 2 x box clipped to the image"
    ]


def test_a_missing_image_is_named_or_skipped_with_its_boxes(write, tmp_path, caplog):
    path = write({"bbox": [1, 1, 5, 5]}, {"bbox": [1, 1, 5, 5], "image_id": 2})
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"image a\.png \(id 5\): there is no file"):
        CocoSource(path, tmp_path)
    source = CocoSource(path, tmp_path, on_bad="skip")
    assert [source[i].name for i in range(len(source))] == ["b.png"]
    assert len(source[0].boxes) == 1
    assert "1 x image without a file" in caplog.text


def test_boxes_alone_need_no_files(write, tmp_path):
    path = write({"bbox": [1, 2, 3, 4]})
    (tmp_path / "a.png").unlink()
    assert CocoSource(path, None)[0].boxes.tolist() == [[1, 2, 4, 6]]
    # Where the json does not say the size, the file has to.
    image = {"id": 5, "file_name": "a.png"}
    with pytest.raises(DataError, match=r"a\.png \(id 5\) has no height"):
        CocoSource(write(images=[image]), None)


@pytest.mark.parametrize("key", ["x", -1, 2**31])
def test_image_ids_must_fit_the_batch(write, tmp_path, key):
    images = [{"id": key, "file_name": "a.png", "width": 100, "height": 80}]
    with pytest.raises(DataError, match="id must be an integer"):
        CocoSource(write(images=images), tmp_path)


def test_what_is_no_coco_json_is_named(tmp_path):
    path = tmp_path / "x.json"
    for content, message in (
        (None, "no such annotation file"),
        ("{", "not a json file"),
        (b'{"images": "\xe9\xff"}', "not a json file"),
        ('{"images": []}', "annotations, categories"),
        ("[]", "annotations, categories, images"),
    ):
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(DataError, match=message):
            CocoSource(path, tmp_path)


def test_sources_pickle(write, tmp_path):
    source = CocoSource(write({"bbox": [1, 1, 5, 5]}), tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[0].boxes, source[0].boxes)
