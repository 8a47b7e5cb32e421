"""File names and links that lead out of the data folder are faults, not files."""

import json
import os

import pytest
from PIL import Image

from rpn_jax.data import CocoSource, DataError, VocSource
from rpn_jax.data.folder import Folder


@pytest.fixture
def root(tmp_path):
    """Images in a folder and beside it, and links of every kind."""
    root = tmp_path / "images"
    for folder in (root / "sub", tmp_path / "images-2", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    for path in (root, root / "sub", tmp_path / "images-2", tmp_path / "elsewhere"):
        Image.new("RGB", (100, 80)).save(path / "a.png")
    (root / "out.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "in.png").symlink_to("sub/a.png")
    (root / "in").symlink_to("sub")
    (root / "loop.png").symlink_to("loop.png")
    (tmp_path / "link").symlink_to(root)
    return root


OUTSIDE = {
    "out.png": "elsewhere/a.png",
    "out/a.png": "elsewhere",
    "../elsewhere/a.png": "elsewhere",
    "../images-2/a.png": "images-2",
    "sub/../../elsewhere/a.png": "elsewhere",
    "../no-such-folder/a.png": "no-such-folder",
    "/etc/passwd": "/etc",
}


@pytest.mark.parametrize(
    "name", ["a.png", "sub/a.png", "in.png", "in/a.png", "./a.png"]
)
def test_files_inside_are_found_through_whatever_links(root, name):
    assert Folder(root).find(name, "") == root / name
    linked = root.parent / "link"  # the user has named it
    assert Folder(linked).find(name, "") == linked / name


@pytest.mark.parametrize(
    "name",
    ["b.png", "sub", ".", "", "loop.png", "a.png/b", "\0", "\ud800", "x" * 5000],
)
def test_what_is_no_file_is_not_found(root, name):
    assert Folder(root).find(name, "") is None


@pytest.mark.parametrize("name", OUTSIDE)
def test_files_outside_are_refused_with_the_place_and_a_way(root, name):
    with pytest.raises(DataError) as error:
        Folder(root).find(name, "boxes.json: image 5")
    for part in (
        "boxes.json: image 5",
        name,
        str(root),
        OUTSIDE[name],
        "the whole folder",
    ):
        assert part in str(error.value)


def test_a_plain_file_costs_one_call_of_the_system(root, monkeypatch):
    folder = Folder(root)
    folder.find("a.png", "")
    monkeypatch.setattr(os.path, "realpath", None)
    assert folder.find("a.png", "") == root / "a.png"


@pytest.mark.parametrize("name", ["out.png", "../elsewhere/a.png", "/etc/passwd"])
def test_a_json_cannot_name_files_outside(root, name, caplog):
    path = root.parent / "boxes.json"
    images = [{"id": i, "file_name": n} for i, n in enumerate(["a.png", name])]
    content = {"images": images, "annotations": [], "categories": []}
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"boxes\.json: image .* \(id 1\).*--data\.on"):
        CocoSource(path, root)
    assert len(CocoSource(path, root, on_bad="skip")) == 1
    assert "1 x file name that leads out of its folder" in caplog.text


@pytest.mark.parametrize("fault", ["stem", "filename", "image", "annotation"])
def test_a_voc_folder_cannot_name_files_outside(tmp_path, root, fault, caplog):
    outside = tmp_path / "elsewhere"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    images, annotations = tmp_path / "JPEGImages", tmp_path / "Annotations"
    xml = "<annotation><filename>{}</filename></annotation>"
    (annotations / "a.xml").write_text(xml.format("../elsewhere/a.png"))
    (outside / "b.xml").write_text(xml.format(""))
    stem = "a"
    if fault == "stem":
        stem = "../elsewhere/b"
    elif fault == "image":
        (images / "a.jpg").symlink_to(outside / "a.png")
    elif fault == "annotation":
        (images / "b.png").write_bytes((root / "a.png").read_bytes())
        (annotations / "b.xml").symlink_to(outside / "b.xml")
        stem = "b"
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(stem)
    with pytest.raises(DataError, match=r"leads out of .*elsewhere.*--data\.on-bad"):
        VocSource(tmp_path, "train")
    assert len(VocSource(tmp_path, "train", on_bad="skip")) == 0
    assert "1 x file name that leads out of its folder" in caplog.text


def test_the_folders_of_a_voc_folder_may_be_links(tmp_path, root):
    real = tmp_path / "real"
    for folder in ("JPEGImages", "Annotations"):
        (real / folder).mkdir(parents=True)
        (tmp_path / "voc").mkdir(exist_ok=True)
        (tmp_path / "voc" / folder).symlink_to(real / folder)
    (tmp_path / "voc" / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "voc" / "ImageSets" / "Main" / "train.txt").write_text("a")
    (real / "Annotations" / "a.xml").write_text("<annotation/>")
    (real / "JPEGImages" / "a.png").write_bytes((root / "a.png").read_bytes())
    assert VocSource(tmp_path / "voc", "train")[0].size == (80, 100)
