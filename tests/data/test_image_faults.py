"""Image files that are broken, empty, huge, tiny or misnamed, through the pipeline."""

import io
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rpn_jax.data import (
    CocoSource,
    DataError,
    Record,
    Resize,
    decode_image,
    faults,
    make_dataset,
)
from rpn_jax.data.images import header_size


def encoded(kind: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, kind)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that says it has this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class Files:
    """Two good images, and one between them that is `content`."""

    classes = ("thing",)

    def __init__(self, folder: Path, content: bytes | None):
        self.folder = folder
        for name in ("a.png", "c.png"):
            (folder / name).write_bytes(encoded())
        if content is not None:
            (folder / "b.png").write_bytes(content)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Record:
        name = f"{'abc'[index]}.png"
        none = np.zeros(0, np.float32)
        boxes, labels = none.reshape(0, 4), none.astype(np.int32)
        path = self.folder / name
        return Record(path, index, name, None, boxes, labels, none > 0, none)


FAULTS = {
    "truncated": (encoded()[:4000], "is broken"),
    "truncated jpeg": (encoded("JPEG")[:1500], "truncated"),
    "header alone": (encoded()[:40], "is broken"),
    "zero bytes": (b"", "the file is empty"),
    "no image": (b"<html>not found</html>", "in no format that Pillow knows"),
    "bomb": (png_header(100_000, 100_000), "more than 89,478,485 pixels"),
    "large": (png_header(10_000, 9_000), "more than 89,478,485 pixels"),
    "missing": (None, "there is no such image file"),
}


def read(source: Files, **options):
    batches = make_dataset(
        source,
        batch=3,
        buckets=((64, 64),),
        resize=Resize(max_size=64),
        train=False,
        **options,
    )
    batch = next(batches)
    batches.close()
    return batch


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_image_is_named_with_its_record_and_a_way(tmp_path, fault):
    content, message = FAULTS[fault]
    with pytest.raises(DataError) as error:
        read(Files(tmp_path, content))
    for part in ("b.png (image id 1)", message, "mend it", "(--data.on-bad skip)"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_image_is_skipped_and_counted(tmp_path, fault, caplog, monkeypatch):
    monkeypatch.setattr(faults, "_seen", Counter())
    content, message = FAULTS[fault]
    batch = read(Files(tmp_path, content), on_bad="skip", max_boxes=1)
    assert batch.image_ids.tolist() == [0, -1, 2]
    assert "left out: b.png (image id 1)" in caplog.text
    assert message in caplog.text


def test_a_bomb_is_refused_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", None)
    for size in ((10_000, 9_000), (100_000, 100_000)):
        for look in (header_size, lambda data, name: decode_image(data, name=name)):
            with pytest.raises(DataError, match=r"b\.png: the image is refused"):
                look(png_header(*size), "b.png")


def test_an_honest_large_image_is_read(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48)
    assert decode_image(encoded()).shape == (48, 64, 3)
    with pytest.raises(DataError, match="more than 3,072 pixels"):
        decode_image(encoded(size=(64, 49)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode_image(encoded(size=(64, 49))).shape == (49, 64, 3)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_the_content_says_what_a_file_is_not_its_name(tmp_path, kind):
    batch = read(Files(tmp_path, encoded(kind)))
    assert batch.image_ids.tolist() == [0, 1, 2]
    assert batch.image_sizes[1].tolist() == [48, 64]


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1)])
def test_an_image_of_one_pixel_or_one_line_is_read(tmp_path, size):
    batch = read(Files(tmp_path, encoded(size=size)))
    assert batch.image_ids[1] == 1
    width, height = size
    scale = 64 / max(size)
    expected = [max(round(height * scale), 1), max(round(width * scale), 1)]
    assert batch.image_sizes[1].tolist() == expected


def test_a_size_other_than_annotated_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    image = {"id": 3, "file_name": "a.png", "width": 48, "height": 64}
    content = f'{{"images": [{image}], "annotations": [], "categories": []}}'
    (tmp_path / "boxes.json").write_text(content.replace("'", '"'))
    source = CocoSource(tmp_path / "boxes.json", tmp_path)
    with pytest.raises(DataError, match=r"a\.png \(image id 3\): the annotation says"):
        make = dict(buckets=((64, 64),), resize=Resize(max_size=64))
        next(make_dataset(source, batch=1, **make))
