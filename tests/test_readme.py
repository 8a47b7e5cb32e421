"""What the README shows works as it stands there."""

import doctest
import importlib.util
import json
import re

import jax.numpy as jnp
import pytest
from PIL import Image

from experiments import evaluate, export
from rpn_jax.data import ShapesSource
from rpn_jax.pretrained.coco import COCO_IDS
from rpn_jax.pretrained.files import write_safetensors
from tests.conftest import ROOT
from tests.pretrained.peer_weights import from_golden

README = ROOT / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_its_examples_print_what_it_says():
    flags = doctest.NORMALIZE_WHITESPACE
    found = doctest.testfile(str(README), module_relative=False, optionflags=flags)
    assert found.attempted > 10
    assert found.failed == 0


def test_its_eight_lines_draw_proposals_on_a_picture(tmp_path, monkeypatch):
    code = next(c for kind, c in BLOCKS if kind == "python" and "Predictor" in c)
    assert len([line for line in code.splitlines() if line]) == 8
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[274] = 6  # a camera that was held upright
    pixels = ShapesSource(1, seed=5)[0].image[:192]
    Image.fromarray(pixels).save("photo.jpg", exif=exif)
    names: dict = {}
    exec(code, names)
    assert names["image"].size == (192, 256)
    assert len(names["boxes"]) >= 10
    assert (names["boxes"].max(axis=0) <= (192, 256, 192, 256)).all()
    with Image.open("proposals.png") as picture:
        assert picture.size[0] > 100


@pytest.fixture
def checkpoint(golden, tmp_path, monkeypatch):
    """A folder with a photograph and a generated file of torchvision's names.

    It is MobileNet's, for speed; what a file is, its content says.
    """
    state = from_golden(golden("pretrained_fasterrcnn_mobilenet_v3_large_fpn"))
    write_safetensors(tmp_path / "fasterrcnn_resnet50_fpn.pth", state)
    Image.fromarray(ShapesSource(1, seed=5)[0].image).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_its_five_lines_detect_on_a_picture(checkpoint):
    code = next(c for kind, c in BLOCKS if kind == "python" and "plot_detections" in c)
    assert len([line for line in code.splitlines() if line]) == 5
    names: dict = {}
    exec(code, names)
    assert len(names["found"].boxes) == len(names["found"].names)


@pytest.mark.slow
def test_its_lines_for_a_checkpoint_of_torchvision(checkpoint, capsys):
    code = next(c for kind, c in BLOCKS if kind == "python" and "load(" in c)
    names = {"images": jnp.zeros((1, 64, 64, 3)), "image_sizes": jnp.array([[64, 64]])}
    exec(code, names)
    assert "arrays used" in capsys.readouterr().out
    assert names["found"].boxes.shape == (1, 100, 4)
    assert (checkpoint / "back.safetensors").exists()


@pytest.mark.slow
def test_its_command_measures_a_checkpoint_on_coco(checkpoint, capsys):
    command = next(c for kind, c in BLOCKS if kind == "sh" and "--data.kind coco" in c)
    command = command.replace("\\\n", " ").split()[3:]
    record = ShapesSource(1, seed=5)[0]
    boxes, ids = record.boxes, [n for n, name in enumerate(COCO_IDS, 1) if name != "-"]
    (checkpoint / "val2017").mkdir()
    (checkpoint / "photo.jpg").rename(checkpoint / "val2017" / "a.jpg")
    annotations = [
        dict(id=n, image_id=1, category_id=ids[-n], bbox=[x1, y1, x2 - x1, y2 - y1])
        for n, (x1, y1, x2, y2) in enumerate(boxes.tolist())
    ]
    data = {
        "images": [dict(id=1, file_name="a.jpg", height=256, width=256)],
        "annotations": annotations,
        "categories": [dict(id=n, name=COCO_IDS[n - 1]) for n in ids],
    }
    (checkpoint / "instances_val2017.json").write_text(json.dumps(data))
    assert evaluate.main([*command, "--eval.batch", "1"]) == 0
    assert re.search(r"^AP -?\d\.\d{4}$", capsys.readouterr().out, flags=re.MULTILINE)
    found = json.loads((checkpoint / "detections.json").read_text())
    assert {row["category_id"] for row in found} <= set(ids)


def test_its_lines_run_an_export(tmp_path, monkeypatch):
    code = next(c for kind, c in BLOCKS if kind == "python" and "deserialize" in c)
    monkeypatch.chdir(tmp_path)
    export.main(["demo", "--out", "demo.bin"])
    names: dict = {}
    exec(code, names)
    assert names["found"]["boxes"].shape[0] == 2
    assert {*names["found"]} == {"boxes", "scores", "levels", "valid"}


def test_its_commands_name_scripts_configs_and_targets_that_exist():
    shell = "\n".join(code for kind, code in BLOCKS if kind == "sh")
    scripts = re.findall(r"python -m (experiments\.\w+)", shell)
    assert len(scripts) >= 5
    assert all(importlib.util.find_spec(name) for name in scripts)
    for config in re.findall(r"experiments\.train (\w+)", shell):
        assert (ROOT / "experiments" / "configs" / f"{config}.py").exists()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", shell, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README.read_text()))
def test_its_links_lead_somewhere(link):
    assert link.startswith("http") or (ROOT / link).exists()
