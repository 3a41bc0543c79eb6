"""Metrics over the setting that the rows of a study vary (RIO, figures 6a to 6c)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.reports.figures.canvas import Drawing, panels
from longtail.schema import load_recipe
from longtail.schema.errors import UsageError

METRICS = {"AP": "C0", "APr": "C3"}
COMPARED = ("model", "images", "stages", "holdout", "groups")  # parts of a recipe that make rows different runs


@dataclass(frozen=True)
class Point:
    """A row of a study in one plot.

    Attributes:
        label: of the row.
        at: the value of the varied setting, or None for a row that differs in something else: a horizontal line.
        results: metric -> mean over the seeds and standard deviation or None, in 0..1.
    """

    label: str
    at: float | None
    results: Mapping[str, tuple[float, float | None]]


def draw_sweeps(study: Path) -> Drawing:
    """A plot for every number that rows of a finished study vary, all else being equal; the study's baseline belongs
    to every plot. Rows that differ from it in a word as well, as ``source=current``, have plots of their own; a row
    that differs in more is a dashed line.

    Args:
        study: folder that ``longtail study`` wrote.

    Raises:
        UsageError: there is no finished study, or none of its rows varies a number.
    """
    file = study / "table.json"
    if not file.is_file():
        raise UsageError(f"{study} has no table.json; give the folder of a finished `longtail study`")
    content = json.loads(file.read_text(encoding="utf-8"))
    rows = [row for row in content["rows"] if row.get("runs") and row["results"]]
    settings = {row["label"]: settings_of(study, next(iter(row["runs"].values()))) for row in rows}
    base = content["baseline"]
    if base not in settings:
        raise UsageError(f"{study}: the baseline {base!r} has not been run")
    plots, lines = sort_rows(rows, settings, base)
    if not plots:
        raise UsageError(f"{study}: no row varies a number of the baseline {base!r}; rio-figure-6 does")
    canvas, axes = panels(len(plots))
    values: list[list[object]] = []
    for plot, (title, points) in zip(axes, plots.items(), strict=True):
        for metric, colour in METRICS.items():
            own = sorted((point.at or 0.0, *point.results[metric]) for point in points if metric in point.results)
            errors = [100 * (deviation or 0) for _, _, deviation in own]
            plot.errorbar(
                [at for at, _, _ in own], [100 * mean for _, mean, _ in own], errors, color=colour, marker="o",
                label=metric,
            )  # fmt: skip
            for line in lines:
                if metric in line.results:
                    plot.axhline(
                        100 * line.results[metric][0], color=colour, linestyle="--", linewidth=0.8,
                        label=f"{metric}, {line.label}",
                    )  # fmt: skip
        plot.set(xlabel=title, ylabel="x 100")
        plot.legend(fontsize=7)
        for point in [*points, *lines]:
            for metric, (mean, deviation) in point.results.items():
                values.append(
                    [
                        title, point.label, "" if point.at is None else f"{point.at:g}", metric, f"{mean:.6g}",
                        "" if deviation is None else f"{deviation:.6g}",
                    ]
                )  # fmt: skip
    return Drawing("sweeps", canvas, ("plot", "row", "value", "metric", "mean", "sd"), values)


def sort_rows(
    rows: list[dict[str, Any]], settings: Mapping[str, Mapping[str, object]], base: str
) -> tuple[dict[str, list[Point]], list[Point]]:
    """Points by plot, and rows that are lines."""
    start = settings[base]
    results = {row["label"]: results_of(row) for row in rows}
    lines: list[Point] = []
    places: dict[str, tuple[str, str | None]] = {}  # what else differs, and the number's key
    for label, own in settings.items():
        changed = sorted(key for key in start.keys() | own.keys() if start.get(key) != own.get(key))
        numbers = [key for key in changed if is_number(own.get(key)) and is_number(start.get(key))]
        words = [f"{last(key)} = {own.get(key)}" for key in changed if key not in numbers]
        if len(words) > 1 or len(numbers) > 1:
            lines.append(Point(label, None, results[label]))
        elif changed:
            places[label] = "".join(words), numbers[0] if numbers else None
    plots: dict[str, list[Point]] = {}
    for label, (word, key) in places.items():
        if key is None:  # the word alone: a point among those that differ in it and in one number, if there are some
            keys = {other for title, other in places.values() if title == word and other is not None}
            if len(keys) != 1:
                lines.append(Point(label, None, results[label]))
                continue
            (key,) = keys
        name = f"{last(key)}, {word}" if word else last(key)
        first = [] if word else [Point(base, as_float(start[key]), results[base])]
        plots.setdefault(name, first).append(Point(label, as_float(settings[label][key]), results[label]))
    return plots, lines


def is_number(value: object) -> bool:
    """Whether it is one; true and false are words."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_float(value: object) -> float:
    """A number as a float."""
    assert isinstance(value, int | float)
    return float(value)


def last(key: str) -> str:
    """The end of a key: ``count`` of ``stages.0.replay.0.count``."""
    return key.rpartition(".")[2]


def settings_of(study: Path, folder: str) -> dict[str, object]:
    """Every value of a run's recipe by its key.

    Raises:
        UsageError: the run is gone.
    """
    for run in (Path(folder), study / "runs" / Path(folder).name):
        if (run / "recipe.yaml").is_file():
            content = load_recipe(run / "recipe.yaml").model_dump(mode="json")
            return dict(leaf for part in COMPARED for leaf in leaves(content.get(part), part))
    raise UsageError(f"{study}: the run {folder} is not there any more; its recipe says what was varied")


def leaves(value: Any, key: str) -> list[tuple[str, object]]:
    """Values of nested mappings and lists with their keys."""
    if isinstance(value, Mapping):
        return [leaf for name, item in value.items() for leaf in leaves(item, f"{key}.{name}")]
    if isinstance(value, list):
        return [leaf for place, item in enumerate(value) for leaf in leaves(item, f"{key}.{place}")]
    return [(key, value)]


def results_of(row: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Means of the metrics that are drawn, of masks if there are any."""
    kind = "segm" if "segm" in row["results"] else next(iter(row["results"]))
    found = {metric: row["results"][kind].get(metric) for metric in METRICS}
    return {
        metric: (own["mean"], own["sd"]) for metric, own in found.items() if own is not None and own["mean"] is not None
    }
