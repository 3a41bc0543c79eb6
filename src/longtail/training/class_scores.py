"""Mean score and accuracy of every class over a run, where a model keeps mean scores (LOCE, figures 1 and 4)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from longtail.data.files import write_text
from longtail.losses import MeanScore

HEADER = ("stage", "step", "epoch", "head", "class", "mean_score", "regions", "accuracy")


def mean_scores(model: nn.Module) -> list[MeanScore]:
    """Those of all region heads, in order."""
    return [module for module in model.modules() if isinstance(module, MeanScore)]


class ClassScores:
    """Keeps ``class_scores.csv``: a row for every stage, epoch, region head and class.

    ``regions`` are the positive regions since the row before, ``accuracy`` is the share of them whose highest score was
    their own class, empty where there were none. Rows that a resumed run makes again replace their predecessors.

    Args:
        path: the CSV file; written when there is something to say.
        names: of the classes, in their order.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self.names = list(names)

    def write(self, stage: str, step: int, epoch: float, heads: Sequence[MeanScore]) -> None:
        """Adds the rows of one step, in place of those of this stage from this step on."""
        rows = [row for row in self._read() if row[0] != stage or int(row[1]) < step]
        for head, scores in enumerate(heads):
            columns = (scores.value.tolist(), scores.rows.tolist(), scores.hits.tolist())
            for name, value, regions, hits in zip(
                self.names, *(column[: len(self.names)] for column in columns), strict=True
            ):
                accuracy = f"{hits / regions:.6g}" if regions else ""
                rows.append(
                    [stage, str(step), f"{epoch:.6g}", str(head), name, f"{value:.6g}", f"{regions:.0f}", accuracy]
                )
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])
        write_text(self.path, text.getvalue())

    def _read(self) -> list[list[str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))[1:]
