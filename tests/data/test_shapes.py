"""The generated sets: exact counts, exact masks, the same bytes again."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as codec

from longtail.data.shapes import PRESETS, ShapePainter, make_shapes
from longtail.schema import UsageError


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("sets") / "smoke", preset="smoke").root


def read(root: Path, part: str) -> dict:
    return json.loads((root / f"{part}.json").read_text())


def test_profile_is_hit_exactly_and_validation_is_balanced(smoke: Path) -> None:
    plan = PRESETS["smoke"]
    for part, counts in (("train", plan.profile().tolist()), ("val", [plan.val_images_per_class] * plan.classes)):
        pairs = {(a["image_id"], a["category_id"]) for a in read(smoke, part)["annotations"]}
        found = Counter(category for _, category in pairs)
        assert [found[c + 1] for c in range(plan.classes)] == counts
    categories = read(smoke, "train")["categories"]
    assert [c["image_count"] for c in categories] == plan.profile().tolist()
    assert read(smoke, "val")["categories"] == categories


def test_groups_of_the_tiny_preset() -> None:
    counts = PRESETS["tiny"].profile()
    assert counts[0] == 300
    assert counts[-1] == 2
    assert [(counts <= 8).sum(), ((counts > 8) & (counts <= 50)).sum(), (counts > 50).sum()] == [9, 10, 11]


def test_boxes_areas_masks_and_negatives_belong_together(smoke: Path) -> None:
    content = read(smoke, "train")
    everything = {c["id"] for c in content["categories"]}
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert set(image["neg_category_ids"]) == everything - {a["category_id"] for a in own}
        masks = codec.decode([a["segmentation"] for a in own]) if own else np.zeros((64, 64, 0))
        assert (masks.sum(axis=2) <= 1).all(), "visible masks do not overlap"
        for annotation, mask in zip(own, np.moveaxis(masks, 2, 0), strict=True):
            assert annotation["area"] == mask.sum() > 0
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            assert annotation["bbox"] == box
        with Image.open(smoke / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])


def test_same_seed_same_bytes_other_seed_other_pictures(smoke: Path, tmp_path: Path) -> None:
    again = make_shapes(tmp_path / "again", preset="smoke").root
    files = sorted(p.relative_to(smoke) for p in smoke.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((smoke / f).read_bytes() == (again / f).read_bytes() for f in files)
    other = make_shapes(tmp_path / "other", preset="smoke", seed=1).root
    assert (other / "train.json").read_bytes() != (smoke / "train.json").read_bytes()


def test_a_folder_is_used_again_or_refused_but_never_overwritten(smoke: Path, tmp_path: Path) -> None:
    before = (smoke / "train.json").stat().st_mtime_ns
    assert make_shapes(smoke, preset="smoke").root == smoke
    assert (smoke / "train.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="something else"):
        make_shapes(smoke, preset="smoke", seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(UsageError, match="something else"):
        make_shapes(tmp_path / "mine", preset="smoke")
    (tmp_path / "plain file").write_text("x")
    with pytest.raises(UsageError, match="something else"):
        make_shapes(tmp_path / "plain file", preset="smoke")
    (tmp_path / "empty").mkdir()
    assert make_shapes(tmp_path / "empty", preset="smoke", train_images=60, val_images=24).train.is_file()


def test_nothing_is_left_behind_when_it_breaks(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        make_shapes(tmp_path / "set", preset="smoke", progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "no preset"),
        ({"classes": 300}, "256"),
        ({"colour": 3}, "unknown field"),
        ({"most": 1000}, "cannot be"),
        ({"classes": 0}, "at least 1"),
        ({"min_objects": 9}, "max_objects"),
        ({"classes": 100}, "training part .* 14.3 classes per picture, more than max_objects 4"),
        ({"val_images_per_class": 30}, "validation part .* lower `val_images_per_class`"),
    ],
)
def test_mistakes(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        make_shapes(tmp_path / "set", **{"preset": "smoke", **arguments})


def test_classes_are_a_seeded_permutation() -> None:
    assert len(set(ShapePainter(256, seed=0).names())) == 256
    assert ShapePainter(30, seed=0).names() != ShapePainter(30, seed=1).names()
