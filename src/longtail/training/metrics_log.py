"""Training curves: always a CSV, TensorBoard and Weights & Biases where asked for."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtail.schema import UsageError

FIELDS = ("stage", "step", "images", "metric", "value")


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
    """

    def __init__(self, path: Path, *, tensorboard: Path | None = None, project: str | None = None) -> None:
        self.path = path
        self.board: Any = None
        self.wandb: Any = None
        if not path.exists():
            path.write_text(",".join(FIELDS) + "\n", encoding="utf-8")
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

    def rewind(self, stage: str, step: int) -> None:
        """Drops rows of ``stage`` after ``step``: a resumed run writes them again."""
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        kept = [row for row in rows if row["stage"] != stage or int(row["step"]) <= step]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)

    def close(self) -> None:
        """Flushes the trackers."""
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()
