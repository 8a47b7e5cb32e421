"""Directories in tfds's form are written and read without TensorFlow."""

import json
import pickle
import shutil
import sys

import numpy as np
import pytest

from rpn_jax.data import (
    CocoSource,
    DataError,
    Resize,
    ShapesSource,
    TfdsSource,
    VocSource,
    export_coco,
    load_image,
    make_dataset,
    prepare_tfds,
)


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> CocoSource:
    """Exported scenes, one of them empty, one box a crowd."""
    folder = tmp_path_factory.mktemp("coco")
    path = export_coco(ShapesSource(5, seed=0, size=64), folder)
    data = json.loads(path.read_text())
    data["annotations"][0]["iscrowd"] = 1
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != 3]
    path.write_text(json.dumps(data))
    return CocoSource(path, folder / "images")


@pytest.fixture(scope="module")
def prepared(coco, tmp_path_factory):
    return prepare_tfds({"train": coco}, tmp_path_factory.mktemp("tfds"))


def assert_same_records(one, two) -> None:
    assert one.classes == two.classes
    assert len(one) == len(two)
    for i in range(len(one)):
        a, b = one[i], two[i]
        assert (a.name, a.size) == (b.name, b.size)
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_array_equal(a.ignore, b.ignore)
        np.testing.assert_allclose(a.areas, b.areas, atol=0.51)
        np.testing.assert_array_equal(load_image(a), load_image(b))


def test_coco_records_come_back_from_array_record(coco, prepared):
    source = TfdsSource(prepared, "train")
    assert_same_records(source, coco)
    assert [source[i].image_id for i in range(5)] == [0, 1, 2, 3, 4]
    assert source[0].image == coco[0].image.read_bytes()
    assert "tensorflow" not in sys.modules


def test_coco_records_come_back_from_parquet(coco, tmp_path):
    from rpn_jax.data.builders import RpnCoco

    builder = RpnCoco(
        sources={"train": coco}, data_dir=str(tmp_path), file_format="parquet"
    )
    builder.download_and_prepare(file_format="parquet")
    assert_same_records(TfdsSource(builder.data_dir, "train"), coco)


def test_features_are_those_of_tfds_coco(prepared, coco):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(prepared)
    features = builder.info.features
    assert set(features) == {"image", "image/filename", "image/id", "objects"}
    names = {"id", "area", "bbox", "label", "is_crowd"}
    assert set(features["objects"].feature) == names
    example = builder.as_data_source("train")[0]
    x1, y1, x2, y2 = coco[0].boxes[0] / 64
    np.testing.assert_allclose(example["objects"]["bbox"][0], [y1, x1, y2, x2], 1e-6)


def test_splits_and_pickles_work(prepared):
    half = TfdsSource(prepared, "train[:40%]")
    assert len(half) == 2
    copy = pickle.loads(pickle.dumps(half))
    np.testing.assert_array_equal(copy[1].boxes, half[1].boxes)


def test_a_prepared_directory_feeds_the_pipeline(prepared):
    source = TfdsSource(prepared, "train")
    iterator = make_dataset(
        source, batch=5, buckets=((64, 64),), resize=Resize(max_size=64), train=False
    )
    assert next(iterator).image_ids.tolist() == [0, 1, 2, 3, 4]
    iterator.close()


def test_voc_keeps_tfds_s_one_based_boxes(shared_data, tmp_path):
    import tensorflow_datasets as tfds

    voc = VocSource(shared_data / "voc12_subset", "val")
    voc._records = voc._records[:12]
    path = prepare_tfds({"val": voc}, tmp_path)
    source = TfdsSource(path, "val")
    assert_same_records(source, voc)
    example = tfds.builder_from_directory(path).as_data_source("val")[0]
    assert set(example) == {
        "image",
        "image/filename",
        "objects",
        "labels",
        "labels_no_difficult",
    }
    height, width = voc[0].size
    x1, y1, x2, y2 = voc[0].boxes[0]
    expected = [(y1 + 1) / height, (x1 + 1) / width, y2 / height, x2 / width]
    np.testing.assert_allclose(example["objects"]["bbox"][0], expected, rtol=1e-5)


