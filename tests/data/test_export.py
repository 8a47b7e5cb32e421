import contextlib
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rpn_jax.data import (
    CocoSource,
    DataError,
    Record,
    coco_results,
    export_coco,
    load_image,
)

BOXES = np.array([[[10, 20, 40, 60], [0, 0, 5, 5]], 2 * [[1, 2, 3, 4]]], np.float32)
SCORES = np.array([[0.5, 0.25], [0.75, 1]], np.float32)
LABELS = np.array([[0, 1], [2, -1]])
VALID = np.array([[True, True], [True, False]])


def test_results_are_corner_and_size_with_the_ids_of_the_json():
    results = coco_results(
        [42, 7], BOXES, SCORES, LABELS, VALID, category_ids=(1, 18, 90)
    )
    assert results == [
        dict(image_id=42, category_id=1, bbox=[10, 20, 30, 40], score=0.5),
        dict(image_id=42, category_id=18, bbox=[0, 0, 5, 5], score=0.25),
        dict(image_id=7, category_id=90, bbox=[1, 2, 2, 2], score=0.75),
    ]


def test_classes_that_the_json_does_not_have_give_no_results():
    results = coco_results(
        [42, 7], BOXES, SCORES, LABELS, VALID, category_ids=(0, -1, 90)
    )
    assert [(r["image_id"], r["category_id"]) for r in results] == [(42, 0), (7, 90)]


def test_every_image_gets_a_file_of_its_own(tmp_path):
    class Grey:
        """a_2.png, a.png and sub/a.png, with ids 1, 0 and 2."""

        classes = ("cat",)
        entries = (("a_2.png", 1, 10), ("a.png", 0, 20), ("sub/a.png", 2, 30))

        def __len__(self):
            return len(self.entries)

        def __getitem__(self, index):
            name, image_id, grey = self.entries[index]
            pixels, none = np.full((4, 4, 3), grey, np.uint8), np.zeros(0, np.float32)
            boxes, labels = none.reshape(0, 4), none.astype(np.int32)
            record = Record(
                pixels, image_id, name, (4, 4), boxes, labels, none > 0, none
            )
            return record

    copy = CocoSource(export_coco(Grey(), tmp_path), tmp_path / "images")
    grey = {copy[i].image_id: load_image(copy[i])[0, 0, 0] for i in range(3)}
    assert grey == {1: 10, 0: 20, 2: 30}


def test_images_that_fill_a_batch_have_no_results():
    results = coco_results([42, -1], BOXES, SCORES, LABELS, VALID)
    assert [(r["image_id"], r["category_id"]) for r in results] == [(42, 1), (42, 2)]


def test_results_are_what_pycocotools_reads(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    arrays = (jnp.asarray(x) for x in (BOXES, SCORES, LABELS, VALID))
    results = coco_results(jnp.array([42, 7]), *arrays)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    truth = coco.COCO()
    truth.dataset = dict(info={}, images=[dict(id=42), dict(id=7)], categories=[])
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        read = truth.loadRes(str(path))
    assert [a["area"] for a in read.loadAnns(read.getAnnIds(imgIds=[42]))] == [1200, 25]


def test_no_detections_give_no_results():
    assert coco_results([42, 7], BOXES, SCORES, LABELS, VALID & False) == []
    none = np.zeros((0, 5))
    assert coco_results([], np.zeros((0, 5, 4)), none, none.astype(int), none > 0) == []


@pytest.mark.parametrize("label", [-1, 3])
def test_label_without_a_category_is_named(label):
    labels = np.where(LABELS == 2, label, LABELS)
    with pytest.raises(ValueError, match=f"labels must be 0 to 2.* got .*{label}"):
        coco_results([4, 7], BOXES, SCORES, labels, VALID, category_ids=(1, 2, 3))


@pytest.fixture
def images(tmp_path):
    """Three images of which the second is broken and the third has the first's name."""
    names = ["one/a.png", "b.png", "two/a.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), "red").save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"broken")
    images = [
        dict(id=i, file_name=name, width=9, height=9) for i, name in enumerate(names)
    ]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(dict(images=images, annotations=[], categories=[])))
    return CocoSource(path, tmp_path)


def test_a_broken_image_stops_the_export_or_is_left_out_and_counted(
    images, tmp_path, caplog
):
    with pytest.raises(DataError, match=r"b\.png \(image id 1\).*--data\.on-bad skip"):
        export_coco(images, tmp_path / "out")
    path = export_coco(images, tmp_path / "out", on_bad="skip")
    written = CocoSource(path, tmp_path / "out" / "images")
    assert [record.image_id for record in written] == [0, 2]
    assert "1 x image that cannot be read" in caplog.text


def test_images_of_one_name_are_all_exported(images, tmp_path):
    path = export_coco(images, tmp_path / "out", on_bad="skip")
    names = [image["file_name"] for image in json.loads(path.read_text())["images"]]
    assert names == ["a.png", "a_2.png"]
