"""VOC folders are read as they are meant, and agree with their COCO twins."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rpn_jax.data import VOC_CLASSES, CocoSource, DataError, VocSource, load_image


def thing(name="cat", box=(1, 1, 10, 20), difficult=0) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "".join(f"<{k}>{v}</{k}>" for k, v in corners)
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{inner}</bndbox></object>"
    )


@pytest.fixture
def root(tmp_path) -> Path:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def write(root):
    """Add a 100 x 80 (width x height) image with these objects to split train."""

    def write(stem: str, *things: str, size: str | None = None) -> None:
        size = size or "<size><width>100</width><height>80</height></size>"
        Image.new("RGB", (100, 80)).save(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation>{size}{''.join(things)}</annotation>"
        )
        with (root / "ImageSets" / "Main" / "train.txt").open("a") as split:
            split.write(f"{stem}\n")

    return write


def test_boxes_count_from_one_and_include_the_last_pixel(write, root):
    write("a", thing(box=(1, 1, 100, 80)), thing("dog", (11, 21, 11.5, 21), 1))
    source = VocSource(root, "train")
    record = source[0]
    assert record.boxes.tolist() == [[0, 0, 100, 80], [10, 20, 11.5, 21]]
    assert record.ignore.tolist() == [False, True]
    assert record.areas.tolist() == [8000, 1.5]
    assert record.size == (80, 100)
    assert source.classes == VOC_CLASSES
    assert [source.classes[i] for i in record.labels] == ["cat", "dog"]
    assert load_image(record).shape == (80, 100, 3)


def test_other_names_are_sorted_or_taken_from_the_caller(write, root):
    write("a", thing("screw"), thing("nut"))
    assert VocSource(root, "train").classes == ("nut", "screw")
    source = VocSource(root, "train", classes=("bolt", "screw", "nut"))
    assert source[0].labels.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"a\.xml.*box 0 .*unknown category"):
        VocSource(root, "train", classes=("nut",))


def test_parts_of_a_person_are_not_objects(write, root):
    part = "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part></object>"
    write("a", thing("person").replace("</object>", part))
    assert VocSource(root, "train")[0].boxes.tolist() == [[0, 0, 10, 20]]


def test_a_size_of_zero_is_read_from_the_image(write, root):
    write("a", size="<size><width>0</width><height>0</height></size>")
    record = VocSource(root, "train")[0]
    assert record.size == (80, 100)
    assert record.boxes.shape == (0, 4)


def test_boxes_that_count_from_zero_are_clipped_and_counted(write, root, caplog):
    write("a", thing(box=(0, 0, 10, 20)))
    assert VocSource(root, "train")[0].boxes.tolist() == [[0, 0, 10, 20]]
    assert "1 x box clipped to the image" in caplog.text


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((50, 40, 20, 10), "looks like x, y, width, height"),
        ((50, 40, 120, 60), "outside the image"),
        (("", 40, 120, 60), "needs a name and a bndbox"),
    ],
)
def test_a_faulty_annotation_is_named_or_skipped(write, root, box, message, caplog):
    write("good", thing())
    write("bad", thing(), thing(box=box))
    with pytest.raises(DataError, match=message) as error:
        VocSource(root, "train")
    assert "bad." in str(error.value)
    source = VocSource(root, "train", on_bad="skip")
    assert sum(len(source[i].boxes) for i in range(len(source))) in (1, 2)
    assert "1 x" in caplog.text


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("JPEGImages", "annotation without an image"),
        ("Annotations", "image without an annotation"),
    ],
)
def test_missing_files_are_named_or_skipped(write, root, folder, kind, caplog):
    write("a")
    write("b")
    next((root / folder).glob("b.*")).unlink()
    with pytest.raises(DataError, match=r"b\.(jpg|xml)"):
        VocSource(root, "train")
    assert len(VocSource(root, "train", on_bad="skip")) == 1
    assert f"1 x {kind}" in caplog.text


def test_broken_xml_and_unknown_splits_are_named(write, root):
    write("a")
    with pytest.raises(DataError, match="no such split; splits found: train"):
        VocSource(root, "test")
    (root / "Annotations" / "a.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"a\.xml: the annotation is broken"):
        VocSource(root, "train")


@pytest.mark.parametrize(
    ("folder", "voc", "split"),
    [("bccd", "BCCD", "test"), ("voc12_subset", ".", "val")],
)
def test_both_layouts_of_real_data_say_the_same(shared_data, folder, voc, split):
    root = shared_data / folder
    one = VocSource(root / voc, split)
    two = CocoSource(
        root / "annotations" / f"instances_{split}.json", root / voc / "JPEGImages"
    )
    assert len(one) == len(two)
    twins = {two[i].name: two[i] for i in range(len(two))}
    for i in range(len(one)):
        a = one[i]
        b = twins[a.name]
        order_a, order_b = np.lexsort(a.boxes.T), np.lexsort(b.boxes.T)
        np.testing.assert_array_equal(a.boxes[order_a], b.boxes[order_b])
        np.testing.assert_array_equal(a.ignore[order_a], b.ignore[order_b])
        names_a = [one.classes[k] for k in a.labels[order_a]]
        assert names_a == [two.classes[k] for k in b.labels[order_b]]
        assert a.size == b.size
    np.testing.assert_array_equal(load_image(one[0]), load_image(twins[one[0].name]))