def test_tfrecord_is_refused_with_the_way_to_convert(prepared, tmp_path):
    for file in prepared.glob("*.json"):
        content = file.read_text().replace("array_record", "tfrecord")
        (tmp_path / file.name).write_text(content)
    with pytest.raises(DataError, match="convert_format .*array_record"):
        TfdsSource(tmp_path, "train")


def test_what_is_no_prepared_directory_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no dataset_info\.json"):
        TfdsSource(tmp_path, "train")


def test_a_broken_image_stops_the_preparation_or_is_left_out(coco, tmp_path, caplog):
    shutil.copytree(coco.json.parent, tmp_path / "coco")
    copy = CocoSource(tmp_path / "coco" / coco.json.name, tmp_path / "coco" / "images")
    copy[1].image.write_bytes(b"broken")
    with pytest.raises(DataError, match=rf"{copy[1].name}: the image cannot .*skip"):
        prepare_tfds({"train": copy}, tmp_path / "one")
    path = prepare_tfds({"train": copy}, tmp_path / "two", on_bad="skip")
    source = TfdsSource(path, "train")
    assert [source[i].image_id for i in range(4)] == [0, 2, 3, 4]
    assert "1 x image that cannot be read" in caplog.text


def damaged(prepared, folder, old: bytes, new: bytes):
    """Copy a prepared directory, with something else in its records."""
    shutil.copytree(prepared, folder)
    (file,) = folder.glob("*.array_record*")
    content = file.read_bytes()
    assert content.count(old) >= 1 and len(old) == len(new)
    file.write_bytes(content.replace(old, new, 1))
    return folder


def test_a_damaged_record_is_named_and_skipped(prepared, tmp_path, caplog):
    folder = damaged(prepared, tmp_path / "copy", b"IHDR", b"IHDX")
    options = dict(batch=5, buckets=((64, 64),), resize=Resize(max_size=64))
    with pytest.raises(DataError, match=r"copy: record \d cannot be read \(Corr.*skip"):
        next(make_dataset(TfdsSource(folder, "train"), train=False, **options))
    source = TfdsSource(folder, "train", on_bad="skip")
    batches = make_dataset(source, train=False, on_bad="skip", **options)
    assert sorted(next(batches).image_ids.tolist())[0] == -1
    batches.close()
    assert "left out: " in caplog.text


def test_a_record_with_a_broken_image_has_no_boxes_where_faults_are_skipped(prepared):
    for on_bad in ("raise", "skip"):
        source = TfdsSource(prepared, "train", on_bad=on_bad)
        source._data = [{**source._data[0], "image": b"broken"}]
        make = dict(batch=1, buckets=((64, 64), (32, 32)), train=False)
        if on_bad == "raise":
            with pytest.raises(
                DataError, match=r"png: the image .* is broken: it is in"
            ):
                source[0]
        else:
            assert len(source[0].boxes) == 0 and source[0].size is None
            with pytest.raises(DataError, match="no image can be read"):
                make_dataset(source, on_bad="skip", **make)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "array_record"])
def test_a_cut_file_of_a_prepared_directory_is_named(prepared, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    (file,) = folder.glob(f"*{name}*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(
        DataError, match=r"copy: .* cannot be read \(.*prepare the data"
    ):
        source = TfdsSource(folder, "train")
        [source[i] for i in range(len(source))]


def test_a_split_that_is_not_there_is_named(prepared):
    with pytest.raises(DataError, match=r"split test cannot be read \("):
        TfdsSource(prepared, "test")


def test_old_data_is_never_taken_for_new(coco, prepared):
    with pytest.raises(DataError, match="exists already"):
        prepare_tfds({"train": coco}, prepared.parents[1])


def test_splits_must_share_their_classes(coco, tmp_path):
    class Other(ShapesSource):
        classes = ("blob",)

    with pytest.raises(DataError, match="other classes"):
        prepare_tfds({"train": coco, "val": Other(1, seed=0)}, tmp_path)
