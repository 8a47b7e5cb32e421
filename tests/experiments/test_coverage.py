"""The command from end to end, on annotations alone."""

import json

import numpy as np
import pytest

from experiments import coverage
from experiments.config import UsageError, parse_config
from experiments.progress import Progress
from rpn_jax.data import DataError
from rpn_jax.rpn import RPNConfig

# A small network, so that its maps are traced at once.
MODEL = (
    "--model.backbone small_resnet --model.sizes.0 48 --model.ratios 1 "
    "--data.resize.max-size 128"
).split()


@pytest.fixture
def annotations(tmp_path):
    """Write COCO json files; the images do not exist."""

    def write(name, sides, number=30, seed=0):
        rng = np.random.default_rng(seed)
        images = [
            dict(id=i, file_name=f"{i}.jpg", width=128, height=96)
            for i in range(number)
        ]
        boxes = []
        for i in range(number):
            side = float(sides[i % len(sides)])
            x, y = rng.uniform(0, 128 - side), rng.uniform(0, 96 - side)
            boxes.append(dict(id=i, image_id=i, category_id=1, bbox=[x, y, side, side]))
        boxes.append(dict(boxes[0], id=number, iscrowd=1))
        categories = [dict(id=1, name="thing")]
        content = dict(images=images, annotations=boxes, categories=categories)
        (tmp_path / name).write_text(json.dumps(content))

    return write


@pytest.fixture
def run(tmp_path, capsys):
    """Run the command on the data of `tmp_path`; return what it printed and wrote."""

    def run(*options):
        out = tmp_path / "out"
        root = ["--data.root", str(tmp_path), "--out", str(out)]
        argv = ["coco_json", *MODEL, *root, *map(str, options)]
        assert coverage.main(argv) == 0
        assert (out / "coverage.png").read_bytes().startswith(b"\x89PNG")
        return capsys.readouterr().out, json.loads((out / "coverage.json").read_text())

    return run


def test_a_data_set_is_described_without_its_images(annotations, run):
    annotations("train.json", (20, 48))
    text, result = run()
    assert "30 objects in 30 images; 1 crowd or difficult ones are left out" in text
    assert "stride 16: sizes 48 px, height / width 1" in text
    everything = result["groups"]["size (COCO), original"]["all"]
    assert everything["objects"] == 30
    small = result["groups"]["size, network input"]["16-23 px"]
    assert small["objects"] == 15 and small["above"][2] == 0
    assert "16-23 px (0% of 15)" in text
    assert result["advice"][0] in text
    assert sum(result["iou_histogram"]["objects"]) == 30
    assert np.sum(result["heat_map"]["objects"]) == 30
    assert result["positives_by_level"][0] > 0
    matching = result["matching"]
    assert (matching["images"], matching["ceiling"]) == (30, 1.0)
    assert result["groups"]["size (COCO), original"]["large"]["mean_iou"] is None


def test_designed_anchors_are_measured_on_the_other_split(annotations, run):
    annotations("train.json", (28, 34))
    annotations("val.json", (28, 34), number=20, seed=1)
    text, result = run("--design")
    design = result["design"]
    assert design["held_out"] == "the split val"
    title = "size (COCO), original"
    now, then = (design[key][title]["all"] for key in ("now", "designed"))
    assert now["objects"] == then["objects"] == 20
    assert then["above"][2] > now["above"][2]
    # What is printed can be pasted.
    assert design["command_line"] in text
    model = parse_config(["coco_json", *design["command_line"].split()]).model
    assert [list(level) for level in model.sizes] == design["sizes"]
    assert list(model.ratios) == design["ratios"]
    assert f"sizes={model.sizes},\n    ratios={model.ratios}," in text


def test_designed_anchors_of_a_detector_are_set_where_its_rpn_has_them():
    assert coverage.command_line(RPNConfig(), "--model.rpn") == (
        "--model.rpn.sizes.0 128 256 512 --model.rpn.ratios 0.5 1 2"
    )
    line = "--model.rpn.sizes.0 20 30 40 50 --model.rpn.ratios 0.5 1 2"
    found = parse_config(["bccd_faster_rcnn", *line.split()])
    assert found.rpn.sizes == ((20.0, 30.0, 40.0, 50.0),)


def test_design_wants_objects_to_learn_from_and_others(annotations, run):
    annotations("train.json", (28, 34), number=4)
    with pytest.raises(
        UsageError, match="every fifth image, to measure: there are 4 an"
    ):
        run("--design", "--data.val", "train.json")


