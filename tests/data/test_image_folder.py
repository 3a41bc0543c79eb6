"""Folders of pictures by class."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from longtail.data import AnnotationTable
from longtail.data.formats import read_annotations, recognise
from longtail.data.image_folder import read_image_folder
from longtail.schema import DataError


def picture(path: Path, width: int = 7, height: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "train" / "cat" / "b.png")
    picture(tmp_path / "train" / "cat" / "a.jpg", 9, 4)
    picture(tmp_path / "train" / "ant" / "deep" / "c.png")
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "train" / ".hidden").mkdir()
    picture(tmp_path / "val" / "cat" / "d.png")
    return tmp_path


def test_every_picture_is_one_object(folder: Path) -> None:
    table = AnnotationTable.from_image_folder(folder / "train")
    assert table.category_names == ["ant", "cat", "empty"]
    assert list(table.file_names) == ["ant/deep/c.png", "cat/a.jpg", "cat/b.png"]
    assert table.label.tolist() == [0, 1, 1]
    assert table.boxes_xywh.tolist() == [[0, 0, 7, 5], [0, 0, 9, 4], [0, 0, 7, 5]]
    assert (table.heights.tolist(), table.widths.tolist()) == ([5, 4, 5], [7, 9, 7])


def test_splits(folder: Path) -> None:
    assert recognise(folder) == recognise(folder / "train") == "folder"
    assert read_annotations(f"{folder}:val").num_images == 1
    assert read_annotations(folder, prefer="train").num_images == 3
    assert read_annotations(folder, prefer="val").num_images == 1
    assert read_annotations(folder / "train", prefer="val").num_images == 3  # no splits inside: all of it
    with pytest.raises(DataError, match=r"holds the splits train, val; name one"):
        read_annotations(folder)
    with pytest.raises(DataError, match=r"no folder test .*it has: train, val"):
        read_annotations(f"{folder}", split="test")


def test_the_class_list_can_be_given(folder: Path) -> None:
    found = read_image_folder(folder / "train", names=["cat", "dog"])
    assert found["category_names"] == ["cat", "dog"]
    assert found["label"].tolist() == [0, 0]


def test_broken_pictures_are_named_together(folder: Path) -> None:
    for name in ("x.png", "y.png"):
        (folder / "train" / "cat" / name).write_text("no picture")
    with pytest.raises(DataError, match=r"2 problems: .*x\.png cannot be read.*y\.png cannot be read"):
        read_image_folder(folder / "train")
    with pytest.raises(DataError, match="no pictures by class"):
        read_image_folder(folder / "train", names=["dog"])
