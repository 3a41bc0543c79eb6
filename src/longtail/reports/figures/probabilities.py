"""With which probability virtual features of the classes are drawn during training (FASA, figure 3)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from longtail.reports.drawings import GROUP_COLOURS
from longtail.reports.figures.canvas import Drawing, panels
from longtail.schema.errors import UsageError

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}


def draw_probabilities(run: Path) -> Drawing:
    """Mean probability of every frequency group over the images seen, and that of every class relative to its first.

    Args:
        run: a run's folder.

    Raises:
        UsageError: the run has had no rounds of class losses with virtual features.
    """
    file = run / "class_losses.csv"
    rows: list[dict[str, str]] = []
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as opened:
            rows = [row for row in csv.DictReader(opened) if row["probability"]]
    if not rows:
        raise UsageError(f"{run} has drawn no virtual features between rounds of class losses; the recipe fasa does")
    rows = [row for row in rows if row["stage"] == rows[-1]["stage"]]
    images = sorted({int(row["images"]) for row in rows})
    size = len(rows) // len(images)
    chance = np.array([float(row["probability"]) for row in rows]).reshape(len(images), size)
    group = np.array([row["group"] for row in rows[:size]])
    canvas, (left, right) = panels(2)
    for letter, name in GROUPS.items():
        own = chance[:, group == letter]
        if own.size:
            left.plot(images, own.mean(axis=1), color=GROUP_COLOURS[letter], label=name)
            right.plot(images, own / np.maximum(own[:1], 1e-300), color=GROUP_COLOURS[letter], linewidth=0.6)
    left.set(xlabel="images seen", ylabel="mean probability", yscale="log")
    left.legend()
    right.set(xlabel="images seen", ylabel="probability of a class / its first")
    values = [[row["images"], row["class"], row["group"], row["probability"]] for row in rows]
    return Drawing("probabilities", canvas, ("images", "class", "group", "probability"), values)
