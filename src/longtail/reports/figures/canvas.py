"""Where figures are drawn: matplotlib without a window, saved as PNG and SVG beside the numbers they show."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from longtail.schema.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True)
class Drawing:
    """A figure with the numbers behind it.

    Attributes:
        name: of the files.
        canvas: matplotlib's figure.
        columns: names of the columns.
        rows: the numbers, one row per point, bar or box.
    """

    name: str
    canvas: Canvas
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def save(self, folder: Path) -> list[Path]:
        """Writes ``<name>.png``, ``.svg`` and ``.csv``; returns their paths. The same numbers give the same bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        import matplotlib

        pictures = [folder / f"{self.name}.png", folder / f"{self.name}.svg"]
        with matplotlib.rc_context({"svg.hashsalt": self.name}):
            self.canvas.savefig(pictures[0], dpi=150, metadata={"Software": None})
            self.canvas.savefig(pictures[1], metadata={"Date": None, "Creator": None})
        numbers = folder / f"{self.name}.csv"
        with numbers.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(self.rows)
        return [*pictures, numbers]


def panels(count: int, *, width: float = 5.0, height: float = 3.6) -> tuple[Canvas, list[Axes]]:
    """An empty figure with ``count`` plots side by side, each ``width`` x ``height`` inches.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError('figures need matplotlib: pip install "longtail[figures]"') from None
    canvas = Figure(figsize=(width * count, height), layout="constrained")
    FigureCanvasAgg(canvas)
    grid = canvas.subplots(1, count, squeeze=False)
    return canvas, list(grid[0])
