"""VOC folders: pixels counted from 1, splits, masks by instance, and everything a folder is refused for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtail.data import AnnotationTable
from longtail.data.voc_masks import match
from longtail.schema import DataError, UsageError


def thing(name: str, corners: str, more: str = "") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners.split(), strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def write(root: Path, stem: str, *objects: str, size: str | None = "50 40", filename: str = "") -> None:
    width, height = (size or "0 0").split()
    stated = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>" if size else ""
    path = root / "Annotations" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>{filename}</filename>{stated}{''.join(objects)}</annotation>")


def split(root: Path, name: str, *lines: str, kind: str = "Main") -> None:
    path = root / "ImageSets" / kind / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def picture(root: Path, name: str, width: int = 50, height: int = 40, orientation: int = 1) -> None:
    path = root / "JPEGImages" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)


def test_boxes_classes_and_difficult(tmp_path: Path) -> None:
    write(tmp_path, "000002", thing("dog", "1 1 50 40"), thing("cat", "3 4 3 4", "<difficult>1</difficult>"))
    write(tmp_path, "000001", thing("cat", "10.5 1 20 2"))
    write(tmp_path, "000003")
    split(tmp_path, "train", "000002", "", "000001 ", "000003")
    table = AnnotationTable.from_voc(tmp_path, split="train")
    assert table.category_names == ["dog", "cat"], "in the order of their first occurrence"
    assert table.file_names == ["000002.jpg", "000001.jpg", "000003.jpg"]
    assert table.boxes_xywh.tolist() == [[0, 0, 50, 40], [2, 3, 1, 1], [9.5, 0, 10.5, 2]]
    assert table.ignore.tolist() == [False, True, False]
    assert table.label.tolist() == [0, 1, 1]
    assert table.area.tolist() == [2000, 1, 21]
    assert table.image_start.tolist() == [0, 2, 3, 3]
    assert table.num_empty == 1
    assert (table.heights.tolist(), table.widths.tolist()) == ([40] * 3, [50] * 3)
    assert table.source == f"{tmp_path}:train"
    assert table.sources[0].images == str(tmp_path / "JPEGImages")
    assert table.masks is None and table.notes == ()
    assert AnnotationTable.from_voc(tmp_path).file_names == ["000001.jpg", "000002.jpg", "000003.jpg"]
    assert AnnotationTable.from_voc(tmp_path, names=["cat", "cow", "dog"]).label.tolist() == [0, 2, 0]


def test_size_from_the_picture_and_its_name(tmp_path: Path) -> None:
    write(tmp_path, "sub/a", thing("cat", "1 1 2 2"), size=None, filename="C:\\old\\b.png")
    write(tmp_path, "c", size="0 0", filename="elsewhere.png")
    picture(tmp_path, "sub/a.png", 50, 40)
    picture(tmp_path, "elsewhere.png", 30, 20, orientation=6)
    table = AnnotationTable.from_voc(tmp_path)
    assert table.file_names == ["elsewhere.png", "sub/a.png"]
    assert (table.heights.tolist(), table.widths.tolist()) == ([30, 40], [20, 50]), "upright"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "DOCTYPE"),
        (
            '<!DOCTYPE a [<!ENTITY b "lol"><!ENTITY c "&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;&c;">]>'
            "<annotation>&d;</annotation>",
            "DOCTYPE",
        ),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "http://localhost/a.dtd"><annotation/>', "DOCTYPE"),
        ('<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]><annotation/>', "DOCTYPE"),
        ("<annotation><object></annotation>", "not valid XML"),
        ("", "not valid XML"),
        ("<annotation>\x00</annotation>", "not valid XML"),
        ("<annotation>&unknown;</annotation>", "not valid XML"),
    ],
)
def test_xml_that_is_refused(tmp_path: Path, text: str, names: str) -> None:
    write(tmp_path, "a")
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=names) as error:
        AnnotationTable.from_voc(tmp_path)
    assert "a.xml" in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (thing("", "1 1 2 2"), "has no name"),
        ("<object><name>cat</name></object>", "has no bndbox"),
        (thing("cat", "1 1 x 2"), "has the xmax 'x'"),
        (thing("cat", "1 nan 3 2"), "has the ymin 'nan'"),
        (thing("cat", "1 1 inf 2"), "has the xmax 'inf'"),
        (thing("cat", "5 1 3 2"), "enclose nothing"),
        (thing("cat", "1 1 2 2", "<difficult>yes</difficult>"), "difficult 'yes'"),
    ],
)
def test_objects_that_are_refused(tmp_path: Path, entry: str, message: str) -> None:
    write(tmp_path, "a", thing("dog", "1 1 2 2"), entry)
    with pytest.raises(DataError, match=message) as error:
        AnnotationTable.from_voc(tmp_path)
    assert "object 2" in str(error.value) and "a.xml" in str(error.value)


def test_all_problems_in_one_error(tmp_path: Path) -> None:
    write(tmp_path, "a", thing("", "1 1 2 2"), thing("cat", "9 9 1 1"))
    write(tmp_path, "b", size=None)
    split(tmp_path, "train", "a", "b", "gone")
    with pytest.raises(DataError, match="4 problems") as error:
        AnnotationTable.from_voc(tmp_path, split="train")
    for text in ("object 1", "object 2", "b.xml states no size", "gone.xml", "take the picture off the split"):
        assert text in str(error.value)
    write(tmp_path, "c", *[thing("", "1 1 2 2")] * 30)
    with pytest.raises(DataError, match="and 23 more"):
        AnnotationTable.from_voc(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("a 1", "b -1"), "more than a name"),
        (("../a",), "leads out"),
        (("/etc/passwd",), "leads out"),
        (("a", "a"), "in line 1 already"),
        (("",), "is empty"),
    ],
)
def test_splits_that_are_refused(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    write(tmp_path, "a")
    split(tmp_path, "bad", *lines)
    split(tmp_path, "val", "a")
    split(tmp_path, "cat_train", "a 1")
    with pytest.raises(DataError, match=message):
        AnnotationTable.from_voc(tmp_path, split="bad")
    with pytest.raises(DataError, match=r"has bad, val$"):
        AnnotationTable.from_voc(tmp_path, split="none")


def test_folders_and_lists_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder Annotations"):
        AnnotationTable.from_voc(tmp_path)
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(DataError, match=r"no \.xml files"):
        AnnotationTable.from_voc(tmp_path)
    write(tmp_path, "a", thing("cat", "1 1 2 2"))
    with pytest.raises(DataError, match="object 1 has the class 'cat', which is not in the given list"):
        AnnotationTable.from_voc(tmp_path, names=["dog"])
    with pytest.raises(UsageError, match="occurs twice"):
        AnnotationTable.from_voc(tmp_path, names=["dog", "dog"])
    with pytest.raises(UsageError, match="no folder SegmentationObject"):
        AnnotationTable.from_voc(tmp_path, masks=True)


def test_masks_go_to_the_object_whose_box_they_fit(tmp_path: Path) -> None:
    write(tmp_path, "a", thing("cat", "21 11 40 30"), thing("dog", "1 1 10 10"), thing("cow", "45 35 50 40"))
    write(tmp_path, "b", thing("cat", "1 1 2 2"))
    (tmp_path / "SegmentationObject").mkdir()
    numbers = np.zeros((40, 50), dtype=np.uint8)
    numbers[0:10, 0:10] = 1  # the dog: the order of the objects does not matter
    numbers[11:29, 21:39] = 2  # the cat, its outline void
    numbers[10, 20:40] = numbers[29, 20:40] = 255
    numbers[33, 2] = 3  # nobody's
    mask = Image.fromarray(numbers, mode="P")
    mask.putpalette([0] * 768)
    mask.save(tmp_path / "SegmentationObject" / "a.png")
    plain = AnnotationTable.from_voc(tmp_path)
    assert plain.masks is None
    assert "are not read" in plain.notes[0]
    table = AnnotationTable.from_voc(tmp_path, masks=True)
    assert table.masks is not None
    assert table.masks.kind.tolist() == [2, 2, 0, 0]
    cat, dog = table.masks.decode([0, 1], 40, 50)
    assert (cat == (numbers == 2)).all() and (dog == (numbers == 1)).all()
    assert table.area.tolist()[:3] == [18 * 18, 100, 36]
    assert [note.split(" in ")[0] for note in table.notes] == [
        "1 of 2 pictures have no file",
        "2 of 4 objects have no mask",
        "1 instances",
    ]
    Image.new("L", (5, 5)).save(tmp_path / "SegmentationObject" / "b.png")
    with pytest.raises(DataError, match=r"b\.png is 5 x 5"):
        AnnotationTable.from_voc(tmp_path, masks=True)
    (tmp_path / "SegmentationObject" / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b\.png cannot be read"):
        AnnotationTable.from_voc(tmp_path, masks=True)


def test_masks_use_the_segmentation_split(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        write(tmp_path, stem, thing("cat", "1 1 10 10"))
    split(tmp_path, "train", "a", "b")
    split(tmp_path, "train", "b", kind="Segmentation")
    (tmp_path / "SegmentationObject").mkdir()
    Image.new("L", (50, 40), 0).save(tmp_path / "SegmentationObject" / "b.png")
    assert AnnotationTable.from_voc(tmp_path, split="train", masks=True).file_names == ["b.jpg"]
    assert AnnotationTable.from_voc(tmp_path, split="train").num_images == 2


def test_matching_takes_the_best_pair_first() -> None:
    boxes = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 8.0, 10.0)]
    assert match([(0, 0, 8, 10), (0, 0, 10, 10)], boxes) == [(0, 1), (1, 0)]
    assert match([(0, 0, 2, 10)], boxes) == [(0, 1)], "at 0.25 exactly"
    assert match([(0, 0, 1, 10)], boxes) == []


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    write(tmp_path, "a", thing("cat", "1 1 2 2"), filename=f"{'9' * 400}.jpg")
    assert AnnotationTable.from_voc(tmp_path).file_names == ["a.jpg"]
    split(tmp_path, "train", "9" * 400)
    with pytest.raises(DataError, match="cannot be read"):
        AnnotationTable.from_voc(tmp_path, split="train")
    with pytest.raises(DataError, match="there is no split"):
        AnnotationTable.from_voc(tmp_path, split="9" * 400)
