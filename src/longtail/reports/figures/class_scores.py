"""Mean score and accuracy of every class (LOCE, figures 1 and 4; FASA, figure 1b)."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from longtail.reports.drawings import GROUP_COLOURS
from longtail.reports.figures.canvas import Drawing, panels
from longtail.reports.tables import GROUP_NAMES
from longtail.schema.errors import UsageError
from longtail.training.class_probe import ClassProbe

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_scores(probes: Mapping[str, ClassProbe]) -> Drawing:
    """Scores and accuracies over the classes, most frequent first: a dot per class, a line of means over neighbours.

    Args:
        probes: by name of the run; all of the same classes.

    Raises:
        UsageError: runs of different classes.
    """
    first = next(iter(probes.values())).statistics
    for name, probe in probes.items():
        if list(probe.statistics.names) != list(first.names):
            raise UsageError(f"{name} has other classes than {next(iter(probes))}; use runs on the same data")
    order = np.argsort(-first.instance_counts, kind="stable")
    canvas, (left, right) = panels(2)
    for number, (name, probe) in enumerate(probes.items()):
        for axes, values in ((left, probe.score), (right, probe.accuracy)):
            dots_and_line(axes, values[order], f"C{number}", name)
    for axes, what in ((left, "mean score of the own class"), (right, "accuracy")):
        group_edges(axes, first.group[order])
        axes.set(xlabel="class, most frequent first", ylabel=what, ylim=(0, 1))
    left.legend(fontsize=7)
    rows = [
        [
            name, first.names[c], str(first.group[c]), int(first.instance_counts[c]), int(probe.objects[c]),
            *("" if np.isnan(value[c]) else f"{value[c]:.6g}" for value in (probe.score, probe.accuracy)),
        ]
        for name, probe in probes.items()
        for c in order.tolist()
    ]  # fmt: skip
    header = ("run", "class", "group", "training_objects", "objects", "score", "accuracy")
    return Drawing("scores", canvas, header, rows)


def dots_and_line(axes: Axes, values: NDArray[np.float64], colour: str, label: str) -> None:
    """A dot for every value that is there, and a line of their means over neighbours, a tenth of the classes each."""
    at = np.flatnonzero(~np.isnan(values))
    axes.scatter(at + 1, values[at], s=4, alpha=0.4, color=colour)
    if len(at):
        parts = np.array_split(at, min(10, len(at)))
        axes.plot(
            [part.mean() + 1 for part in parts], [values[part].mean() for part in parts], color=colour, label=label
        )


def group_edges(axes: Axes, groups: Sequence[str] | NDArray[np.str_]) -> None:
    """Dotted lines where the frequency group changes."""
    for place, (one, other) in enumerate(pairwise(groups)):
        if one != other:
            axes.axvline(place + 1.5, color="black", linewidth=0.6, linestyle=":")


def draw_training_scores(run: Path) -> Drawing:
    """Mean score and accuracy of every frequency group over the epochs of training, with those of all classes thin.

    Args:
        run: a run's folder.

    Raises:
        UsageError: the run kept no mean scores.
    """
    rows = read_table(
        run / "class_scores.csv",
        f"{run} kept no mean scores; `loce` does, and any recipe with stages.*.replay=[mean_score]",
    )
    rows = [row for row in rows if row["head"] == rows[-1]["head"]]
    canvas, (left, right) = panels(2)
    for axes, column, what in ((left, "mean_score", "mean score"), (right, "accuracy", "accuracy")):
        over_epochs(axes, rows, column)
        axes.set(ylabel=what, ylim=(0, 1))
    left.legend(fontsize=7)
    columns = ("stage", "step", "epoch", "class", "group", "mean_score", "regions", "accuracy")
    return Drawing("training-scores", canvas, columns, [[row[name] for name in columns] for row in rows])


def read_table(file: Path, missing: str) -> list[dict[str, str]]:
    """Rows of a run's table of classes.

    Raises:
        UsageError: ``missing``, if there are none.
    """
    rows: list[dict[str, str]] = []
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
    if not rows:
        raise UsageError(missing)
    return rows


def over_epochs(axes: Axes, rows: Sequence[Mapping[str, str]], column: str) -> None:
    """Means of the groups as thick lines, classes as thin ones, over what a run wrote one time after the other; dotted
    lines where a stage begins. Empty values are left out."""
    times = list(dict.fromkeys((row["stage"], row["step"]) for row in rows))
    names = list(dict.fromkeys(row["class"] for row in rows))
    place = {(stage, step): number for number, (stage, step) in enumerate(times)}
    line = {name: number for number, name in enumerate(names)}
    values = np.full((len(times), len(names)), np.nan)
    for row in rows:
        if row[column]:
            values[place[row["stage"], row["step"]], line[row["class"]]] = float(row[column])
    group = {row["class"]: row["group"] for row in rows}
    groups = np.array([group[name] for name in names])
    at = np.arange(1, len(times) + 1)
    for letter, title in GROUP_NAMES.items():
        own = values[:, groups == letter]
        if own.size:
            there = ~np.isnan(own)
            means = np.where(there, own, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
            means[~there.any(axis=1)] = np.nan
            axes.plot(at, own, color=GROUP_COLOURS[letter], linewidth=0.3, alpha=0.4)
            axes.plot(at, means, color=GROUP_COLOURS[letter], marker="o", markersize=3, label=title)
    for number, (before, after) in enumerate(pairwise(times), start=1):
        if before[0] != after[0]:
            axes.axvline(number + 0.5, color="black", linewidth=0.6, linestyle=":")
    axes.set_xlabel("ends of epochs and stages")
    axes.locator_params(axis="x", integer=True)
