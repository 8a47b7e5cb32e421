"""`prepare --check` reads all of a data set and tells of all faults at once."""

import json

import pytest

from experiments import check as check_module
from experiments import prepare
from experiments.config import UsageError

SHAPES = ["shapes", "coco", "--data.train", "4", "--data.val", "2"]


@pytest.fixture
def scenes(tmp_path):
    """Synthetic scenes as COCO json; what checks them."""
    assert prepare.main([*SHAPES, "--out", str(tmp_path)]) == 0

    def check(*more: str) -> int:
        names = ("train/annotations.json", "val/annotations.json")
        data = ("--data.train", names[0], "--data.val", names[1])
        root = ("--data.root", str(tmp_path))
        return prepare.main(["--check", "coco_json", *root, *data, *more])

    return tmp_path, check


def row(output: str, title: str) -> list[str]:
    """The last two numbers of the line that begins with `title`."""
    (line,) = (x for x in output.splitlines() if x.strip().startswith(title))
    return line.split()[-2:]


def test_good_data_gives_its_figures_and_code_0(scenes, capsys, monkeypatch):
    _, check = scenes
    monkeypatch.setattr(check_module, "PROGRESS_EVERY", -1)
    assert check() == 0
    output, progress = capsys.readouterr()
    assert "train: 4 of 4 images" in progress and "val: 2 of 2 images" in progress
    assert row(output, "images read whole") == ["4", "2"]
    assert "no faults" in output and "classes of train: " in output


def test_every_fault_of_both_splits_is_told_and_counted(scenes, capsys):
    root, check = scenes
    images = root / "train" / "images"
    cut, gone = sorted(images.iterdir())[:2]
    cut.write_bytes(cut.read_bytes()[:200])
    gone.unlink()
    for split, boxes in (("train", [[-50, 0, 5, 5], [0, 0, 1e9, 5]]), ("val", [[1]])):
        path = root / split / "annotations.json"
        data = json.loads(path.read_text())
        last = {"image_id": data["images"][-1]["id"], "category_id": 1}
        data["annotations"] += [dict(last, bbox=box) for box in boxes]
        path.write_text(json.dumps(data))
    assert check() == 1
    output = capsys.readouterr().out
    faults = [x for x in output.splitlines() if x.startswith(("train: ", "val: "))]
    assert len(faults) == 5
    for part in (f"{cut.name} (image id", gone.name, "[-50, 0, 5, 5]", "[1]"):
        assert sum(part in fault for fault in faults) == 1
    assert row(output, "images read whole") == ["2", "2"]
    assert row(output, "box lies outside the image") == ["2", "0"]
    assert row(output, "image without a file") == ["1", "0"]
    assert row(output, "image that cannot be read") == ["1", "0"]
    assert row(output, "entry with a missing or wrong field") == ["0", "1"]
    assert output.endswith("5 faults\n")


def test_a_split_that_cannot_be_opened_does_not_hide_the_other(scenes, capsys):
    root, check = scenes
    (root / "train" / "annotations.json").write_text("{")
    assert check() == 1
    output = capsys.readouterr().out
    assert "train: " in output and "not a json file" in output
    assert row(output, "images read whole") == ["0", "2"]


def test_cut_boxes_and_images_without_a_bucket_are_counted(scenes, capsys):
    _, check = scenes
    assert check("--data.max-boxes", "1", "--data.buckets", "8", "8") == 1
    output = capsys.readouterr().out
    assert row(output, "image that fits into no bucket") == ["4", "2"]
    objects, cut = row(output, "objects"), row(output, "cut by --data.max-boxes 1")
    alone = row(output, "without objects")
    for total, left, none, images in zip(objects, cut, alone, (4, 2), strict=True):
        assert int(left) == int(total) - (images - int(none))


def test_a_class_that_the_detector_lacks_is_a_fault(scenes, capsys):
    root, _ = scenes
    data = ["--data.kind", "coco", "--data.root", str(root), "--data.limit", "2"]
    for split in ("train", "val"):
        data += [f"--data.{split}", f"{split}/annotations.json"]
    assert prepare.main(["--check", "bccd_faster_rcnn", *data]) == 1
    assert "of the classes RBC, WBC, Platelets; it has " in capsys.readouterr().out


def test_check_takes_a_config_and_no_form():
    for arguments in (["--check"], ["--check", "shapes", "coco"]):
        with pytest.raises(UsageError, match="or a config alone with --check"):
            prepare.main(arguments)
