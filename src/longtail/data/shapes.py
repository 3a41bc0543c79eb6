"""A generated long-tailed set of shapes: trains in minutes, needs no download."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from longtail.data.scenes import GeneratedSet, ScenePlan, write_set
from longtail.schema.errors import UsageError

PRESETS = {
    "smoke": ScenePlan(
        size=64, classes=12, train_images=120, val_images=40, min_objects=2, max_objects=4, most=60, least=2,
        val_images_per_class=8,
    ),
    "tiny": ScenePlan(
        size=96, classes=30, train_images=600, val_images=200, min_objects=3, max_objects=6, most=300, least=2,
        val_images_per_class=30,
    ),
    "small": ScenePlan(
        size=192, classes=200, train_images=4000, val_images=1000, min_objects=4, max_objects=9, most=1000, least=2,
        val_images_per_class=20, edges=(10, 100),
    ),
}  # fmt: skip

HUES = {
    "red": 0.0, "orange": 0.075, "yellow": 0.15, "green": 0.34, "cyan": 0.5, "blue": 0.62, "violet": 0.76, "pink": 0.9,
}  # fmt: skip
TEXTURES = ("plain", "striped", "dotted", "checked")


def regular(corners: int, *, inner: float | None = None) -> NDArray[np.float64]:
    """A polygon with ``corners`` corners on the unit circle, with ``inner`` as many on a smaller one in between."""
    count = corners if inner is None else 2 * corners
    angle = np.arange(count) * 2 * np.pi / count - np.pi / 2
    radius = np.ones(count)
    if inner is not None:
        radius[1::2] = inner
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)


def crescent() -> NDArray[np.float64]:
    """A moon."""
    outer = np.linspace(0.25 * np.pi, 1.75 * np.pi, 20)
    inner = np.linspace(1.75 * np.pi, 0.25 * np.pi, 20)
    back = np.stack((0.3 + 0.68 * np.cos(inner), np.sin(inner) * 0.72), axis=1)
    return np.concatenate((np.stack((np.cos(outer), np.sin(outer)), axis=1), back))


OUTLINES: dict[str, NDArray[np.float64]] = {
    "circle": regular(28),
    "triangle": regular(3),
    "square": np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]),
    "star": regular(5, inner=0.42),
    "cross": np.array([
        (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
        (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
    ]),
    "arrow": np.array([(0, -1), (0.9, 0), (0.38, 0), (0.38, 1), (-0.38, 1), (-0.38, 0), (-0.9, 0)]),
    "crescent": crescent(),
    "hourglass": np.array([(-0.85, -1), (0.85, -1), (0.18, 0), (0.85, 1), (-0.85, 1), (-0.18, 0)]),
}  # fmt: skip
COMBINATIONS = [(shape, hue, texture) for shape in OUTLINES for hue in HUES for texture in TEXTURES]


class ShapePainter:
    """Draws shapes: a class is a triple of outline, hue and texture.

    Which triple is frequent is a permutation drawn from ``seed``, so that rarity says nothing about looks.
    """

    def __init__(self, classes: int, *, seed: int) -> None:
        if classes > len(COMBINATIONS):
            raise UsageError(
                f"there are {len(COMBINATIONS)} shapes, {classes} were asked for; use --sprites for larger vocabularies"
            )
        order = np.random.Generator(np.random.PCG64([seed, 7])).permutation(len(COMBINATIONS))
        self.combinations = [COMBINATIONS[index] for index in order[:classes]]

    def names(self) -> list[str]:
        """``red striped star`` and the like."""
        return [f"{hue} {texture} {shape}" for shape, hue, texture in self.combinations]

    def paint(
        self, label: int, side: int, generator: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """A shape of about ``side`` pixels, turned and stretched a little, with light falling on it."""
        shape, hue, texture = self.combinations[label]
        angle = generator.uniform(-0.45, 0.45)
        turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
        stretch = np.array([generator.uniform(0.85, 1.0), generator.uniform(0.85, 1.0)])
        points = (OUTLINES[shape] * stretch) @ turn.T
        points = (points - points.min(axis=0)) * (side / np.ptp(points, axis=0).max())
        width, height = (int(value) for value in np.ceil(points.max(axis=0)) + 1)
        image = Image.new("1", (width, height))
        ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in points], fill=1)
        mask = np.asarray(image, dtype=np.bool_)
        return self._fill(hue, texture, (height, width), side, generator), mask

    def _fill(
        self, hue: str, texture: str, size: tuple[int, int], side: int, generator: np.random.Generator
    ) -> NDArray[np.uint8]:
        """The surface: the hue, a darker tone of it in the texture's pattern, and a gradient of light."""
        tone = HUES[hue] + generator.uniform(-0.015, 0.015)
        bright = np.array(colorsys.hsv_to_rgb(tone % 1, generator.uniform(0.75, 0.95), generator.uniform(0.85, 1.0)))
        dark = bright * 0.28
        y, x = np.mgrid[: size[0], : size[1]]
        period = max(4.0, side / 4)
        phase_x, phase_y = generator.uniform(0, period, 2)
        u, v = (x + phase_x) / period, (y + phase_y) / period
        if texture == "striped":
            pattern = (u + v) % 1 < 0.45
        elif texture == "dotted":
            pattern = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.085
        elif texture == "checked":
            pattern = (np.floor(2 * u) + np.floor(2 * v)) % 2 == 0
        else:
            pattern = np.zeros(size, dtype=np.bool_)
        surface = np.where(pattern[..., None], dark, bright)
        across = generator.uniform(-1, 1, 2)
        light = 1 + 0.18 * (across[0] * (x / size[1] - 0.5) + across[1] * (y / size[0] - 0.5))
        pixels: NDArray[np.uint8] = (255 * surface * light[..., None]).clip(0, 255).astype(np.uint8)
        return pixels


def make_shapes(
    out: Path | str,
    *,
    preset: str = "tiny",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> GeneratedSet:
    """Generates a long-tailed set in LVIS format: ``train.json``, ``val.json``, ``images/``.

    Boxes and masks are exact; classes absent from a picture are listed as negative. The training part follows a
    geometric profile, the validation part holds every class equally often. The same arguments give the same bytes.

    Args:
        out: new or empty folder; one that holds this very set is used as it is.
        preset: ``smoke`` (64 px, 12 classes, 120 + 40 pictures), ``tiny`` (96 px, 30 classes, 600 + 200) or ``small``
            (192 px, 200 classes, 4000 + 1000).
        seed: source of every draw.
        progress: called with (pictures done, pictures in all).
        **changes: fields of :class:`~longtail.data.scenes.ScenePlan` that differ from the preset.

    Raises:
        UsageError: an unknown preset or field, more than 256 classes, counts that do not fit together, or a folder
            that holds something else.
    """
    if preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}; there are: {', '.join(PRESETS)}")
    known = set(ScenePlan.__dataclass_fields__)
    if unknown := set(changes) - known:
        raise UsageError(f"unknown field {sorted(unknown)[0]!r} of a generated set; known: {', '.join(sorted(known))}")
    fields = {name: getattr(PRESETS[preset], name) for name in known} | changes
    painter = ShapePainter(fields["classes"], seed=seed)
    plan = ScenePlan(**fields)
    return write_set(
        Path(out), plan, painter, seed=seed, sides=(0.2, 0.42), description={"kind": "shapes"}, progress=progress
    )
