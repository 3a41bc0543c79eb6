"""Norms of the classifier's weights by class (FASA, figure 4), from what runs wrote after every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from longtail.reports.figures.canvas import Drawing, panels
from longtail.reports.figures.class_scores import dots_and_line, group_edges, over_epochs, read_table
from longtail.schema.errors import UsageError


def draw_weight_norms(runs: Mapping[str, Path]) -> Drawing:
    """Norms at the end, in the order of the training data's groups, for all runs; and one plot for each run with those
    of the groups over its epochs.

    Of a cascade the last head is shown; the CSV has the others, too.

    Args:
        runs: folders by name.

    Raises:
        UsageError: a run without norms, or runs of different classes.
    """
    tables = {
        name: read_table(
            folder / "class_norms.csv",
            f"{folder} wrote no norms of class weights; runs of region heads and image classifiers do",
        )
        for name, folder in runs.items()
    }
    canvas, (first, *histories) = panels(1 + len(runs))
    names: list[str] = []
    for number, (name, rows) in enumerate(tables.items()):
        last = [row for row in rows if all(row[key] == rows[-1][key] for key in ("stage", "step", "head"))]
        last.sort(key=lambda row: "fcr-".index(row["group"]))
        classes = [row["class"] for row in last]
        names = names or classes
        if classes != names:
            raise UsageError(f"{name} has other classes than {next(iter(tables))}; use runs on the same data")
        dots_and_line(first, np.array([float(row["norm"]) for row in last]), f"C{number}", name)
        if number == 0:
            group_edges(first, [row["group"] for row in last])
    first.set(xlabel="class, frequent to rare", ylabel="norm of the classifier's weights")
    first.set_ylim(bottom=0)
    first.legend(fontsize=7)
    for axes, (name, rows) in zip(histories, tables.items(), strict=True):
        over_epochs(axes, [row for row in rows if row["head"] == rows[-1]["head"]], "norm")
        axes.set(title=name, ylabel="norm")
        axes.legend(fontsize=7)
    columns = ("stage", "step", "epoch", "head", "class", "group", "norm")
    values = [[name, *(row[key] for key in columns)] for name, rows in tables.items() for row in rows]
    return Drawing("weight-norms", canvas, ("run", *columns), values)
