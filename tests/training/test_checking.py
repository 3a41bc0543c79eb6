"""Training begins with the check: errors keep it from starting, warnings are logged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from longtail.data.scenes import GeneratedSet
from longtail.schema import DataError, load_recipe
from longtail.training.api import train

CHANGES = [
    "scale=tiny",
    "model.backbone=tiny32",
    "model.neck.channels=16",
    "model.regions.channels=32",
    "images.short_sides=[64]",
    "stages.*.schedule.images=8",
]


class Copy:
    """A copy of the smallest set that may be spoilt."""

    def __init__(self, made: GeneratedSet, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(made.images, folder / "images")
        self.path = folder / "train.json"
        self.content: dict[str, Any] = json.loads(made.train.read_text())

    def train(self, model: str, **more: Any) -> str:
        """The log of a short run."""
        self.path.write_text(json.dumps(self.content))
        recipe = load_recipe("baseline", [*CHANGES, f"model={model}"])
        done = train(recipe, train=self.path, images=self.folder / "images", out=self.folder / "run", **more)
        return (done.run / "log.txt").read_text()


@pytest.fixture
def copy(smoke_set: GeneratedSet, tmp_path: Path) -> Copy:
    return Copy(smoke_set, tmp_path)


def test_every_kind_of_error_is_named_before_anything_is_written(copy: Copy) -> None:
    names = [image["file_name"] for image in copy.content["images"]]
    Image.new("RGB", (10, 20)).save(copy.folder / "images" / names[3])
    (copy.folder / "images" / names[5]).write_bytes(b"no picture")
    copy.content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    with pytest.raises(DataError) as error:
        copy.train("mask_rcnn")
    text = str(error.value)
    assert "3 kinds of errors" in text
    for code in ("picture-size", "picture-broken", "mask-points"):
        assert code in text
    assert repr(names[3]) in text
    assert "longtail check" in text
    assert "\n" not in text
    assert not (copy.folder / "run").exists()


def test_broken_masks_do_not_matter_for_boxes(copy: Copy) -> None:
    copy.content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    del copy.content["annotations"][1]["segmentation"]
    log = copy.train("faster_rcnn")
    assert "mask-" not in log


def test_warnings_are_logged(copy: Copy) -> None:
    copy.content["annotations"].append({**copy.content["annotations"][0], "id": 10**6})
    copy.content["categories"].append({"id": 99, "name": "never seen"})
    log = copy.train("faster_rcnn")
    assert "warning: " in log
    assert "bbox-duplicate" in log
    assert "'never seen' (category-unused)" in log


def test_validation_data_are_checked_too(copy: Copy, smoke_set: GeneratedSet) -> None:
    val = json.loads(smoke_set.val.read_text())
    val["annotations"] = []
    other = copy.folder / "val.json"
    other.write_text(json.dumps(val))
    with pytest.raises(DataError, match=r"val\.json.*annotations-none"):
        copy.train("faster_rcnn", val=other)


def test_a_picture_above_the_limit_is_refused(copy: Copy) -> None:
    copy.path.write_text(json.dumps(copy.content))
    recipe = load_recipe("baseline", [*CHANGES, "images.max_pixels=100"])
    with pytest.raises(DataError, match=r"120 pictures with too many pixels.*picture-huge"):
        train(recipe, train=copy.path, images=copy.folder / "images", out=copy.folder / "run")
