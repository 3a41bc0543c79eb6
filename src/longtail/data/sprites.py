"""Scenes composed of pictures with transparency, for vocabularies of any size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longtail.data.scenes import GeneratedSet, ScenePlan, steepest_profile, write_set
from longtail.schema.errors import DataError, UsageError

SUFFIXES = (".png", ".webp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg", ".bmp")  # the last three are refused by name
OPAQUE = 128  # alpha from which a pixel belongs to the object
SIDES = (0.14, 0.4)  # smallest and largest side of an object, as shares of the picture's


def find_sprites(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its pictures. A file in ``folder`` is a class of its own, named after the file; a sub-folder is a
    class with all its files.

    Raises:
        UsageError: the folder does not exist or holds no pictures.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder of sprites {folder}")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        files = [file for file in files if file.suffix.lower() in SUFFIXES]
        if files:
            found.setdefault(path.name if path.is_dir() else path.stem, []).extend(files)
    if not found:
        raise UsageError(f"{folder} holds no pictures; sprites are PNG, WebP, TIFF or GIF files with transparency")
    return found


def read_sprite(path: Path, largest: int) -> Image.Image:
    """An RGBA picture of at most ``largest`` pixels a side, cut to what is visible of it.

    Raises:
        DataError: the file cannot be read, or has no transparency, so that its outline is unknown.
    """
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the sprite {path} cannot be read ({error}); replace or remove it") from None
    solid = np.asarray(picture)[..., 3] >= OPAQUE
    if solid.all():
        raise DataError(f"the sprite {path} has no transparent background; give it one or remove it")
    if not solid.any():
        raise DataError(f"the sprite {path} is transparent everywhere; remove it")
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    picture = picture.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    picture.thumbnail((largest, largest))
    return picture


class SpritePainter:
    """Pastes sprites, scaled, mirrored and turned a little.

    Which sprite is frequent is a permutation drawn from ``seed``.

    Args:
        sprites: files of every class.
        classes: how many of the classes take part.
        largest: side in pixels of the largest object that will be asked for; sprites are kept at that size.
        seed: source of the permutation.

    Raises:
        UsageError: there are fewer classes than asked for.
        DataError: a sprite that cannot be used.
    """

    def __init__(self, sprites: dict[str, list[Path]], classes: int, *, largest: int, seed: int) -> None:
        names = sorted(sprites)
        if classes > len(names):
            raise UsageError(f"there are sprites for {len(names)} classes, {classes} were asked for")
        order = np.random.Generator(np.random.PCG64([seed, 7])).permutation(len(names))
        self.classes = [names[index] for index in order[:classes]]
        self.sprites = [[read_sprite(file, largest) for file in sprites[name]] for name in self.classes]

    def names(self) -> list[str]:
        """File or folder names."""
        return list(self.classes)

    def paint(
        self, label: int, side: int, generator: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """One of the class's sprites with a longer side of about ``side`` pixels."""
        own = self.sprites[label]
        sprite = own[int(generator.integers(len(own)))]
        if generator.random() < 0.5:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        sprite = sprite.rotate(float(generator.uniform(-20, 20)), Image.Resampling.BILINEAR, expand=True)
        factor = side / max(sprite.size)
        size = (max(2, round(sprite.width * factor)), max(2, round(sprite.height * factor)))
        pixels = np.asarray(sprite.resize(size, Image.Resampling.BOX), dtype=np.uint8)
        mask = pixels[..., 3] >= OPAQUE
        if not mask.any():  # thinner than a pixel at this size
            mask = pixels[..., 3] == pixels[..., 3].max()
        return pixels[..., :3], mask


def make_sprite_scenes(
    sprites: Path | str,
    out: Path | str,
    *,
    classes: int | None = None,
    train_images: int = 4000,
    val_images: int = 1000,
    size: int = 192,
    min_objects: int = 4,
    max_objects: int = 9,
    most: int | None = None,
    least: int = 1,
    val_images_per_class: int | None = None,
    edges: tuple[int, int] = (10, 100),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> GeneratedSet:
    """Composes a long-tailed set in LVIS format from a folder of RGBA pictures, with exact masks.

    Args:
        sprites: one file or one sub-folder a class.
        out: new or empty folder; one that holds this very set is used as it is.
        classes: how many of the classes found; None = all.
        train_images, val_images, size, min_objects, max_objects, least, edges: see
            :class:`~longtail.data.scenes.ScenePlan`.
        most: training pictures of the most frequent class; None = half of them, or fewer where that would put more
            than (min_objects + max_objects) / 2 classes into a picture.
        val_images_per_class: None = as many as give each picture about ``max_objects`` classes, at most 20.
        seed: source of every draw.
        progress: called with (pictures done, pictures in all).

    Raises:
        UsageError: no sprites, too few of them or too many for so few pictures, or a folder that holds something else.
        DataError: a sprite that cannot be read or has no transparency.
    """
    found = find_sprites(Path(sprites))
    count = len(found) if classes is None else classes
    per_class = val_images_per_class or max(1, min(20, val_images, val_images * max_objects // max(count, 1)))
    if most is None:
        per_image = (min_objects + max_objects) / 2
        most = steepest_profile(max(count, 1), train_images, least=least, per_image=per_image)
    plan = ScenePlan(
        size=size,
        classes=count,
        train_images=train_images,
        val_images=val_images,
        min_objects=min_objects,
        max_objects=max_objects,
        most=most,
        least=least,
        val_images_per_class=per_class,
        edges=edges,
    )
    painter = SpritePainter(found, count, largest=round(1.5 * SIDES[1] * size), seed=seed)
    listing = "\n".join(f"{name}:{file.name}:{file.stat().st_size}" for name in sorted(found) for file in found[name])
    description = {"kind": "sprites", "sprites": hashlib.sha256(listing.encode()).hexdigest()}
    return write_set(Path(out), plan, painter, seed=seed, sides=SIDES, description=description, progress=progress)
