"""One HTML file that says how a run, or a comparison of runs, went: no other file, no network, no script."""

from __future__ import annotations

import csv
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from longtail.data.files import write_text
from longtail.data.statistics import ClassStatistics
from longtail.reports import plots
from longtail.reports.results import RunResults, class_rows, notes_of, provenance_of, read_results, split_names
from longtail.reports.tables import (
    GROUP_NAMES,
    KIND_NAMES,
    comparison_rows,
    difference_rows,
    kinds_of,
    percent,
    results_rows,
)

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Grid:
    """A table of the page."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def write_run_report(run: Path) -> Path:
    """Writes ``report.html`` into a run's folder, from the files there, and returns its path."""
    splits = {split: read_results(run, split) for split in split_names(run)}
    tables = [
        Grid(split, *results_rows(results), notes=all_notes(results)) for split, results in splits.items() if results
    ]
    usual = splits.get("val") or next(iter(splits.values()), {})
    page = {
        "title": f"Run {run.name}",
        "tables": tables,
        "loss": plots.curves({run.name: loss_curve(run)}, x_title="images seen"),
        "classes": class_grid({run.name: [usual]}),
        "provenance": [provenance_grid(run, usual)],
        "recipes": [(run.name, recipe_text(run))],
    }
    return write_page(run / "report.html", page | distribution_of(statistics_of(run)))


def write_comparison_report(
    out: Path,
    runs: Mapping[str, Mapping[int, Path]],
    *,
    remarks: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> Path:
    """Writes ``report.html`` on several recipes and seeds and returns its path.

    Args:
        out: folder of the page.
        runs: recipe -> seed -> folder of the finished run; the first recipe is what the others are compared with.
        remarks: sentences at the top.
        commands: what made the runs.
    """
    results = {name: {seed: read_results(run) for seed, run in seeds.items()} for name, seeds in runs.items()}
    tables = []
    for kind in kinds_of(results):
        word = KIND_NAMES[kind]
        tables.append(Grid(f"Recipes ({word}): mean ± standard deviation over seeds", *comparison_rows(results, kind)))
        if len(results) > 1:
            note = "A difference is called a gain or a loss when its 95 % interval over seeds leaves out 0."
            tables.append(Grid(f"Differences ({word}), paired by seed", *difference_rows(results, kind), notes=[note]))
    for name, seeds in results.items():
        for seed, figures in seeds.items():
            if figures:
                tables.append(Grid(f"{name}, seed {seed}", *results_rows(figures), notes=all_notes(figures)))
    folders = {f"{name}, seed {seed}": run for name, seeds in runs.items() for seed, run in seeds.items()}
    known = next((found for run in folders.values() if (found := statistics_of(run)) is not None), None)
    page = {
        "title": f"Comparison of {', '.join(runs)}",
        "remarks": list(remarks),
        "tables": tables,
        "loss": plots.curves({name: loss_curve(run) for name, run in folders.items()}, x_title="images seen"),
        "classes": class_grid({name: list(seeds.values()) for name, seeds in results.items()}),
        "provenance": [provenance_grid(run, read_results(run), title=name) for name, run in folders.items()],
        "recipes": [(name, recipe_text(next(iter(seeds.values())))) for name, seeds in runs.items()],
        "commands": list(commands),
    }
    return write_page(out / "report.html", page | distribution_of(known))


def write_page(path: Path, page: Mapping[str, Any]) -> Path:
    """Fills the template; everything that is not markup of ours is escaped."""
    template = resources.files("longtail.reports").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    empty = {"remarks": [], "commands": [], "distribution": "", "groups": ""}
    write_text(path, environment.from_string(template).render(empty | dict(page)))
    return path


def all_notes(results: RunResults) -> list[str]:
    """Protocol and notes of every IoU type."""
    lines = []
    for kind, result in results.items():
        lines.append(f"{KIND_NAMES.get(kind, kind)}: protocol {result['protocol']}")
        lines += notes_of(result)
    return list(dict.fromkeys(lines))


def statistics_of(run: Path) -> ClassStatistics | None:
    """Class statistics of the training data, from the run's checkpoint; None if there is none."""
    for name in ("last", "best"):
        file = run / "checkpoints" / name / "model.json"
        if file.is_file():
            return ClassStatistics.from_dict(json.loads(file.read_text(encoding="utf-8"))["statistics"])
    return None


def distribution_of(known: ClassStatistics | None) -> dict[str, Any]:
    """The bars of the training classes and a sentence on their groups."""
    if known is None:
        return {}
    group = [str(letter) for letter in known.group]
    amount = Counter(group)
    rare, common = known.edges
    sizes = ", ".join(f"{amount[letter]} {name}" for letter, name in GROUP_NAMES.items() if amount[letter])
    counts = known.image_counts if known.count == "images" else known.instance_counts
    return {
        "distribution": plots.distribution([int(count) for count in counts], group, list(known.names)),
        "groups": f"Training {known.count} per class: {sizes} (rare up to {rare}, frequent above {common}); "
        f"{known.num_images} images.",
    }


def loss_curve(run: Path) -> list[tuple[float, float]]:
    """Total training loss over images seen, the stages one after another."""
    file = run / "metrics.csv"
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "loss"]
    points: list[tuple[float, float]] = []
    stage, start = "", 0.0
    for row in rows:
        if row["stage"] != stage:
            stage, start = row["stage"], points[-1][0] if points else 0.0
        points.append((start + float(row["images"]), float(row["value"])))
    return points


