import dataclasses
import errno
import json
import random
import re
import shutil
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import evaluate, kill, overhead, propose, train
from experiments.config import (
    DataConfig,
    UsageError,
    data_of,
    exit_with,
    parse_config,
)
from experiments.data import load_objects, open_source
from rpn_jax.conventions import DETECTRON2
from rpn_jax.data import DataError, Resize, ShapesSource, export_coco
from rpn_jax.detections import Detections
from rpn_jax.predict import Model, load_model
from rpn_jax.pretrained import load_params_npz
from rpn_jax.rpn import RPNConfig
from rpn_jax.training.hosts import Stop
from rpn_jax.training.mesh import data_mesh
from rpn_jax.training.metrics import MetricsWriter, read_metrics

# A whole run in seconds: 64 px, few anchors and proposals, no downloads.
TINY = (
    "shapes --steps 6 --batch 2 --lr 0.02 --data.train 16 --data.val 4 "
    "--data.resize.max-size 64 --data.max-boxes 20 --model.head-channels 8 "
    "--model.convention.proposals.test-pre-nms 50 "
    "--model.convention.proposals.test-post-nms 20 --save-every 2 --eval.batch 2 "
    "--optimizer.ema 0.9"
).split()

# What turns another config into one of that kind.
SMALL = (
    "--steps 2 --batch 2 --model.backbone small_resnet --model.head-channels 8 "
    "--data.resize.max-size 64 --data.max-boxes 20 --eval.batch 2 "
    "--model.convention.proposals.test-pre-nms 50 "
    "--model.convention.proposals.test-post-nms 20"
).split()


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Compiling for the eight devices of the tests takes eight times as long."""
    for module in (train, evaluate):
        monkeypatch.setattr(module, "data_mesh", lambda: data_mesh(1))


def run(folder, *options):
    return train.main([*TINY, "--workdir", str(folder), *options])


def params(folder):
    tree, _ = load_params_npz(folder / "weights.npz")
    return jax.tree.leaves(tree)


def losses(folder):
    return [(r["step"], r["loss"]) for r in read_metrics(folder / "metrics.jsonl")]


def assert_same(folder, other):
    for x, y in zip(params(folder), params(other), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        for module in (train, evaluate):
            patch.setattr(module, "data_mesh", lambda: data_mesh(1))
        assert run(folder) == 0
    return folder


def test_a_run_leaves_what_it_says(finished):
    names = {p.name for p in finished.iterdir()}
    wanted = {"config.json", "metrics.jsonl", "checkpoints", "weights.npz"}
    assert names == wanted | {"results.json", "proposals.png"}
    rows = read_metrics(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(row["loss"]) for row in rows)
    health = {"positives", "positives_level0", "objects_missed", "mean_best_iou"}
    assert health | {"loss_objectness", "loss_box", "lr", "grad_norm"} <= set(rows[0])
    assert "AR@100" in rows[-1] and "AR@100" not in rows[0]


def test_a_finished_run_started_again_prints_its_figures(finished, capsys):
    before = json.loads((finished / "results.json").read_text())
    assert run(finished) == 0
    out = capsys.readouterr().out
    assert json.loads((finished / "results.json").read_text()) == before
    assert "resumed from step 6" in out
    for k in (1, 10, 100, 300, 1000):
        assert f"\nAR@{k} {before[f'AR@{k}']:.4f}" in out
    assert f"\nR50@300 {before['R50@300']:.4f}" in out
    for name in ("proposals.png", "weights.npz", "checkpoints/6"):
        assert str(finished / name) in out
    # Callers read the last lines: nothing but the table and its notes.
    last = out[out.index("checkpoints/6") :].splitlines()[1:]
    assert last[0].split() == ["all", "small", "medium", "large"]
    assert [line.split()[0] for line in last[1:7]] == [
        *(f"AR@{k}" for k in (1, 10, 100, 300, 1000)),
        "R50@300",
    ]
    assert len(last[6].split()) == 5
    assert last[7:] == ["at most 20 proposals an image are kept"]


def test_a_run_stopped_by_sigterm_goes_on_to_the_same_end(
    finished, tmp_path, monkeypatch, capsys
):
    step = MetricsWriter.step

    def stop_at_3(self, number, metrics):
        step(self, number, metrics)
        if number == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "step", stop_at_3)
        assert run(tmp_path) == 143
    assert "stopped at step 3" in capsys.readouterr().out
    assert not (tmp_path / "weights.npz").exists()
    assert run(tmp_path) == 0
    assert_same(finished, tmp_path)
    assert losses(tmp_path) == losses(finished)


def test_a_second_ctrl_c_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Stop() as stop:
        assert not stop.at(1)
        signal.raise_signal(signal.SIGINT)
        assert stop.at(2) and stop.code == 130
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Six exported scenes; the options to train and evaluate on them."""
    folder = tmp_path_factory.mktemp("scenes")
    file = export_coco(ShapesSource(6, seed=0, size=64), folder)
    return (
        f"--data.train {file} --data.val {file} --data.images {folder}/images".split()
    )


