"""The table of the classes that rounds of class losses write."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longtail.data.files import write_text

HEADER = "stage,step,images,class,group,rows,loss,probability\n"


@dataclass(frozen=True)
class ClassRow:
    """What a round found of one class.

    Attributes:
        name, group: of the class; group r, c, f, or - without training images.
        rows: how many of its rows were measured.
        loss: their mean classification loss, or None without rows.
        probability: with which virtual features of the class are drawn from now on, or None if none are.
    """

    name: str
    group: str
    rows: int
    loss: float | None
    probability: float | None


class ClassLog:
    """Appends to ``class_losses.csv``, a row per class and round; the file begins with its first row.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, stage: str, step: int, images: int, rows: Sequence[ClassRow]) -> None:
        """Writes one round."""
        if self.position() == 0:
            write_text(self.path, HEADER)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [stage, step, images, row.name, row.group, row.rows, number(row.loss), number(row.probability)]
                for row in rows
            )

    def position(self) -> int:
        """Bytes written so far, safe on disk; 0 without a file."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def rewind(self, position: int) -> None:
        """Drops what was written after ``position``: a resumed run writes it again."""
        if position < len(HEADER):
            self.path.unlink(missing_ok=True)
        elif self.position() > position:
            os.truncate(self.path, position)


def number(value: float | None) -> str:
    """Six digits, or nothing."""
    return "" if value is None else f"{value:.6g}"
