"""Every fault of a VOC folder: named with file, record and a way, or counted."""

import time

import pytest
from PIL import Image

from rpn_jax.data import DataError, VocSource

BOX = "<xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>20</ymax>"
OBJECT = f"<object><name>cat</name><bndbox>{BOX}</bndbox></object>"
SIZE = "<size><width>100</width><height>80</height></size>"
GOOD = f"<annotation>{SIZE}{OBJECT}</annotation>"
# Ten to the ninth copies of "lol".
LAUGHS = "".join(
    f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "lol"}">' for n in range(10)
)


@pytest.fixture
def write(tmp_path):
    """Write a folder of two images whose second annotation is `xml`."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for stem in "ab":
        Image.new("RGB", (100, 80)).save(tmp_path / "JPEGImages" / f"{stem}.jpg")
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(GOOD)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")

    def write(xml: str | bytes):
        content = xml if isinstance(xml, bytes) else xml.encode()
        (tmp_path / "Annotations" / "b.xml").write_bytes(content)
        return tmp_path

    return write


RECORDS = {
    "cut": (GOOD[:100], "the annotation is broken: "),
    "empty": ("", "the annotation is broken: no element found"),
    "not xml": ("{}", "the annotation is broken: "),
    "not utf-8": (GOOD.replace("cat", "c\xe9").encode("latin1"), "is broken: "),
    "unknown encoding": (f'<?xml version="1.0" encoding="x"?>{GOOD}', "is broken: "),
    "wide encoding": (f'<?xml version="1.0" encoding="cp932"?>{GOOD}', "is broken: "),
    "entities": (f"<!DOCTYPE a [{LAUGHS}]>{GOOD.replace('cat', '&l9;')}", "a DOCTYPE"),
    "file entity": (
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + GOOD,
        "it has a DOCTYPE",
    ),
    "unknown entity": (GOOD.replace("cat", "&x;"), "is broken: undefined entity"),
    "other root": ("<html/>", "an <annotation> is wanted, the file holds <html>"),
    "size": (GOOD.replace(">80<", ">-80<"), "must be whole numbers from 1"),
    "huge size": (GOOD.replace(">80<", ">1e400<"), "must be whole numbers from 1"),
    "size a word": (GOOD.replace(">80<", ">x<"), "must be whole numbers from 1"),
}
OBJECTS = {
    "no box": (GOOD.replace(BOX, ""), "object 0 needs a name and a bndbox"),
    "no name": (GOOD.replace("cat", ""), "object 0 needs a name and a bndbox"),
    "no xmax": (GOOD.replace("<xmax>10</xmax>", ""), "cat and ['1', '1', None, '20']"),
    "a word": (GOOD.replace(">10<", ">ten<"), "['1', '1', 'ten', '20']"),
}
BOXES = {
    "nan": (GOOD.replace(">10<", ">nan<"), "is not finite"),
    "infinite": (GOOD.replace(">10<", ">1e999<"), "is not finite"),
    "huge": (GOOD.replace(">10<", ">1e300<"), "lies outside the image"),
    "outside": (GOOD.replace(">10<", ">103<"), "lies outside the image"),
    "negative": (GOOD.replace("<xmin>1<", "<xmin>-9<"), "lies outside the image"),
    "swapped": (
        GOOD.replace("<xmin>1<", "<xmin>50<"),
        "looks like x, y, width, height",
    ),
    "no area": (GOOD.replace("<xmin>1<", "<xmin>11<"), "has no area"),
}


def refusal(root) -> str:
    """The sentence by which a folder is refused."""
    with pytest.raises(DataError) as error:
        VocSource(root, "train")
    return str(error.value)


@pytest.mark.parametrize("fault", RECORDS)
def test_a_broken_annotation(write, fault, caplog):
    xml, message = RECORDS[fault]
    root = write(xml)
    start = time.perf_counter()
    sentence = refusal(root)
    for part in ("b.xml: ", message, "mend it", "(--data.on-bad skip)"):
        assert part in sentence
    assert "\n" not in sentence
    source = VocSource(root, "train", on_bad="skip")
    assert [source[i].name for i in range(len(source))] == ["a.jpg"]
    assert "1 x " in caplog.text
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("fault", OBJECTS)
def test_an_object_that_lacks_something(write, fault, caplog):
    xml, message = OBJECTS[fault]
    root = write(xml)
    sentence = refusal(root)
    for part in ("b.xml: object 0", message, "mend it, or skip such boxes"):
        assert sentence.count(part) == 1
    source = VocSource(root, "train", on_bad="skip")
    assert [len(source[i].boxes) for i in range(2)] == [1, 0]
    assert "1 x object that lacks a field" in caplog.text


def test_the_other_objects_of_an_image_stay(write):
    other = f"<object><name>dog</name><bndbox>{BOX}</bndbox></object>"
    root = write(
        GOOD.replace(BOX, "").replace("</annotation>", f"{other}</annotation>")
    )
    source = VocSource(root, "train", on_bad="skip")
    assert [len(source[i].boxes) for i in range(2)] == [1, 1]
    assert source.classes[source[1].labels[0]] == "dog"


@pytest.mark.parametrize("fault", BOXES)
def test_a_faulty_box(write, fault, caplog):
    xml, message = BOXES[fault]
    root = write(xml)
    sentence, where = refusal(root), "Annotations/b.xml (image id 1"
    for part in (where, "box 0", message, "mend it", "--data.on-bad"):
        assert part in sentence
    source = VocSource(root, "train", on_bad="skip")
    assert [len(source[i].boxes) for i in range(2)] == [1, 0]
    assert "1 x box" in caplog.text


def test_deep_nesting_is_read(write):
    deep = "<a>" * 100_000 + "</a>" * 100_000
    source = VocSource(write(GOOD.replace(SIZE, SIZE + deep)), "train")
    assert len(source[1].boxes) == 1


def test_a_name_that_is_listed_twice(write, caplog):
    root = write(GOOD)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match=r"train\.txt: a is listed twice; mend it"):
        VocSource(root, "train")
    assert len(VocSource(root, "train", on_bad="skip")) == 2
    assert "1 x record that is listed twice" in caplog.text


def test_a_split_file_that_is_no_text(write):
    root = write(GOOD)
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(DataError, match=r"train\.txt: not a text in UTF-8"):
        VocSource(root, "train")
