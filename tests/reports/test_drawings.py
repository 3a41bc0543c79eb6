"""Detections drawn into pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as codec

from longtail.reports.drawings import GROUP_COLOURS, box_of, draw_detections, draw_folder


def rle(mask: np.ndarray) -> dict[str, object]:
    encoded = codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def colour_at(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize("group", ["r", "c", "f", "-"])
def test_boxes_have_the_colour_of_the_group(group: str) -> None:
    picture = Image.new("RGB", (600, 480), "black")
    found = {"bbox": [100, 200, 80, 90], "score": 0.5, "category_id": 7}
    drawn = draw_detections(picture, [found], {7: "cup"}, {7: group})
    assert drawn.size == (600, 480)
    expected = tuple(int(GROUP_COLOURS[group][place : place + 2], 16) for place in (1, 3, 5))
    assert colour_at(drawn, 100, 245) == expected
    assert colour_at(drawn, 300, 300) == (0, 0, 0)
    assert colour_at(picture, 100, 245) == (0, 0, 0), "the picture itself stays as it was"


def test_small_pictures_are_enlarged_with_their_boxes() -> None:
    drawn = draw_detections(
        Image.new("RGB", (96, 96)), [{"bbox": [48, 48, 24, 24], "score": 0.9, "category_id": 1}], {}, {1: "r"}
    )
    assert drawn.size == (480, 480)
    assert colour_at(drawn, 240, 300) == (0xD6, 0x27, 0x28)


def test_masks_tint_their_pixels_only() -> None:
    mask = np.zeros((480, 480), np.uint8)
    mask[100:200, 300:400] = 1
    drawn = draw_detections(
        Image.new("RGB", (480, 480), "black"),
        [{"segmentation": rle(mask), "score": 0.9, "category_id": 1}],
        {},
        {1: "f"},
    )
    assert colour_at(drawn, 350, 150)[2] > 40
    assert colour_at(drawn, 150, 350) == (0, 0, 0)


def test_the_box_around_a_mask() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 10:12] = 1
    assert box_of({"segmentation": rle(mask)}) == (10, 4, 2, 5)
    assert box_of({"segmentation": rle(np.zeros((20, 30), np.uint8))}) == (0, 0, 0, 0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_colour_modes(mode: str) -> None:
    found = {"bbox": [1, 1, 5, 5], "score": 0.5, "category_id": 1}
    assert draw_detections(Image.new(mode, (500, 500)), [found], {}, {}).mode == "RGB"


def predictions(folder: Path, name: str, annotations: list[dict[str, object]]) -> Path:
    file = folder / "predictions.json"
    content = {
        "images": [{"id": 1, "file_name": name}],
        "categories": [{"id": 7, "name": "<cup>", "frequency": "r"}],
        "annotations": annotations,
    }
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_a_folder_is_drawn_under_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "in" / "sub" / "a.jpg")
    file = predictions(tmp_path, "sub/a.jpg", [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 30, 20], "score": 0.9}])
    assert draw_folder(file, tmp_path / "in", tmp_path / "out") == 1
    assert Image.open(tmp_path / "out" / "sub" / "a.jpg").size == (480, 320)


def test_one_picture_without_detections_turned_by_its_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (600, 500)).save(tmp_path / "a.jpg", exif=exif)
    assert draw_folder(predictions(tmp_path, "a.jpg", []), tmp_path / "a.jpg", tmp_path / "out") == 1
    assert Image.open(tmp_path / "out" / "a.jpg").size == (500, 600)
