"""Long-tailed scenes: how often classes occur, which picture holds which, and writing the set as LVIS JSON."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longtail.schema.errors import UsageError

MANIFEST = "manifest.json"
VISIBLE = 0.45  # an object keeps at least this share of its area visible
ATTEMPTS = 24  # places tried for an object before it is made smaller
SMALLEST = 6  # side in pixels below which no object is drawn


@dataclass(frozen=True)
class ScenePlan:
    """Size and imbalance of a generated set.

    Attributes:
        size: side of the square pictures, in pixels.
        classes: number of classes.
        train_images, val_images: pictures per part.
        min_objects, max_objects: objects per picture; one more now and then where the classes ask for it.
        most, least: training pictures of the most and of the least frequent class; geometric in between.
        val_images_per_class: validation pictures of every class.
        edges: rare up to the first number of training pictures, frequent above the second.
    """

    size: int
    classes: int
    train_images: int
    val_images: int
    min_objects: int
    max_objects: int
    most: int
    least: int
    val_images_per_class: int
    edges: tuple[int, int] = (8, 50)

    def __post_init__(self) -> None:
        if min(self.size, self.classes, self.train_images, self.val_images, self.min_objects, self.least) < 1:
            raise UsageError(f"sizes and counts of a generated set must be at least 1, got {self}")
        if not self.least <= self.most <= self.train_images or self.val_images_per_class > self.val_images:
            raise UsageError(
                f"a class occurs in {self.least} to {self.most} of {self.train_images} training pictures and in "
                f"{self.val_images_per_class} of {self.val_images} validation pictures; that cannot be"
            )
        if self.min_objects > self.max_objects:
            raise UsageError(f"min_objects {self.min_objects} is above max_objects {self.max_objects}")
        for part, wanted, images, remedy in (
            ("training", int(self.profile().sum()), self.train_images, "lower `most`"),
            ("validation", self.classes * self.val_images_per_class, self.val_images, "lower `val_images_per_class`"),
        ):
            if wanted > images * self.max_objects:
                raise UsageError(
                    f"the {part} part of a generated set needs {wanted / images:.1f} classes per picture, more than "
                    f"max_objects {self.max_objects}; ask for more {part} pictures or {remedy}"
                )

    def profile(self) -> NDArray[np.int64]:
        """(C,) training pictures per class, see :func:`geometric_profile`."""
        return geometric_profile(self.classes, self.most, self.least)


def geometric_profile(classes: int, most: int, least: int) -> NDArray[np.int64]:
    """(C,) pictures per class: ``most * (least / most) ** (c / (C - 1))``, rounded."""
    if classes == 1:
        return np.array([most], dtype=np.int64)
    share = np.arange(classes) / (classes - 1)
    return np.maximum(np.rint(most * (least / most) ** share), least).astype(np.int64)


def steepest_profile(classes: int, images: int, *, least: int, per_image: float) -> int:
    """The largest ``most``, up to half of the pictures, with which pictures hold at most ``per_image`` classes each.

    Where even ``least`` for every class is too much, ``least`` is returned and :class:`ScenePlan` refuses it.
    """
    low, high = least, max(least, images // 2)
    while low < high:
        middle = (low + high + 1) // 2
        if geometric_profile(classes, middle, least).sum() <= images * per_image:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True)
class GeneratedSet:
    """Where a generated set lies: ``train`` and ``val`` annotations, and the folder ``images`` of both."""

    root: Path

    @property
    def train(self) -> Path:
        """Training annotations."""
        return self.root / "train.json"

    @property
    def val(self) -> Path:
        """Validation annotations."""
        return self.root / "val.json"

    @property
    def images(self) -> Path:
        """Folder the file names start from."""
        return self.root / "images"


class Painter(Protocol):
    """Draws objects; one for shapes, one for sprites."""

    def names(self) -> list[str]:
        """Names of the classes, in the order of the set's category ids."""

    def paint(
        self, label: int, side: int, generator: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """A picture (h, w, 3) of an object of about ``side`` pixels, and its mask (h, w)."""


def assign(counts: NDArray[np.int64], images: int, generator: np.random.Generator) -> list[list[int]]:
    """Which classes every picture holds: class c in exactly ``counts[c]`` pictures.

    The rarest classes choose first; each takes the pictures with the fewest classes, ties in random order.
    """
    held: list[list[int]] = [[] for _ in range(images)]
    load = np.zeros(images, dtype=np.int64)
    for label in np.argsort(counts, kind="stable"):
        chosen = np.lexsort((generator.random(images), load))[: counts[label]]
        load[chosen] += 1
        for row in chosen:
            held[row].append(int(label))
    return held


def compose(
    labels: Sequence[int], size: int, painter: Painter, generator: np.random.Generator, sides: tuple[float, float]
) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """Paints objects onto a noise background, later ones over earlier ones.

    Args:
        labels: class of every object, in painting order.
        size: side of the picture in pixels.
        painter: draws the objects.
        generator: source of every draw.
        sides: smallest and largest side of an object, as shares of ``size``.

    Returns:
        The picture (size, size, 3) and every object's visible mask (size, size). Each object keeps at least 45 % of
        its area visible.

    Raises:
        UsageError: there is no room for so many objects.
    """
    canvas = background(size, generator)
    owner = np.full((size, size), -1, dtype=np.int32)
    areas: list[int] = []
    for index, label in enumerate(labels):
        scale = 1.0
        while True:
            if scale * size * sides[1] < SMALLEST / 4:
                raise UsageError(
                    f"{len(labels)} objects have no room in a picture of {size} x {size} pixels; ask for larger "
                    "pictures or fewer objects"
                )
            side = max(SMALLEST, round(scale * size * generator.uniform(*sides)))
            pixels, mask = painter.paint(label, side, generator)
            pixels, mask = pixels[:size, :size], mask[:size, :size]
            place = find_place(mask, owner, areas, generator)
            if place is not None:
                break
            scale *= 0.85
        top, left = place
        window = (slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1]))
        canvas[window][mask] = pixels[mask]
        owner[window][mask] = index
        areas.append(int(mask.sum()))
    return canvas, [owner == index for index in range(len(labels))]


