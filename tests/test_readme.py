"""What the README shows works as it stands there."""

import doctest
import importlib.util
import re

import pytest
from PIL import Image

from rpn_jax.data import ShapesSource
from tests.conftest import ROOT

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
    Image.fromarray(ShapesSource(1, seed=5)[0].image).save("photo.jpg")
    names: dict = {}
    exec(code, names)
    assert len(names["boxes"]) >= 10
    with Image.open("proposals.png") as picture:
        assert picture.size[0] > 100


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
