"""Detections drawn into pictures, in the colour of the class's frequency group."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

GROUP_COLOURS = {"r": "#d62728", "c": "#e8890c", "f": "#1f77b4", "-": "#7f7f7f"}
MASK_OPACITY = 0.4
READABLE = 480  # pixels; smaller pictures are enlarged, so that names can be read


def draw_detections(
    image: Image.Image,
    detections: Sequence[Mapping[str, Any]],
    names: Mapping[int | str, str],
    groups: Mapping[int | str, str],
) -> Image.Image:
    """A copy of the picture with boxes, masks, names and scores; the best detection on top.

    Args:
        image: the picture in the frame of the boxes (its EXIF orientation applied).
        detections: COCO results: ``score``, ``category_id``, and ``bbox`` (x, y, width, height) in pixels or
            ``segmentation``, a compressed RLE of the picture's size, or both.
        names: class name by category id.
        groups: ``r``, ``c``, ``f`` or ``-`` by category id.
    """
    zoom = max(1, round(READABLE / max(image.size)))
    drawn = image.convert("RGB").resize((image.width * zoom, image.height * zoom), Image.Resampling.BICUBIC)
    ordered = sorted(detections, key=lambda found: float(found["score"]))
    for found in ordered:
        if "segmentation" in found:
            drawn = tint(drawn, mask_of(found["segmentation"]), colour_of(found, groups))
    pen = ImageDraw.Draw(drawn)
    size = max(11, max(drawn.size) // 50)
    font = ImageFont.load_default(size)
    for found in ordered:
        left, top, width, height = (value * zoom for value in box_of(found))
        colour = colour_of(found, groups)
        pen.rectangle((left, top, left + max(width, 1), top + max(height, 1)), outline=colour, width=max(2, size // 8))
        label = f"{names.get(found['category_id'], found['category_id'])} {float(found['score']):.2f}"
        place = (left, max(0.0, top - size - 3))
        pen.rectangle(pen.textbbox(place, label, font=font), fill=colour)
        pen.text(place, label, fill="white", font=font)
    return drawn


def colour_of(found: Mapping[str, Any], groups: Mapping[int | str, str]) -> str:
    """Colour of a detection's group."""
    return GROUP_COLOURS[groups.get(found["category_id"], "-")]


def box_of(found: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """The detection's box, or the box around its mask: x, y, width, height in pixels."""
    if "bbox" in found:
        left, top, width, height = (float(value) for value in found["bbox"])
        return left, top, width, height
    mask = mask_of(found["segmentation"])
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1 - columns[0]), float(rows[-1] + 1 - rows[0])


def mask_of(segmentation: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The mask of a compressed RLE, shape (H, W), 0 or 1."""
    from pycocotools import mask

    counts = segmentation["counts"]
    counts = counts.encode("ascii") if isinstance(counts, str) else counts
    decoded: np.ndarray[Any, np.dtype[np.uint8]] = mask.decode({"size": segmentation["size"], "counts": counts})
    return decoded


def tint(image: Image.Image, mask: np.ndarray[Any, np.dtype[np.uint8]], colour: str) -> Image.Image:
    """The picture with the masked pixels blended with a colour."""
    shade = Image.fromarray((mask * round(255 * MASK_OPACITY)).astype(np.uint8)).resize(image.size)
    return Image.composite(Image.new("RGB", image.size, ImageColor.getrgb(colour)), image, shade)


def draw_folder(predictions: Path, images: Path, folder: Path) -> int:
    """Draws every picture of a prediction file into ``folder`` and returns how many there were.

    Args:
        predictions: COCO-like JSON with ``images`` (``id``, ``file_name``), ``categories`` (``id``, ``name``,
            ``frequency`` group) and ``annotations`` (detections).
        images: the folder the file names start from, or the one picture.
        folder: where the drawings go, under the same names.
    """
    content = json.loads(predictions.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    groups = {category["id"]: category["frequency"] for category in content["categories"]}
    found: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
    for detection in content["annotations"]:
        found[detection["image_id"]].append(detection)
    root = images if images.is_dir() else images.parent
    for image in content["images"]:
        with Image.open(root / image["file_name"]) as picture:
            drawn = draw_detections(ImageOps.exif_transpose(picture), found[image["id"]], names, groups)
        target = folder / Path(image["file_name"]).relative_to(Path(image["file_name"]).anchor)
        target.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(target)
    return len(content["images"])
