"""What a run writes about every class after every epoch: mean scores and accuracies, and norms of the weights."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from longtail.data import ClassStatistics
from longtail.data.files import write_text
from longtail.losses import MeanScore
from longtail.models.base import TrainableModel
from longtail.models.weight_norms import class_weight_norms
from longtail.training.run_directory import RunDirectory

START = ("stage", "step", "epoch", "head", "class", "group")
SCORES = (*START, "mean_score", "regions", "accuracy")
NORMS = (*START, "norm")


def mean_scores(model: nn.Module) -> list[MeanScore]:
    """Those of all region heads, in order."""
    return [module for module in model.modules() if isinstance(module, MeanScore)]


class ClassTables:
    """Keeps two files of a run, with a row for every stage, epoch, head and class.

    ``class_scores.csv``, where the model keeps mean scores (LOCE): ``regions`` are the positive regions since the row
    before, ``accuracy`` is the share of them whose highest score was their own class, empty where there were none.
    ``class_norms.csv``: :func:`~longtail.models.weight_norms.class_weight_norms` of the classifier,
    where it has a vector per class.

    Rows that a resumed run makes again replace their predecessors.

    Args:
        run: where the files lie; they are written when there is something to say.
        statistics: of the classes.
    """

    def __init__(self, run: RunDirectory, statistics: ClassStatistics) -> None:
        self.run = run
        self.statistics = statistics

    def write(self, stage: str, step: int, epoch: float, model: TrainableModel) -> None:
        """Adds the rows of one step, in place of those of this stage from this step on."""
        scores = [
            [
                [f"{value:.6g}", f"{regions:.0f}", f"{hits / regions:.6g}" if regions else ""]
                for value, regions, hits in zip(
                    own.value[:-1].tolist(), own.rows.tolist(), own.hits.tolist(), strict=True
                )
            ]
            for own in mean_scores(model)
        ]
        norms = [
            [[f"{value:.6g}"] for value in own.tolist()]
            for own in map(class_weight_norms, model.class_heads())
            if own is not None
        ]
        self._replace(self.run.class_scores, SCORES, stage, step, epoch, scores)
        self._replace(self.run.class_norms, NORMS, stage, step, epoch, norms)

    def _replace(
        self, path: Path, header: Sequence[str], stage: str, step: int, epoch: float, heads: Sequence[list[list[str]]]
    ) -> None:
        if not heads:
            return
        rows = [row for row in read(path) if row[0] != stage or int(row[1]) < step]
        for number, values in enumerate(heads):
            for name, group, value in zip(self.statistics.names, self.statistics.group, values, strict=True):
                rows.append([stage, str(step), f"{epoch:.6g}", str(number), name, str(group), *value])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        write_text(path, text.getvalue())


def read(path: Path) -> list[list[str]]:
    """The rows of a file without its header; none without a file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]