def test_a_fifth_is_held_out_where_there_is_one_split(annotations, run):
    annotations("train.json", (28, 34))
    _, result = run("--design", "--data.val", "train.json")
    assert result["design"]["held_out"] == "every fifth image"
    groups = result["design"]["now"]["size (COCO), original"]
    assert groups["all"]["objects"] == 6


def test_the_split_can_be_chosen(annotations, run):
    annotations("val.json", (48,), number=4)
    text, _ = run("--split", "val")
    assert "4 objects in 4 images" in text


def test_one_hypothetical_box(run):
    text, result = run("--box", "12x30", "--image", "128x96")
    assert "A box of 12x30 in an image of 128x96 becomes 12.0 x 30.0 px of" in text
    best, worst = result["iou"]["best"], result["iou"]["worst"]
    assert best == pytest.approx(12 * 30 / 48**2, abs=1e-3) and worst <= best
    assert "it needs smaller anchors, or an image 2.5 times as large" in text
    # 48 px fit where they lie best, and not half a stride off.
    text, result = run("--box", "48x48", "--image", "128x96")
    assert result["iou"]["best"] > 0.9 and result["iou"]["worst"] < 0.6
    assert "needs smaller anchors" not in text


@pytest.mark.parametrize("box", ["128x30", "20x96", "128x96"])
def test_a_box_as_long_as_its_image_has_one_place_there(run, box):
    _, result = run("--box", box, "--image", "128x96")
    iou = result["iou"]
    assert iou["worst"] - 1e-6 <= iou["mean"] <= iou["best"] + 1e-6
    assert box != "128x96" or iou["worst"] == iou["best"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--box", "12x30"], "belong together"),
        (["--image", "12x30"], "belong together"),
        (["--box", "12x30", "--image", "9x9", "--design"], "without --design"),
        (["--box", "12", "--image", "99x99"], "--box 12: WIDTHxHEIGHT is wanted"),
        (["--box", "12x3.5", "--image", "99x99"], "--box 12x3.5: WIDTHxHEIGHT"),
        (["--model.ratios", "-1"], "--model: ratios must be positive"),
        (["--out", "pyproject.toml"], "--out: pyproject.toml is no folder"),
        (["--model.strides", "16", "8"], "--model: every level needs its sizes"),
        (["--data.train", "nowhere.json"], "nowhere.json does not exist"),
    ],
)
def test_what_cannot_be_done_is_said(run, options, message):
    with pytest.raises(UsageError, match=message):
        run(*options)


def test_data_without_objects_is_refused(annotations, run, tmp_path):
    annotations("train.json", (20,), number=1)
    file = tmp_path / "train.json"
    crowd = file.read_text().replace('"category_id"', '"iscrowd": 1, "category_id"')
    file.write_text(crowd)
    with pytest.raises(UsageError, match="no objects in the data of --data.train"):
        run()


def test_a_box_larger_than_its_image_is_refused(run):
    with pytest.raises(DataError, match="does not fit into an image"):
        run("--box", "200x30", "--image", "128x96")


def test_a_config_is_wanted():
    with pytest.raises(UsageError, match="bccd, .* is wanted before the options"):
        coverage.main(["--design"])


def test_help_tells_the_options(capsys):
    with pytest.raises(SystemExit) as stop:
        coverage.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("--box", "--image", "--design", "--split", "--out"):
        assert word in text


def test_progress_is_printed_now_and_then(capsys, monkeypatch):
    now = iter([0, 1, 4, 5, 8])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    progress = Progress("images read")
    for done in (1, 2000, 3000, 4000):
        progress(done, 4000)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["  2,000 of 4,000 images read, 4 s"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "val", "missed"),
    [
        ("voc12_subset", "val", "32-91 px (0% of 188)"),
        ("bccd/BCCD", "test", "32-91 px (0% of 226)"),
    ],
)
def test_the_classic_nine_miss_small_objects(
    shared_data, tmp_path, capsys, folder, val, missed
):
    data = ["--data.root", str(shared_data / folder), "--data.val", val]
    out = ["--out", str(tmp_path)]
    assert coverage.main(["classic", *data, "--design", *out]) == 0
    assert missed in capsys.readouterr().out
    design = json.loads((tmp_path / "coverage.json").read_text())["design"]
    now, then = (
        design[key]["size (COCO), original"]["all"]["above"][2]
        for key in ("now", "designed")
    )
    assert then > now + 0.05
