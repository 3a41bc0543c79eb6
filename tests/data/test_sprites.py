"""Scenes of sprites: classes, exact masks, files that cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as codec

from longtail.data.sprites import make_sprite_scenes, read_sprite
from longtail.schema import DataError, UsageError


def read(root: Path, part: str) -> dict:
    return json.loads((root / f"{part}.json").read_text())


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
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (20, 20), (1, 2, 3)).save(tmp_path / "photos" / "dog.jpg")
    with pytest.raises(DataError, match=r"dog\.jpg has no transparent background"):
        make_sprite_scenes(tmp_path / "photos", tmp_path / "out", **arguments)
    (tmp_path / "ghosts").mkdir()
    Image.new("RGBA", (20, 20), (1, 2, 3, 0)).save(tmp_path / "ghosts" / "ghost.png")
    with pytest.raises(DataError, match=r"ghost\.png is transparent everywhere"):
        make_sprite_scenes(tmp_path / "ghosts", tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_sprite_is_cut_to_its_visible_part_and_made_small(tmp_path: Path) -> None:
    sprite(tmp_path / "a.png", (10, 20, 30))
    assert read_sprite(tmp_path / "a.png", 100).size == (22, 20)
    assert read_sprite(tmp_path / "a.png", 11).size == (11, 10)
    whole = Image.open(tmp_path / "a.png")
    whole.convert("P").save(tmp_path / "a.gif", transparency=whole.convert("P").getpixel((0, 0)))
    assert read_sprite(tmp_path / "a.gif", 100).size == (22, 20)


def test_many_classes_in_few_pictures(tmp_path: Path) -> None:
    for number in range(40):
        sprite(tmp_path / "in" / f"{number}.png", (number * 6, 90, 255 - number * 6))
    small = {"size": 64, "min_objects": 2, "max_objects": 4}
    done = make_sprite_scenes(tmp_path / "in", tmp_path / "out", train_images=60, val_images=20, **small)
    counts = sorted(c["image_count"] for c in read(done.root, "train")["categories"])
    assert counts[0] == 1
    assert sum(counts) <= 60 * 3
    assert make_sprite_scenes(tmp_path / "in", tmp_path / "out", train_images=60, val_images=20, **small) == done
    with pytest.raises(UsageError, match="sprites for 40 classes, 41"):
        make_sprite_scenes(tmp_path / "in", tmp_path / "other", classes=41, **small)
    with pytest.raises(UsageError, match="ask for more training pictures"):
        make_sprite_scenes(tmp_path / "in", tmp_path / "other", train_images=5, val_images=20, **small)