def find_place(
    mask: NDArray[np.bool_], owner: NDArray[np.int32], areas: Sequence[int], generator: np.random.Generator
) -> tuple[int, int] | None:
    """A place (top, left) where ``mask`` leaves enough of every earlier object visible; None after some attempts."""
    size = owner.shape[0]
    visible = np.bincount(owner[owner >= 0], minlength=len(areas)) if areas else np.zeros(0, dtype=np.int64)
    needed = VISIBLE * np.asarray(areas, dtype=np.float64)
    for _ in range(ATTEMPTS):
        top = int(generator.integers(0, size - mask.shape[0] + 1))
        left = int(generator.integers(0, size - mask.shape[1] + 1))
        covered = owner[top : top + mask.shape[0], left : left + mask.shape[1]][mask]
        lost = np.bincount(covered[covered >= 0], minlength=len(areas)) if areas else visible
        if (visible - lost >= needed).all():
            return top, left
    return None


def background(size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of coloured noise at several scales, (size, size, 3)."""
    picture = np.broadcast_to(generator.uniform(70, 180, 3), (size, size, 3)).copy()
    for cells, strength in ((3, 35.0), (8, 22.0), (24, 12.0)):
        noise = generator.normal(0, strength, (cells, cells, 3))
        layer = np.stack(
            [
                np.asarray(
                    Image.fromarray(noise[..., c].astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
                )
                for c in range(3)
            ],
            axis=-1,
        )
        picture += layer
    picture += generator.normal(0, 5.0, (size, size, 1))
    return picture.clip(0, 255).astype(np.uint8)


def write_set(
    out: Path,
    plan: ScenePlan,
    painter: Painter,
    *,
    seed: int,
    sides: tuple[float, float],
    description: dict[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> GeneratedSet:
    """Generates a set into ``out``, complete or not at all.

    A folder that holds the very same set is used as it is.

    Args:
        out: new or empty folder.
        plan, painter, seed, sides: what to generate.
        description: what else distinguishes the set; kept in its manifest.
        progress: called with (pictures done, pictures in all).

    Raises:
        UsageError: the folder holds something else.
    """
    out = Path(out)
    manifest = {"plan": asdict(plan) | {"edges": list(plan.edges)}, "seed": seed, **description}
    if _holds(out, manifest):
        return GeneratedSet(out)
    place = out.resolve()
    work = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        parts = _draw_parts(work, plan, painter, seed=seed, sides=sides, progress=progress)
        categories = _categories(painter.names(), plan, parts["train"])
        for part, content in parts.items():
            text = json.dumps({**content, "categories": categories}, separators=(",", ":"))
            (work / f"{part}.json").write_text(text, encoding="utf-8")
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if not _holds(out, manifest):  # another process may have been faster
            if place.exists():
                place.rmdir()
            os.replace(work, place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return GeneratedSet(out)


def _holds(out: Path, manifest: dict[str, Any]) -> bool:
    """Whether the set of ``manifest`` lies in ``out``; False if there is nothing at all.

    Raises:
        UsageError: something else lies there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        if json.loads((out / MANIFEST).read_text(encoding="utf-8")) == manifest:
            return True
    except (OSError, ValueError):
        pass
    raise UsageError(f"{out} holds something else already; choose an empty folder")


def _draw_parts(
    work: Path,
    plan: ScenePlan,
    painter: Painter,
    *,
    seed: int,
    sides: tuple[float, float],
    progress: Callable[[int, int], None] | None,
) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {}
    done, total = 0, plan.train_images + plan.val_images
    image_id = annotation_id = 0
    for number, (part, images) in enumerate((("train", plan.train_images), ("val", plan.val_images))):
        (work / "images" / part).mkdir(parents=True)
        counts = plan.profile() if part == "train" else np.full(plan.classes, plan.val_images_per_class)
        held = assign(counts, images, np.random.Generator(np.random.PCG64([seed, number])))
        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for row, labels in enumerate(held):
            generator = np.random.Generator(np.random.PCG64([seed, number, row]))
            image_id += 1
            objects = _objects(labels, plan, generator)
            canvas, masks = compose(objects, plan.size, painter, generator, sides)
            name = f"{part}/{row:06d}.jpg"
            Image.fromarray(canvas).save(work / "images" / name, quality=92)
            absent = sorted(set(range(plan.classes)) - set(objects))
            entries.append(
                {
                    "id": image_id,
                    "file_name": name,
                    "width": plan.size,
                    "height": plan.size,
                    "neg_category_ids": [label + 1 for label in absent],
                    "not_exhaustive_category_ids": [],
                }
            )
            for label, mask in zip(objects, masks, strict=True):
                annotation_id += 1
                annotations.append(_annotation(annotation_id, image_id, label, mask))
            done += 1
            if progress is not None:
                progress(done, total)
        parts[part] = {"images": entries, "annotations": annotations}
    return parts


def _objects(labels: Sequence[int], plan: ScenePlan, generator: np.random.Generator) -> list[int]:
    """The picture's classes, filled up with repeats of them, in random order."""
    if not labels:
        return []
    wanted = int(generator.integers(plan.min_objects, plan.max_objects + 1))
    more = generator.choice(np.asarray(labels), size=max(0, wanted - len(labels)))
    return [int(label) for label in generator.permutation(np.concatenate((labels, more)).astype(np.int64))]


def _annotation(annotation_id: int, image_id: int, label: int, mask: NDArray[np.bool_]) -> dict[str, Any]:
    from pycocotools import mask as codec

    code = codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": [float(value) for value in codec.toBbox(code)],
        "area": float(mask.sum()),
        "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")},
    }


def _categories(names: Sequence[str], plan: ScenePlan, train: dict[str, Any]) -> list[dict[str, Any]]:
    pairs = {(a["image_id"], a["category_id"]) for a in train["annotations"]}
    images = np.bincount([category for _, category in pairs], minlength=plan.classes + 1)
    instances = np.bincount([a["category_id"] for a in train["annotations"]], minlength=plan.classes + 1)
    low, high = plan.edges
    return [
        {
            "id": label + 1,
            "name": name,
            "synonyms": [name],
            "image_count": int(images[label + 1]),
            "instance_count": int(instances[label + 1]),
            "frequency": "r" if images[label + 1] <= low else "c" if images[label + 1] <= high else "f",
        }
        for label, name in enumerate(names)
    ]
