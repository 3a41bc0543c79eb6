"""The generated sets: exact counts, exact masks, the same bytes again."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as codec

from longtail.data.scenes import ScenePlan, assign, compose
from longtail.data.shapes import PRESETS, ShapePainter, make_shapes
from longtail.data.sprites import make_sprite_scenes
from longtail.schema import DataError, UsageError


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
        ({"min_objects": 9}, "max_objects"),
    ],
)
def test_mistakes(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        make_shapes(tmp_path / "set", **{"preset": "smoke", **arguments})


@given(
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    images=st.integers(20, 40),
    seed=st.integers(0, 3),
)
@settings(max_examples=50, deadline=None)
def test_assignment_hits_every_count(counts: list[int], images: int, seed: int) -> None:
    held = assign(np.array(counts), images, np.random.default_rng(seed))
    found = Counter(label for labels in held for label in labels)
    assert [found[c] for c in range(len(counts))] == counts
    assert all(len(set(labels)) == len(labels) for labels in held)
    loads = [len(labels) for labels in held]
    assert max(loads) - min(loads) <= max(1, len([c for c in counts if c == max(counts)]))


@given(seed=st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_objects_keep_enough_of_themselves_visible(seed: int) -> None:
    class Squares:
        def names(self) -> list[str]:
            return ["square"]

        def paint(self, label: int, side: int, generator: np.random.Generator):
            areas[label] = side * side  # asked again, with a smaller side, when it does not fit
            return np.zeros((side, side, 3), np.uint8), np.ones((side, side), bool)

    areas: dict[int, int] = {}
    _, masks = compose(range(9), 64, Squares(), np.random.default_rng(seed), (0.2, 0.5))
    assert len(masks) == 9
    assert all(mask.sum() >= 0.45 * areas[label] for label, mask in enumerate(masks))


def test_classes_are_a_seeded_permutation() -> None:
    assert len(set(ShapePainter(256, seed=0).names())) == 256
    assert ShapePainter(30, seed=0).names() != ShapePainter(30, seed=1).names()


def sprite(path: Path, colour: tuple[int, int, int], *, opaque: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGBA", (40, 30), (*colour, 255 if opaque else 0))
    if not opaque:
        picture.paste((*colour, 255), (8, 5, 30, 25))
    picture.save(path)


def test_sprites_become_classes_by_file_or_folder(tmp_path: Path) -> None:
    sprite(tmp_path / "in" / "apple.png", (200, 0, 0))
    sprite(tmp_path / "in" / "tree" / "a.webp", (0, 200, 0))
    sprite(tmp_path / "in" / "tree" / "b.png", (0, 150, 0))
    (tmp_path / "in" / "notes.txt").write_text("x")
    done = make_sprite_scenes(
        tmp_path / "in", tmp_path / "out", train_images=12, val_images=6, size=64, min_objects=2, max_objects=3
    )
    content = read(done.root, "train")
    assert sorted(c["name"] for c in content["categories"]) == ["apple", "tree"]
    names = {c["id"]: c["name"] for c in content["categories"]}
    image = next(i for i in content["images"] if any(a["image_id"] == i["id"] for a in content["annotations"]))
    pixels = np.asarray(Image.open(done.images / image["file_name"]).convert("RGB")).astype(int)
    for annotation in (a for a in content["annotations"] if a["image_id"] == image["id"]):
        inside = pixels[codec.decode(annotation["segmentation"]).astype(bool)].mean(axis=0)
        assert inside.argmax() == (0 if names[annotation["category_id"]] == "apple" else 1)


def test_sprites_without_transparency_or_content_are_named(tmp_path: Path) -> None:
    sprite(tmp_path / "opaque" / "wall.png", (9, 9, 9), opaque=True)
    arguments = {"train_images": 4, "val_images": 2, "size": 32, "min_objects": 1, "max_objects": 2}
    with pytest.raises(DataError, match=r"wall\.png has no transparent background"):
        make_sprite_scenes(tmp_path / "opaque", tmp_path / "out", **arguments)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torn.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(DataError, match=r"torn\.png cannot be read"):
        make_sprite_scenes(tmp_path / "broken", tmp_path / "out", **arguments)
    with pytest.raises(UsageError, match="no folder"):
        make_sprite_scenes(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures"):
        make_sprite_scenes(tmp_path / "empty", tmp_path / "out")


def test_a_vocabulary_of_the_size_of_lvis_can_be_planned() -> None:
    plan = ScenePlan(
        size=192, classes=1203, train_images=4000, val_images=1000, min_objects=4, max_objects=9, most=400, least=1,
        val_images_per_class=7, edges=(10, 100),
    )  # fmt: skip
    counts = plan.profile()
    held = assign(counts, plan.train_images, np.random.default_rng(0))
    assert np.array_equal(np.bincount([c for labels in held for c in labels], minlength=1203), counts)