def class_grid(results: Mapping[str, Sequence[RunResults]]) -> Grid:
    """AP of every class, the mean over the runs of each recipe, for masks where there are any, otherwise for boxes."""
    kinds = {kind for runs in results.values() for figures in runs for kind in figures}
    kind = next((name for name in ("segm", "bbox", "picture") if name in kinds), "bbox")
    known: dict[int | str, Mapping[str, Any]] = {}
    found: dict[tuple[str, int | str], list[float]] = {}
    for recipe, runs in results.items():
        for figures in runs:
            for row in class_rows(figures[kind]) if kind in figures else ():
                known.setdefault(row["id"], row)
                if row["ap"] is not None:
                    found.setdefault((recipe, row["id"]), []).append(row["ap"])
    rows = [
        [
            str(row["name"]),
            GROUP_NAMES.get(row["group"], "unknown"),
            "-" if row["train_images"] is None else str(row["train_images"]),
            str(row["objects"]),
            *(percent(mean_of(found.get((recipe, identity)))) for recipe in results),
        ]
        for identity, row in sorted(known.items(), key=lambda pair: (-(pair[1]["train_images"] or 0), pair[1]["name"]))
    ]
    metric = "accuracy" if kind == "picture" else "AP"
    named = [f"{metric} {name} ({KIND_NAMES[kind]})" for name in results]
    header = ["class", "group", "training images", "objects", *named]
    return Grid("", header, rows)


def mean_of(values: Sequence[float] | None) -> float | None:
    """Their mean, if there are any."""
    return statistics.fmean(values) if values else None


def provenance_grid(run: Path, results: RunResults, *, title: str = "") -> Grid:
    """Data, seed, protocol and versions of a run."""
    rows: list[list[str]] = [["folder", run.name]]
    data = read_json(run / "data.json")
    for name, path in data.get("paths", {}).items():
        for each in path if isinstance(path, list) else [path]:
            if each is not None:
                rows.append([name, Path(str(each)).name])
    rows += [[f"{part}: sha256", str(data[part]["sha256"])] for part in ("train", "val") if data.get(part)]
    environment = read_json(run / "environment.json")
    rows += [[key, str(environment[key])] for key in ("python", "platform", "processor") if key in environment]
    rows += [[name, str(version or "not installed")] for name, version in environment.get("packages", {}).items()]
    for kind, result in results.items():
        rows += [[f"{KIND_NAMES.get(kind, kind)}: {key}", str(value)] for key, value in provenance_of(result).items()]
    return Grid(title or run.name, ["what", "value"], rows)


def recipe_text(run: Path) -> str:
    """The run's recipe as YAML."""
    file = run / "recipe.yaml"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is no file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
