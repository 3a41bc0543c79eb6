"""YOLO sets: boxes and polygons in fractions, splits in all their forms, and what a set is refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from longtail.data import AnnotationTable
from longtail.data.yolo import label_file
from longtail.schema import DataError


def picture(path: Path, width: int = 50, height: int = 40, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def describe(root: Path, **content: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "data.yaml"
    path.write_text(yaml.safe_dump({"names": ["cat", "dog"], **content}))
    return path


def one(root: Path, *lines: str, **content: Any) -> Path:
    picture(root / "images" / "train" / "a.jpg")
    text(root / "labels" / "train" / "a.txt", *lines)
    return describe(root, **{"train": "images/train", **content})


def test_boxes_polygons_and_sizes(tmp_path: Path) -> None:
    path = one(tmp_path, "1 0.5 0.5 1 1", "", "0 0.1 0.2 0.3 0.2 0.3 0.4", "0 0 0 0.5 0 0.5 0.5 0 0.5")
    picture(tmp_path / "images" / "train" / "b.jpg", 30, 20, orientation=6)
    text(tmp_path / "labels" / "train" / "b.txt", "0 0.5 0.25 0.1 0.5")
    picture(tmp_path / "images" / "train" / "c.png")
    table = AnnotationTable.from_yolo(path)
    assert table.file_names == ["train/a.jpg", "train/b.jpg", "train/c.png"]
    assert (table.heights.tolist(), table.widths.tolist()) == ([40, 30, 40], [50, 20, 50]), "upright"
    expected = [[0, 0, 50, 40], [5, 8, 10, 8], [0, 0, 25, 20], [9, 0, 2, 15]]
    np.testing.assert_allclose(table.boxes_xywh, expected, atol=1e-9)
    assert table.label.tolist() == [1, 0, 0, 0]
    assert table.category_names == ["cat", "dog"]
    assert table.masks is not None
    assert table.masks.kind.tolist() == [0, 1, 1, 0]
    np.testing.assert_allclose(table.masks.polygons(1)[0], [5, 8, 15, 8, 15, 16], atol=1e-9)
    np.testing.assert_allclose(table.area, [2000, 40, 500, 30], atol=1e-9)
    assert table.image_start.tolist() == [0, 3, 4, 4]
    assert table.sources[0].images == str(tmp_path / "images")
    assert table.source == f"{path}:train"
    assert table.notes == (f"{path}: 1 of 3 pictures have no text file: they have no objects",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 1.2 1", "'1.2' is not in 0..1"),
        ("0 0.5 -0.5 0.1 0.1", "'-0.5' is not in 0..1"),
        ("0 20 10 30 20", "'20' is not in 0..1"),
        ("0 0.5 nan 0.1 0.1", "'nan' is not in 0..1"),
        ("0 0.5 x 0.1 0.1", "'x' is not in 0..1"),
        ("2 0.5 0.5 0.1 0.1", "class 2 is not among the 2 names"),
        ("-1 0.5 0.5 0.1 0.1", "class '-1' is no whole number"),
        ("cat 0.5 0.5 0.1 0.1", "class 'cat' is no whole number"),
        ("0 0.5 0.5 0 0.1", "has no area"),
        ("0 0.1 0.1 0.2 0.1 0.3 0.1", "polygon has no area"),
        ("0 0.5 0.5 0.1", "has 4 columns"),
        ("0 0.5 0.5 0.1 0.1 0.9", "has 6 columns"),
        ("0", "has 1 columns"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = one(tmp_path, "0 0.5 0.5 0.1 0.1", line)
    with pytest.raises(DataError, match=message) as error:
        AnnotationTable.from_yolo(path)
    assert "a.txt, line 2" in str(error.value)


def test_all_problems_in_one_error(tmp_path: Path) -> None:
    path = one(tmp_path, "0 0.5 0.5 2 0.1", "5 0.5 0.5 0.1 0.1")
    (tmp_path / "images" / "train" / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="3 problems") as error:
        AnnotationTable.from_yolo(path)
    for part in ("line 1", "line 2", "b.jpg cannot be read"):
        assert part in str(error.value)


def test_splits_in_all_forms(tmp_path: Path) -> None:
    for name in ("images/a/1.jpg", "images/b/2.jpg", "other/3.jpg"):
        picture(tmp_path / name)
        text(label_file(tmp_path / name, tmp_path), "0 0.5 0.5 0.5 0.5")
    text(tmp_path / "list.txt", "./images/b/2.jpg", "other/3.jpg", "", "./images/b/2.jpg")
    path = describe(tmp_path, train=["images/a", "images/b"], valid="list.txt", odd="other", nc=2)
    assert AnnotationTable.from_yolo(path).file_names == ["a/1.jpg", "b/2.jpg"]
    listed = AnnotationTable.from_yolo(path, split="val")
    assert listed.file_names == ["images/b/2.jpg", "other/3.jpg"], "from the root, as not all lie below images"
    assert len(listed.label) == 2
    assert AnnotationTable.from_yolo(tmp_path, split="odd").file_names == ["other/3.jpg"]
    with pytest.raises(DataError, match=r"no split 'test'; it has odd, train, val"):
        AnnotationTable.from_yolo(path, split="test")
    with pytest.raises(DataError, match="several splits"):
        AnnotationTable.from_yolo(path, split=None)


def test_roots_and_exports(tmp_path: Path) -> None:
    one(tmp_path / "data", "0 0.5 0.5 0.5 0.5")
    elsewhere = describe(tmp_path / "configs", path="../data", train="images/train", names={0: "a", 1: "b"})
    table = AnnotationTable.from_yolo(elsewhere)
    assert (table.file_names, table.category_names) == (["train/a.jpg"], ["a", "b"])
    picture(tmp_path / "flow" / "train" / "images" / "x.jpg")
    text(tmp_path / "flow" / "train" / "labels" / "x.txt", "0 0.5 0.5 0.5 0.5")
    table = AnnotationTable.from_yolo(describe(tmp_path / "flow", train="../train/images"))
    assert (table.file_names, len(table.label)) == (["train/images/x.jpg"], 1)
    outside = describe(tmp_path / "far", train=str(tmp_path / "data" / "images" / "train"))
    assert AnnotationTable.from_yolo(outside).file_names == ["a.jpg"]
    bare = tmp_path / "bare"
    picture(bare / "images" / "x.jpg")
    text(bare / "labels" / "x.txt", "1 0.5 0.5 0.5 0.5")
    text(bare / "labels" / "classes.txt", "cat", "dog")
    assert AnnotationTable.from_yolo(bare).label.tolist() == [1]


def test_pictures_elsewhere(tmp_path: Path) -> None:
    text(tmp_path / "set" / "labels" / "x.txt", "1 0.5 0.5 0.5 0.5")
    text(tmp_path / "set" / "train.txt", "./images/x.jpg")
    path = describe(tmp_path / "set", train="train.txt")
    with pytest.raises(DataError, match="there is no picture"):
        AnnotationTable.from_yolo(path)
    picture(tmp_path / "pictures" / "x.jpg")
    table = AnnotationTable.from_yolo(path, images=tmp_path / "pictures")
    assert table.sources[0].images == str(tmp_path / "pictures")
    assert table.boxes_xywh.tolist() == [[12.5, 10, 25, 20]]


def test_keypoints_are_left_out_and_counted(tmp_path: Path) -> None:
    path = one(tmp_path, "0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.9 0.9 1", kpt_shape=[2, 3])
    table = AnnotationTable.from_yolo(path)
    assert len(table.label) == 1 and table.masks is None
    assert "the keypoints of 1 objects are not read" in table.notes[0]
    one(tmp_path, "0 0.5 0.5 0.5 0.5", kpt_shape=[2, 3])
    with pytest.raises(DataError, match="it needs 11"):
        AnnotationTable.from_yolo(path)
    one(tmp_path, kpt_shape="many")
    with pytest.raises(DataError, match="kpt_shape is 'many'"):
        AnnotationTable.from_yolo(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [a\n", "not valid YAML"),
        ("names: !!python/object/apply:os.system ['touch owned']\n", "not valid YAML"),
        ("[1, 2]\n", "must hold keys"),
        ("train: images\n", "no class names"),
        ("names: {0: a, 2: b}\n", "must count 0, 1, 2"),
        ("names: [a]\nnc: 3\n", "nc is 3"),
        ("names: [a]\ntrain: 3\n", "train is 3"),
        ("names: [a]\ntrain: nowhere\n", "there is no"),
        ("names: [a]\n", "has no split 'train'"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(DataError, match=message) as error:
        AnnotationTable.from_yolo(tmp_path / "data.yaml")
    assert "data.yaml" in str(error.value)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        AnnotationTable.from_yolo(tmp_path / "none")
    with pytest.raises(DataError, match=r"classes\.txt"):
        AnnotationTable.from_yolo(tmp_path)
    path = one(tmp_path, "0 0.5 0.5 0.5 0.5")
    picture(tmp_path / "images" / "train" / "a.png")
    with pytest.raises(DataError, match="belongs to both"):
        AnnotationTable.from_yolo(path)
    (tmp_path / "images" / "train" / "a.png").unlink()
    (tmp_path / "labels" / "train" / "a.txt").unlink()
    with pytest.raises(DataError, match="none of the 1 pictures"):
        AnnotationTable.from_yolo(path)
    (tmp_path / "b.yaml").write_text("")
    (tmp_path / "data.yaml").rename(tmp_path / "c.yaml")
    with pytest.raises(DataError, match="several YAML files"):
        AnnotationTable.from_yolo(tmp_path)


@pytest.mark.parametrize("key", ["path", "train"])
def test_names_that_no_file_can_have(tmp_path: Path, key: str) -> None:
    path = one(tmp_path, "0 0.5 0.5 0.5 0.5", **{key: "9" * 400})
    with pytest.raises(DataError, match=r"data\.yaml"):
        AnnotationTable.from_yolo(path)
