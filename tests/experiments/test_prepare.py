import pytest

from experiments import prepare
from experiments.config import DataConfig, UsageError
from experiments.data import open_source

COUNTS = ["--data.train", "3", "--data.val", "2"]


def test_scenes_become_coco_json(tmp_path):
    assert prepare.main(["shapes", "coco", "--out", str(tmp_path), *COUNTS]) == 0
    drawn = DataConfig(kind="shapes", train="3", val="2")
    config = DataConfig(
        kind="coco",
        root=tmp_path,
        train="train/annotations.json",
        val="val/annotations.json",
    )
    for split, count in (("train", 3), ("val", 2)):
        # Without --data.images each split's images are found beside its json.
        written, scenes = open_source(config, split), open_source(drawn, split)
        assert len(written) == count and written.classes == scenes.classes
        for i in range(count):
            assert written[i].boxes == pytest.approx(scenes[i].boxes, abs=1e-3)


@pytest.mark.slow
def test_scenes_become_a_tfds_directory(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    assert prepare.main(["shapes", "tfds", "--out", str(tmp_path), *COUNTS]) == 0
    folder = next(tmp_path.glob("*/1.0.0"))
    written = open_source(DataConfig(kind="tfds", root=folder), "train")
    assert len(written) == 3


def test_form_and_config_are_wanted():
    for arguments in ([], ["shapes"], ["shapes", "xml"]):
        with pytest.raises(UsageError, match="tfds or coco, are wanted"):
            prepare.main(arguments)


def test_a_split_can_be_cut_short():
    source = open_source(DataConfig(kind="shapes", train="9", limit=4), "train")
    assert len(source) == len(list(source)) == 4