def test_coco_json_trains_and_ends_with_its_figures(scenes, tmp_path, capsys):
    assert train.main(["coco_json", *scenes, *SMALL, "--workdir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()[-8:]
    assert any(re.match(r"^AR@100 \d\.\d{4}", line) for line in lines)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in rows]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(isinstance(row["loss"], float) for row in rows)


def test_a_truncated_image_can_be_skipped_and_its_objects_are_missed(
    scenes, tmp_path, capsys
):
    old = Path(scenes[1])
    shutil.copytree(old.parent / "images", tmp_path / "images")
    shutil.copy(old, tmp_path / "all.json")
    data = json.loads(old.read_text())
    broken = data["images"][1]
    image = tmp_path / "images" / broken["file_name"]
    Image.open(image).convert("RGB").save(image.with_suffix(".jpg"))
    broken["file_name"] = image.with_suffix(".jpg").name
    content = image.with_suffix(".jpg").read_bytes()
    image.with_suffix(".jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "all.json").write_text(json.dumps(data))
    options = ["--data.images", str(tmp_path / "images")]
    for split in ("train", "val"):
        options += [f"--data.{split}", str(tmp_path / "all.json")]
    workdir = tmp_path / "run"
    command = ["coco_json", *options, *SMALL, "--workdir", str(workdir)]
    assert train.main([*command, "--data.on-bad", "skip"]) == 0
    assert "cannot be read: 1; their objects" in capsys.readouterr().out

    weights = str(workdir / "weights.npz")
    out = ["--out", str(tmp_path / "out"), "--eval.batch", "2"]

    def measure(*arguments):
        assert evaluate.main([weights, *arguments, *out]) == 0
        return json.loads((tmp_path / "out" / "recall.json").read_text())["figures"]

    skipped = measure()
    assert "cannot be read: 1; their objects" in capsys.readouterr().out
    number = len(data["annotations"])
    lost = sum(a["image_id"] == broken["id"] for a in data["annotations"])
    data["images"].remove(broken)
    data["annotations"] = [
        a for a in data["annotations"] if a["image_id"] != broken["id"]
    ]
    (tmp_path / "all.json").write_text(json.dumps(data))
    without = measure()
    assert 0 < lost < number and without["R50@300"] > 0
    assert skipped["R50@300"] * number == pytest.approx(
        without["R50@300"] * (number - lost)
    )


def test_images_of_one_id_are_refused(tmp_path):
    class Twice(ShapesSource):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(image_id=7)

    with pytest.raises(UsageError, match="two images to evaluate on have the id 7"):
        evaluate.load_objects(Twice(2, seed=0, size=64))


def test_overhead_is_measured(capsys):
    assert overhead.main(TINY) == 0
    assert "median of 6: loop" in capsys.readouterr().out


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    options = ["--optimizer.clip-norm", "0", "--optimizer.warmup", "1"]
    assert run(tmp_path, "--lr", "1e38", "--save-every", "1", *options) == 1
    out = capsys.readouterr().out
    assert "error: stopped, step 2: loss_box is nan, loss_" in out and "--lr" in out
    # Saved before: the state after step 1, whose own loss was still good.
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.slow
def test_the_best_checkpoint_is_what_the_run_gives(tmp_path, capsys):
    assert run(tmp_path, "--eval.every", "2") == 0
    rows = read_metrics(tmp_path / "metrics.jsonl")
    scores = {r["step"]: r["AR@100"] for r in rows if "AR@100" in r}
    best = max(scores, key=lambda step: (scores[step], step))
    assert set(scores) == {2, 4, 6}
    kept = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert kept == {str(best), "4", "6"}  # the best, and the last two
    ours = jax.tree.leaves(load_model(tmp_path).params)
    for x, y in zip(ours, params(tmp_path), strict=True):
        np.testing.assert_array_equal(x, y)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["step"] == best
    assert results["AR@100"] == pytest.approx(scores[best], abs=1e-6)
    out = capsys.readouterr().out
    assert f"checkpoints/{best}\n" in out and f"AR@100 {scores[best]:.4f}" in out
    assert evaluate.main([str(tmp_path)]) == 0
    assert f"AR@100 {scores[best]:.4f}" in capsys.readouterr().out


@pytest.mark.slow
def test_weights_of_a_run_start_another_one(finished, tmp_path, capsys):
    weights = ["--weights", str(finished / "weights.npz")]
    # No step is taken: the whole network is the given one.
    assert run(tmp_path / "same", "--steps", "0", *weights) == 0
    assert "checkpoint " not in capsys.readouterr().out
    for x, y in zip(params(finished), params(tmp_path / "same"), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_of_weights_for_another_head_the_trunk_is_taken(finished, tmp_path, capsys):
    weights = ["--weights", str(finished / "weights.npz"), "--steps", "0"]
    assert run(tmp_path, *weights, "--model.head-channels", "4") == 0
    assert "taken are backbone; the rest starts at random" in capsys.readouterr().out
    (given, _), (taken, _) = (
        load_params_npz(folder / "weights.npz") for folder in (finished, tmp_path)
    )
    for part, same in (("backbone", True), ("rpn", False)):
        one, other = (t["params"][part] for t in (given, taken))
        shapes = [jax.tree.map(np.shape, tree) for tree in (one, other)]
        assert (shapes[0] == shapes[1]) == same
        if same:
            jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("bccd --data.root /nowhere", "ImageSets/Main.*/nowhere.*--data.root DIR"),
        ("shapes --weights no.npz", "--weights: there is no weight file no.npz"),
        ("shapes --weights README", "--weights: README "),
        ("coco_json --data.train no.json", "no.json does not exist.*--data.train"),
        ("shapes --data.train many", "--data.train many: a number"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(
    options, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README").write_text("no weights")
    config = parse_config([*options.split(), "--workdir", str(tmp_path / "run")])
    with pytest.raises(UsageError, match=message):
        train.train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("folder", ["/proc/run", "file/run"])
def test_a_work_folder_that_cannot_be_written_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match=f"--workdir {folder} cannot be written: "):
        run(folder)


def test_a_batch_is_split_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "data_mesh", lambda: data_mesh(8))
    with pytest.raises(UsageError, match="--batch 2 cannot be split evenly over 8"):
        run(tmp_path)


def test_errors_of_the_user_end_with_code_2_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "nope"])
    with pytest.raises(SystemExit) as stop:
        exit_with(train.main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no config 'nope'")
    assert len(error.splitlines()) == 1


def test_a_full_disk_is_one_sentence_and_other_errors_of_the_system_are_bugs(capsys):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    def bug(_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    with pytest.raises(SystemExit) as stop:
        exit_with(full)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: [Errno 28] No space left on device: 'metrics.jsonl'"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        exit_with(bug)


def test_evaluate_writes_curves(finished, tmp_path, capsys):
    weights = str(finished / "weights.npz")
    assert evaluate.main([weights, "--out", str(tmp_path), "--data.val", "3"]) == 0
    assert "3 images" in capsys.readouterr().out
    assert (tmp_path / "recall.png").exists()
    values = json.loads((tmp_path / "recall.json").read_text())
    recall, figures = values["recall"], values["figures"]
    assert set(recall) == {"@1", "@10", "@100", "@300", "@1000"}
    assert np.mean(recall["@100"]) == pytest.approx(figures["AR@100"], abs=1e-6)
    assert {f"AR@10_{s}" for s in ("small", "medium", "large")} <= set(figures)


def test_evaluate_measures_the_same_as_training_did(finished, capsys):
    trained = json.loads((finished / "results.json").read_text())
    assert evaluate.main([str(finished)]) == 0
    values = json.loads((finished / "recall.json").read_text())
    for name in ("recall.json", "recall.png"):
        (finished / name).unlink()
    assert values["figures"] == {k: v for k, v in trained.items() if k != "step"}


def test_the_funnel_is_of_one_process(finished, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UsageError, match="--funnel follows the objects in one process"):
        evaluate.main([str(finished / "weights.npz"), "--funnel"])


def test_evaluate_wants_a_model_before_the_options():
    with pytest.raises(UsageError, match="a model is wanted before the options"):
        evaluate.main(["--out", "somewhere"])


def test_evaluate_says_what_is_no_model(tmp_path):
    for path, message in [
        (tmp_path / "no", "cannot take .*no for a model"),
        (tmp_path, "holds no run"),
    ]:
        with pytest.raises(UsageError, match=message):
            evaluate.main([str(path)])


def test_propose_writes_boxes_and_a_picture(finished, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for name, size in [("a.png", (90, 50)), ("b.jpg", (40, 120))]:
        Image.new("RGB", size, "teal").save(images / name)
    (images / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    files = [str(images), str(images / "a.png")]
    options = ["--out", str(out), "--top", "7"]
    assert propose.main([str(finished), *files, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    progress = r"{}/3  .*\.(png|jpg)  7 boxes  \d+\.\d images/s  ETA \d+:\d\d"
    for n in (1, 2, 3):
        assert re.fullmatch(progress.format(n), lines[n - 1])
    assert lines[2].endswith("ETA 0:00") and lines[3:] == [f"results in {out}"]
    names = {"a.json", "a.png", "b.json", "b.png", "a_2.json", "a_2.png"}
    assert {p.name for p in out.iterdir()} == names
    found = json.loads((out / "b.json").read_text())
    boxes, scores = np.array(found["boxes"]), found["scores"]
    assert (found["height"], found["width"]) == (120, 40)
    assert 0 < len(boxes) == len(scores) <= 7
    assert scores == sorted(scores, reverse=True)
    assert boxes.min() >= 0 and (boxes.max(axis=0) <= [40, 120, 40, 120]).all()


def test_propose_saves_what_lies_in_the_best_boxes(finished, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (90, 60, 3), dtype=np.uint8)
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("a", "a_crop2"):  # whose results must not replace the first's
        Image.fromarray(pixels).save(images / f"{name}.png")
    options = ["--out", str(out), "--crops", "3"]
    assert propose.main([str(finished), str(images), *options]) == 0
    names = {"a", "a_crop1", "a_crop2", "a_crop3"}
    names |= {f"a_crop2_2{end}" for end in ("", "_crop1", "_crop2", "_crop3")}
    json_names = {"a.json", "a_crop2_2.json"}
    assert {p.name for p in out.iterdir()} == {f"{n}.png" for n in names} | json_names
    boxes = json.loads((out / "a.json").read_text())["boxes"]
    for n, (x1, y1, x2, y2) in enumerate(boxes[:3], 1):
        crop = np.asarray(Image.open(out / f"a_crop{n}.png"))
        np.testing.assert_allclose(crop.shape, [y2 - y1, x2 - x1, 3], atol=2)


def test_a_crop_holds_every_pixel_that_its_box_touches(tmp_path):
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    boxes = np.array([[0.2, 1, 2.1, 3], [4.5, 3.5, 5, 4], [5, 4, 5, 4]], np.float32)
    propose.save_crops(tmp_path / "a", pixels, boxes)
    for n, wanted in enumerate([pixels[1:3, :3], pixels[3:, 4:], pixels[3:, 4:]], 1):
        crop = np.asarray(Image.open(tmp_path / f"a_crop{n}.png"))
        np.testing.assert_array_equal(crop, wanted)


def test_propose_names_a_broken_image_and_goes_on(finished, tmp_path, capsys):
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (60, 60)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"broken")
    out = ["--out", str(tmp_path / "out"), "--draw", "0"]
    assert propose.main([str(finished), str(tmp_path), *out]) == 1
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.json", "c.json"}
    first, last = capsys.readouterr().err.splitlines()
    assert re.match(r"2/3  .*b\.png: the image cannot be read", first)
    assert last == "1 of 3 images could not be read"


def test_propose_draws_an_image_of_one_row(finished, tmp_path):
    Image.fromarray(np.zeros((1, 3000, 3), np.uint8)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert (
        propose.main([str(finished), str(tmp_path / "a.png"), "--out", str(out)]) == 0
    )
    assert (out / "a.png").read_bytes().startswith(b"\x89PNG")


def test_propose_says_what_is_missing(finished, tmp_path):
    with pytest.raises(UsageError, match="at least 0"):
        propose.main([str(finished), "a.png", "--crops", "-1"])
    for arguments, message in [
        ([str(finished)], "a model and an image are wanted"),
        ([str(finished), str(tmp_path / "no.jpg")], "there is no such file"),
        ([str(finished), str(tmp_path)], "holds no images"),
    ]:
        with pytest.raises(UsageError, match=message):
            propose.main(arguments)


def test_the_legend_names_what_any_of_the_images_shows(tmp_path, monkeypatch):
    pixels, box = np.zeros((40, 40, 3), np.uint8), np.array([[2.0, 2, 20, 20]])
    away, shown = box + 18, []
    examples = [
        evaluate.Example(pixels, away, box),
        evaluate.Example(pixels, box, box),
    ]
    monkeypatch.setattr(
        evaluate.Figure, "legend", lambda _, handles, labels, **__: shown.extend(labels)
    )
    evaluate.draw_examples(tmp_path / "a.png", examples)
    assert sorted(shown) == ["elsewhere", "meets an object", "object"]


def test_propose_does_not_write_where_the_images_are(finished, tmp_path, monkeypatch):
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text("mine")
    monkeypatch.chdir(tmp_path)
    for out in (str(tmp_path), "."):
        with pytest.raises(UsageError, match="is where images lie"):
            propose.main([str(finished), "a.png", "--out", out])
    with Image.open("a.png") as image:
        assert image.size == (60, 60)
    assert Path("a.json").read_text() == "mine"


def test_detections_have_the_category_ids_of_the_json(tmp_path):
    """They start at 0 there, have gaps, and "cow" is a class of the detector alone."""
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    names = {"cat": 0, "dog": 7}
    annotations = [
        dict(id=n, image_id=5, category_id=key, bbox=[4 * n, 2, 10, 12], area=120)
        for n, key in enumerate(names.values())
    ]
    data = {
        "images": [dict(id=5, file_name="a.png", height=40, width=40)],
        "annotations": annotations,
        "categories": [dict(id=key, name=name) for name, key in names.items()],
    }
    (tmp_path / "val.json").write_text(json.dumps(data))
    config = DataConfig(kind="coco", root=tmp_path, val="val.json", images=tmp_path)
    for limit in (0, 1):
        config = dataclasses.replace(config, limit=limit)
        source = open_source(config, "val", classes=("cow", "dog", "cat"))
        record = source[0]
        assert record.labels.tolist() == [2, 1]
        precision = evaluate.Precision(source)
        boxes = np.concatenate([record.boxes, [[20, 20, 30, 30]]])[None]
        labels, scores = np.array([[2, 1, 0]], np.int32), np.ones((1, 3), np.float32)
        found = Detections(boxes.astype(np.float32), scores, labels, labels >= 0)
        exists = np.ones((1, 2), bool)
        objects = (record.boxes, record.labels, exists[0], record.ignore, record.areas)
        objects = evaluate.Objects(*(x[None] for x in objects))
        precision.add(np.array([5]), found, objects)
        assert precision.figures()["AP"] == pytest.approx(1)
        assert [row["category_id"] for row in precision.results] == [0, 7]
    with pytest.raises(UsageError, match="it has dog; a detector .* --model.classes"):
        open_source(config, "val", classes=("cow", "cat"))


def test_weights_of_a_peer_are_measured_at_the_peers_size():
    model = Model.of(RPNConfig(convention=DETECTRON2), {})
    data = data_of(model)
    assert data.resize == Resize(min_size=800, max_size=1333, rule="pil_bilinear")
    assert data.padded_sizes == ((800, 1344), (1344, 800))


def test_a_record_that_cannot_be_read_has_no_objects_where_such_are_skipped():
    class Broken(ShapesSource):
        def __getitem__(self, index):
            if index == 1:
                raise DataError("record 1 cannot be read")
            return super().__getitem__(index)

    source = Broken(3, seed=0, size=64)
    objects, rows = load_objects(source, "skip")
    assert len(objects.boxes) == 4 and sorted(rows.values()) == [0, 2, 3]
    assert objects.valid.any(axis=1).tolist() == [True, False, True, False]
    with pytest.raises(DataError, match="record 1"):
        load_objects(source)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_bit_for_bit_the_same(tmp_path, capsys):
    """SIGKILL, five times, at moments that differ from one test run to the next."""
    seed = str(random.randrange(1000))
    options = ["--kills", "5", "--seed", seed, "--workdir", str(tmp_path)]
    assert kill.main(options) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sum(found["kills"].values()) == 5 and "after its end" not in found["kills"]
