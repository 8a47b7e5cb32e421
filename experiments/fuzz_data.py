"""Targets of `fuzz`: annotation files, images, file names, weights, prepared data.

What is mutated is made once, in memory. Where something is read it must keep what its
docstring promises; where it is refused, the sentence names the file.
"""

import io
import json
import os
import pickle
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.mutate import mutate_bytes, mutate_value, odd_value
from rpn_jax.data import (
    CocoSource,
    DataError,
    ShapesSource,
    Source,
    TfdsSource,
    VocSource,
    decode_image,
    prepare_tfds,
)
from rpn_jax.data.folder import Folder
from rpn_jax.pretrained import load, save_params_npz
from rpn_jax.pretrained.files import write_safetensors
from rpn_jax.rpn import RPNConfig
from rpn_jax.training.config import config_to_json

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")


# COCO json.


def coco_bytes(rng: np.random.Generator, folder: Path) -> str:
    """Read a COCO json with damaged bytes."""
    return _read_coco(mutate_bytes(rng, json.dumps(_coco()).encode()), folder)


def coco_values(rng: np.random.Generator, folder: Path) -> str:
    """Read a COCO json with odd values, missing and repeated parts."""
    return _read_coco(json.dumps(mutate_value(rng, _coco())).encode(), folder)


def coco_boxes(rng: np.random.Generator, folder: Path) -> str:
    """Read a COCO json with boxes, sizes and ids of any kind."""
    data = _coco()
    for annotation in data["annotations"][: rng.geometric(0.6)]:
        annotation["bbox"] = [_coordinate(rng) for _ in range(4)]
        if rng.random() < 0.2:
            annotation[("area", "iscrowd", "category_id")[rng.integers(3)]] = odd_value(
                rng
            )
    if rng.random() < 0.2:
        data["images"][0][("width", "height")[rng.integers(2)]] = _coordinate(rng)
    return _read_coco(json.dumps(data).encode(), folder)


