"""Every fault of a COCO json: named with file, record and a way, or counted."""

import json
import re

import pytest
from PIL import Image

from rpn_jax.data import CocoSource, DataError

REST = {"category_id": 3, "area": 25, "iscrowd": 0}
NAN, INF = float("nan"), float("inf")
MISSING = "<missing>"


@pytest.fixture
def write(tmp_path):
    """Write a json with two 100 x 80 images, one box each, and changes to it."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (100, 80)).save(tmp_path / name)

    def write(*changes):
        data = {
            "images": [
                {"id": 5, "file_name": "a.png", "width": 100, "height": 80},
                {"id": 7, "file_name": "b.png", "width": 100, "height": 80},
            ],
            "annotations": [
                {"id": key, "image_id": image, "bbox": [1, 1, 5, 5], **REST}
                for key, image in ((1, 5), (2, 7))
            ],
            "categories": [{"id": 3, "name": "cat"}],
        }
        for *path, value in changes:
            part = data
            for key in path[:-1]:
                part = part[key]
            if value is MISSING:
                del part[path[-1]]
            else:
                part[path[-1]] = value
        file = tmp_path / "boxes.json"
        file.write_text(json.dumps(data))
        return file

    return write


ANNOTATION = ("annotations", 1)
# Where, what, and what the error says beside "annotation 2" and the file.
BOXES = [
    ((*ANNOTATION, "bbox", [50, 40, 90, 70]), "looks like x1, y1, x2, y2"),
    ((*ANNOTATION, "bbox", [50, 40, 60, 20]), "outside the image"),
    ((*ANNOTATION, "bbox", [-9, 40, 20, 20]), "outside the image"),
    ((*ANNOTATION, "bbox", [50, 40, 1e300, 1e300]), "outside the image"),
    ((*ANNOTATION, "bbox", [10**300, 40, 1, 1]), "has no area"),
    ((*ANNOTATION, "bbox", [50, 40, -20, 10]), "negative width or height"),
    ((*ANNOTATION, "bbox", [5, 5, 0, 10]), "no area"),
    ((*ANNOTATION, "bbox", [5, NAN, 5, 10]), "not finite"),
    ((*ANNOTATION, "bbox", [5, 5, INF, 10]), "not finite"),
    ((*ANNOTATION, "bbox", [1e308, 5, 1e308, 10]), "not finite"),
    ((*ANNOTATION, "bbox", [1, 2, 3]), "needs a bbox of four numbers"),
    ((*ANNOTATION, "bbox", []), "needs a bbox of four numbers"),
    ((*ANNOTATION, "bbox", None), "needs a bbox of four numbers"),
    ((*ANNOTATION, "bbox", ["1", "2", "3", "4"]), "needs a bbox of four numbers"),
    ((*ANNOTATION, "bbox", [1, 2, 3, None]), "needs a bbox of four numbers"),
    ((*ANNOTATION, "bbox", [1, 2, 3, True]), "needs a bbox of four numbers"),
    ((*ANNOTATION, "bbox", [1, 2, 3, 10**400]), "needs a bbox of four numbers"),
    ((*ANNOTATION, "bbox", {"x": 1}), "needs a bbox of four numbers"),
    ((*ANNOTATION, "bbox", MISSING), "lacks the field 'bbox'"),
    ((*ANNOTATION, "area", "big"), "needs a number as area, got big"),
    ((*ANNOTATION, "iscrowd", "no"), "needs 0 or 1 as iscrowd, got no"),
    ((*ANNOTATION, "category_id", 9), "unknown category 9"),
    ((*ANNOTATION, "category_id", None), "unknown category None"),
    ((*ANNOTATION, "category_id", [3]), "unknown category [3]"),
    ((*ANNOTATION, "category_id", "3"), "unknown category 3"),
    ((*ANNOTATION, "category_id", MISSING), "lacks the field 'category_id'"),
    ((*ANNOTATION, "image_id", 99), "image 99, which the file does not list"),
    ((*ANNOTATION, "image_id", "7"), "which the file does not list"),
    ((*ANNOTATION, "image_id", {}), "which the file does not list"),
    ((*ANNOTATION, "image_id", MISSING), "lacks the field 'image_id'"),
]
OTHER_BOXES = [  # where the id itself is at fault
    ((*ANNOTATION, "id", 1), "annotation 1: two annotations have this id"),
    ((*ANNOTATION, 5), "annotation number 1 of the list is no object with fields: 5"),
    ((*ANNOTATION, None), "annotation number 1 of the list is no object"),
    ((*ANNOTATION, [1]), "annotation number 1 of the list is no object"),
]
IMAGES = [
    (("images", 1, "file_name", "c.png"), "image c.png (id 7): there is no file"),
    (("images", 1, "file_name", ""), "image  (id 7): there is no file"),
    (("images", 1, "file_name", "."), "image . (id 7): there is no file"),
    (("images", 1, "file_name", "\0"), r"image '\x00' (id 7): there is no file"),
    (("images", 1, "file_name", "\ud800"), r"image '\ud800' (id 7): there is no file"),
    (("images", 1, "file_name", None), "image None (id 7): the file_name must be"),
    (("images", 1, "file_name", MISSING), "image 1 of the list lacks the field 'file_"),
    (("images", 1, "id", 5), "image b.png (id 5): two images have this id"),
    (("images", 1, "id", -1), "image b.png (id -1): the id must be an integer"),
    (("images", 1, "id", 2**31), "(id 2147483648): the id must be an integer"),
    (("images", 1, "id", "7"), "image b.png (id 7): the id must be an integer"),
    (("images", 1, "id", [7]), "image b.png (id [7]): the id must be an integer"),
    (("images", 1, "id", MISSING), "image 1 of the list lacks the field 'id'"),
    (("images", 1, "width", "100"), "(id 7): height and width must be whole numbers"),
    (("images", 1, "width", -100), "must be whole numbers from 1, got 80 and -100"),
    (("images", 1, "width", 99.5), "must be whole numbers from 1, got 80 and 99.5"),
    (("images", 1, "width", NAN), "must be whole numbers from 1, got 80 and nan"),
    (("images", 1, "width", 10**400), "must be whole numbers from 1, got 80 and 1000"),
    (("images", 1, 5), "image 1 of the list is no object with fields: 5"),
]


def says(fault) -> str:
    return re.sub(r"\s+", " ", repr(fault))[:60]


@pytest.mark.parametrize(("change", "message"), BOXES + OTHER_BOXES, ids=says)
def test_a_faulty_annotation(write, tmp_path, change, message, caplog):
    path = write(change)
    with pytest.raises(DataError) as error:
        CocoSource(path, tmp_path)
    what = "annotation 2" if (change, message) in BOXES else ""
    for part in (f"{path}: ", what, message, "mend it", "(--data.on-bad skip)"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    source = CocoSource(path, tmp_path, on_bad="skip")
    assert [len(source[i].boxes) for i in range(2)] == [1, 0]
    assert "1 x " in caplog.text and ", " not in caplog.text.split("1 x ")[1]


@pytest.mark.parametrize(("change", "message"), IMAGES, ids=says)
def test_a_faulty_image(write, tmp_path, change, message, caplog):
    path = write(change)
    with pytest.raises(DataError) as error:
        CocoSource(path, tmp_path)
    for part in (f"{path}: ", message, "mend it", "(--data.on-bad skip)"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    source = CocoSource(path, tmp_path, on_bad="skip")
    assert [record.name for record in source] == ["a.png"]
    assert source[0].boxes.tolist() == [[1, 1, 6, 6]]
    assert "1 x " in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a json file"),
        (b'{"images": [], "anno', "not a json file"),
        (b"\x89PNG\r\n", "not a json file"),
        (b'{"images": "\xe9\xff"}', "not a json file"),
        (b"[" * 200_000, "not a json file"),
        (b"1" * 10_000, "not a json file"),
        (b"[]", "has lists of annotations, categories, images"),
        (b"null", "has lists of annotations, categories, images"),
        (b'{"images": [], "annotations": {}}', "has lists of annotations, categories"),
        (b'{"images": [], "annotations": [], "categories": 3}', "lists of categories"),
    ],
    ids=says,
)
@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_a_file_that_is_no_coco_json(tmp_path, content, message, on_bad):
    path = tmp_path / "boxes.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"boxes\.json: .*{message}") as error:
        CocoSource(path, tmp_path, on_bad=on_bad)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("category", [3, None, {"id": "3", "name": "x"}, {"id": 3}])
def test_a_faulty_category(write, tmp_path, category):
    with pytest.raises(DataError, match=r"boxes\.json: category 0 of the list"):
        CocoSource(write(("categories", [category])), tmp_path)


def test_all_faults_are_told_where_that_is_asked(write, tmp_path, caplog):
    faults = []
    path = write(
        ("annotations", 0, "bbox", [-1, 0, 5, 5]),
        ("annotations", 1, "bbox", [0, 0, 500, 5]),
        ("images", 0, "height", -1),
    )
    data = json.loads(path.read_text())
    data["images"].append({"id": 8, "file_name": "a.png", "width": 100, "height": 80})
    data["annotations"] += [
        {"id": 3, "image_id": 8, "bbox": [-1, 0, 5, 5], **REST},
        {"id": 3, "image_id": 8, "bbox": [1, 1, 5, 5], **REST},
    ]
    path.write_text(json.dumps(data))
    source = CocoSource(
        path, tmp_path, lambda kind, n, sentence: faults.append((kind, n, sentence))
    )
    assert [len(record.boxes) for record in source] == [0, 1]
    assert [(kind, n) for kind, n, _ in faults] == [
        ("image with a wrong size", 1),
        ("annotation id used twice", 1),
        ("box lies outside the image", 1),
        ("box clipped to the image", 1),
    ]
    assert all(str(path) in sentence for _, _, sentence in faults[:3])
    assert faults[3][2] is None  # mended: no fault
    assert not caplog.text
