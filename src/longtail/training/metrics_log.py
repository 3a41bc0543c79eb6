"""Training curves: always a CSV, TensorBoard and Weights & Biases where asked for."""

from __future__ import annotations

import csv
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtail.data.files import write_text
from longtail.schema import UsageError
from longtail.training.class_log import ClassLog

HEADER = "stage,step,images,metric,value\n"


def require_wandb() -> None:
    """Refuses early what would fail later.

    Raises:
        UsageError: Weights & Biases is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        raise UsageError('Weights & Biases is not installed: pip install "longtail[wandb]"')


class MetricsLog:
    """Appends to ``metrics.csv``, one row per value: stage, optimiser step, images seen, metric, value.

    Args:
        path: the CSV file.
        tensorboard: folder for TensorBoard, used if the package is installed; None = off.
        project: name of a Weights & Biases project; None = off.

    Attributes:
        classes: the table of the classes, beside the file.
    """

    def __init__(self, path: Path, *, tensorboard: Path | None = None, project: str | None = None) -> None:
        self.path = path
        self.classes = ClassLog(path.with_name("class_losses.csv"))
        self.board: Any = None
        self.wandb: Any = None
        if not path.exists() or path.stat().st_size < len(HEADER):
            write_text(path, HEADER)
        if tensorboard is not None and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(tensorboard))
        if project is not None:
            import wandb

            self.wandb = wandb.init(project=project, dir=str(path.parent), resume="allow", id=path.parent.name)

    def add(self, stage: str, step: int, images: int, values: Mapping[str, float]) -> None:
        """Writes one row per value and pushes it to the trackers."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [stage, step, images, name, f"{value:.6g}"] for name, value in values.items()
            )
        for name, value in values.items():
            if self.board is not None:
                self.board.add_scalar(f"{stage}/{name}", value, images)
        if self.wandb is not None:
            self.wandb.log({f"{stage}/{name}": value for name, value in values.items()})

    def position(self) -> int:
        """Bytes written so far, safe on disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def rewind(self, position: int) -> None:
        """Drops what was written after ``position``, the header apart: a resumed run writes it again."""
        position = max(position, len(HEADER))
        if self.path.stat().st_size > position:
            os.truncate(self.path, position)

    def close(self) -> None:
        """Flushes the trackers."""
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()