def _coco() -> dict:
    images = [
        {"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(3)
    ]
    annotations = [
        {
            "id": i,
            "image_id": i % 2,
            "category_id": 1 + i % 2,
            "bbox": [i, 2.5, 20, 10],
            "area": 200,
            "iscrowd": i // 3,
        }
        for i in range(4)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def _coordinate(rng: np.random.Generator) -> float | int:
    if rng.random() < 0.1:
        value = odd_value(rng)
        return value if isinstance(value, int | float) else 7
    value = rng.normal(12, 8)
    return round(value) if rng.random() < 0.5 else value


def _read_coco(content: bytes, folder: Path) -> str:
    images = folder / "images"
    if not images.is_dir():
        images.mkdir()
        for i in range(3):
            Image.new("RGB", (40, 30)).save(images / f"{i}.png")
    path = folder / "boxes.json"
    path.write_bytes(content)
    return _open_both_ways(lambda on_bad: CocoSource(path, images, on_bad), path.name)


# PASCAL VOC xml.


def voc_bytes(rng: np.random.Generator, folder: Path) -> str:
    """Read a VOC annotation with damaged bytes."""
    return _read_voc(mutate_bytes(rng, _voc([2, 3, 20, 25]).encode()), folder)


def voc_values(rng: np.random.Generator, folder: Path) -> str:
    """Read a VOC annotation with odd numbers, texts, and markup between them."""
    corners: list = [2, 3, 20, 25]
    corners[rng.integers(4)] = _coordinate(rng)
    text = _voc(corners)
    if rng.random() < 0.5:
        old = ("40", "30", "a.jpg", "cat", "<difficult>0", "<object>", "bndbox")
        new = (str(odd_value(rng)), "&x;", "<b/>", "<!DOCTYPE a>", "../a", "<a>" * 2000)
        text = text.replace(old[rng.integers(len(old))], new[rng.integers(len(new))])
    return _read_voc(text.encode("utf-8", "surrogatepass"), folder)


def _voc(corners: list) -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(names, corners, strict=True))
    one = f"<object><name>cat</name><difficult>0</difficult><bndbox>{box}</bndbox>"
    return (
        "<annotation><filename>a.jpg</filename><size><width>40</width><height>30"
        f"</height></size>{one}</object></annotation>"
    )


def _read_voc(content: bytes, folder: Path) -> str:
    if not (folder / "JPEGImages").is_dir():
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        for stem in "ab":
            Image.new("RGB", (40, 30)).save(folder / "JPEGImages" / f"{stem}.jpg")
        (folder / "Annotations" / "b.xml").write_text(_voc([1, 1, 40, 30]))
        (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    (folder / "Annotations" / "a.xml").write_bytes(content)
    return _open_both_ways(
        lambda on_bad: VocSource(folder, "train", on_bad=on_bad), "a."
    )


def _open_both_ways(open_source: Callable, named: str) -> str:
    """Open a source; what is refused must be readable where faults are skipped."""
    try:
        source, outcome = open_source("raise"), "read"
    except DataError as error:
        _assert_sentence(error, named)
        outcome = "refused"
        try:
            source = open_source("skip")
        except DataError as error:
            _assert_sentence(error, named)
            return "refused whole"
    _assert_sound(source)
    return outcome


def _assert_sentence(error: Exception, named: str) -> None:
    text = str(error)
    assert named in text and "\n" not in text and len(text) < 1500, text


def _assert_sound(source: Source) -> None:
    for i in range(len(source)):
        record = source[i]
        height, width = record.size or (0, 0)
        x1, y1, x2, y2 = record.boxes.T
        number = len(record.boxes)
        assert record.boxes.dtype == record.areas.dtype == np.float32
        assert height > 0 and width > 0 and record.image_id >= 0
        assert (x1 >= 0).all() and (y1 >= 0).all()
        assert (x2 <= width).all() and (y2 <= height).all()
        assert (x1 <= x2).all() and (y1 <= y2).all()
        assert (record.areas >= 0).all() and np.isfinite(record.areas).all()
        assert len(record.labels) == len(record.ignore) == len(record.areas) == number
        assert (0 <= record.labels).all() and (
            record.labels < len(source.classes)
        ).all()


# Images and their names.


def image(kind: str, rng: np.random.Generator, folder: Path) -> str:
    """Decode an image file with damaged bytes."""
    data = mutate_bytes(rng, _image(kind, int(rng.integers(4))))
    if rng.random() < 0.1:  # most damage to a format's name ends at once
        data = _image(kind, 0)[:12] + data[12:]
    try:
        pixels = decode_image(data, name="photo", upright=bool(rng.integers(2)))
    except DataError as error:
        _assert_sentence(error, "photo")
        return "refused"
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert min(pixels.shape) > 0
    return "read"


@cache
def _image(kind: str, which: int) -> bytes:
    rng = np.random.default_rng(which)
    side = (1, 9, 24, 70)[which]
    mode = "L" if which == 1 else "RGB"
    pixels = rng.integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).convert(mode).save(out, kind, exif=exif)
    return out.getvalue()


def file_names(rng: np.random.Generator, folder: Path) -> str:
    """Look for names of all kinds in a folder with links that lead out of it."""
    root = folder / "names" / "images"
    if not root.is_dir():
        (root / "sub").mkdir(parents=True)
        outside = folder / "names" / "images-2"
        outside.mkdir()
        for path in (root / "a.png", root / "sub" / "a.png", outside / "a.png"):
            path.write_bytes(b"x")
        (root / "out.png").symlink_to(outside / "a.png")
        (root / "in.png").symlink_to(root / "sub" / "a.png")
        (root / "gone.png").symlink_to(root / "nothing")
        (root / "loop.png").symlink_to(root / "loop.png")
        (root / "out").symlink_to(outside)
        (root / "in").symlink_to(root / "sub")
    words = (
        "a.png out.png in.png gone.png loop.png out in sub .. .. . ~ images images-2"
    )
    parts = [
        *words.split(),
        "",
        "",
        "\x00",
        "\ud800",
        "x" * 300,
        str(root),
        "/etc",
        "é",
    ]
    chosen = rng.integers(len(parts), size=rng.integers(1, 6))
    name = "/".join(parts[i] for i in chosen)
    real = os.path.realpath(root)
    try:
        path = Folder(root).find(name, "boxes.json")
    except DataError as error:
        _assert_sentence(error, "boxes.json")
        return "refused"
    if path is None:
        return "none"
    assert path.is_file() and os.path.realpath(path).startswith(real + os.sep), path
    return "found"


# Weights.


def weights(kind: str, rng: np.random.Generator, folder: Path) -> str:
    """Load a weight file with damaged bytes."""
    path, mark = folder / f"weights.{kind}", folder / "ran"
    data = mutate_bytes(rng, _weights(kind, folder))
    if kind == "pkl" and rng.random() < 0.2:
        at = int(rng.integers(len(data) + 1))
        data = data[:at] + _command(mark) + data[at:]
    path.write_bytes(data)
    outcome = _load(path)
    assert not mark.exists(), "what a file names was run"
    return outcome


def weight_config(rng: np.random.Generator, folder: Path) -> str:
    """Load weights of this library whose configuration has odd values."""
    path = folder / "own.npz"
    config = mutate_value(rng, config_to_json(RPNConfig(backbone="small_resnet")))
    save_params_npz(path, {"params": {"w": np.ones(3)}}, {"model": config})
    return _load(path)


def _load(path: Path) -> str:
    try:
        load(path)
    except ValueError as error:
        _assert_sentence(error, path.name)
        return "refused"
    return "read"


@cache
def _weights(kind: str, folder: Path) -> bytes:
    arrays = {
        f"{name}.weight": np.arange(n, dtype=dtype).reshape(1, n)
        for n, (name, dtype) in enumerate([("a", "f4"), ("b", "f2"), ("c", "i8")], 2)
    }
    path = folder / f"valid.{kind}"
    if kind == "npz":
        save_params_npz(path, {k: v for k, v in arrays.items()}, {})
    elif kind == "safetensors":
        write_safetensors(path, arrays)
    else:
        path.write_bytes(pickle.dumps({"model": arrays}, protocol=2))
    return path.read_bytes()


def _command(mark: Path) -> bytes:
    return b"cposix\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."


# Directories of tfds.


def tfds(rng: np.random.Generator, folder: Path) -> str:
    """Read a prepared directory in which one file has damaged bytes."""
    files = _prepared(folder)
    names = sorted(files)
    name = names[rng.integers(len(names))]
    path = folder / "tfds" / name
    path.write_bytes(mutate_bytes(rng, files[name]))
    try:
        source = TfdsSource(path.parent, "train", on_bad="skip")
        for i in range(len(source)):
            record = source[i]
            assert record.boxes.shape == (len(record.labels), 4)
        return "read"
    except DataError as error:
        _assert_sentence(error, "tfds")
        return "refused"
    finally:
        path.write_bytes(files[name])


@cache
def _prepared(folder: Path) -> dict[str, bytes]:
    path = prepare_tfds({"train": ShapesSource(2, seed=0, size=16)}, folder / "new")
    path.rename(folder / "tfds")
    return {file.name: file.read_bytes() for file in (folder / "tfds").iterdir()}


TARGETS = {
    "coco-bytes": coco_bytes,
    "coco-values": coco_values,
    "coco-boxes": coco_boxes,
    "voc-bytes": voc_bytes,
    "voc-values": voc_values,
    **{f"image-{kind.lower()}": partial(image, kind) for kind in FORMATS},
    "file-names": file_names,
    "weights-npz": partial(weights, "npz"),
    "weights-safetensors": partial(weights, "safetensors"),
    "weights-pickle": partial(weights, "pkl"),
    "weights-config": weight_config,
    "tfds": tfds,
}
