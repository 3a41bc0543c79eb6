"""The table of a study: figures by row, and differences to the baseline and to a control, paired by seed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from longtail.reports.compare import Difference, difference, spread
from longtail.reports.results import RunResults
from longtail.reports.tables import KIND_NAMES, by_seed, columns, kinds_of, markdown, percent, signed
from longtail.schema.study import Row, Study

FAILING = 0.7
"""A row whose AP is below this share of its baseline's is said to fail at this scale."""

Runs = Mapping[str, Mapping[int, RunResults]]
"""Results by label of the row, seed and IoU type."""


def study_content(study: Study, runs: Runs, folders: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
    """Everything the table says, for programs; values in 0..1, quoted ones too."""
    rows = []
    for row in study.rows:
        content: dict[str, Any] = {"label": row.label, "recipe": row.recipe, "overrides": list(row.overrides)}
        if row.recipe is None:
            content |= {"quoted": {name: value / 100 for name, value in row.quoted.items()}, "reason": row.reason}
        else:
            content["runs"] = {str(seed): folder for seed, folder in folders.get(row.label, {}).items()}
            content["results"] = {kind: row_content(study, row, runs, kind) for kind in kinds_of(runs)}
        if row.remark:
            content["remark"] = row.remark
        rows.append(content)
    return {"study": study.name, "summary": study.summary, "paper": study.paper, "baseline": study.baseline,
            "rows": rows}  # fmt: skip


def row_content(study: Study, row: Row, runs: Runs, kind: str) -> dict[str, Any]:
    """Figures of one row and IoU type, with their differences."""
    own = by_seed(runs.get(row.label, {}), kind)
    content: dict[str, Any] = {}
    for metric in study.metrics:
        mean, deviation = spread(metric, own)
        content[metric] = {
            "by_seed": {str(seed): values.get(metric) for seed, values in own.items()},
            "mean": mean,
            "sd": deviation,
        }
        for name, other in references(study, row).items():
            found = difference(metric, own, by_seed(runs.get(other, {}), kind))
            content[metric][f"minus_{name}"] = {
                "row": other,
                "mean": found.mean,
                "half_width_95": found.half_width,
                "by_seed": {str(seed): value for seed, value in found.by_seed.items()},
                "verdict": found.verdict,
            }
    return content


def references(study: Study, row: Row) -> dict[str, str]:
    """The rows that a row is compared with, itself apart: ``baseline`` and ``control``."""
    found = {"baseline": row.baseline or study.baseline, "control": row.control}
    return {name: label for name, label in found.items() if label is not None and label != row.label}


def study_rows(study: Study, runs: Runs, kind: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean ± standard deviation of every metric; quoted rows as printed."""
    rows = []
    for row in study.rows:
        if row.recipe is None:
            rows.append([row.label, "quoted", *(quoted(row, metric, kind) for metric in study.metrics)])
            continue
        own = by_seed(runs.get(row.label, {}), kind)
        cells = []
        for metric in study.metrics:
            mean, deviation = spread(metric, own)
            cells.append(percent(mean) + (f" ± {percent(deviation)}" if deviation is not None else ""))
        rows.append([row.label, str(len(own)), *cells])
    return ["row", "seeds", *study.metrics], rows


def quoted(row: Row, metric: str, kind: str) -> str:
    """A quoted figure; ``segm/AP`` or ``bbox/AP`` where the paper has both, ``AP`` where it has one."""
    value = row.quoted.get(f"{kind}/{metric}", row.quoted.get(metric))
    return "-" if value is None else f"{value:.1f}"


def difference_table(study: Study, runs: Runs, kind: str) -> tuple[list[str], list[list[str]]]:
    """Every row minus its baseline and its control: mean, 95 % interval, and what may be said."""
    rows = []
    for row in study.rows:
        if row.recipe is None:
            continue
        own = by_seed(runs.get(row.label, {}), kind)
        for other in dict.fromkeys(references(study, row).values()):
            cells = [
                difference_cell(difference(metric, own, by_seed(runs.get(other, {}), kind))) for metric in study.metrics
            ]
            rows.append([f"{row.label} - {other}", *cells])
    return ["difference", *study.metrics], rows


def difference_cell(found: Difference) -> str:
    """``+1.3 ± 0.8 gain``; what is inside the noise is said to be no difference."""
    if found.mean is None:
        return "-"
    if found.half_width is None:
        return f"{signed(found.mean)} (one seed)"
    word = {"gain": "gain", "loss": "loss"}.get(found.verdict, "no difference")
    return f"{signed(found.mean)} ± {percent(found.half_width)} {word}"


def remarks(study: Study, runs: Runs) -> list[str]:
    """What a reader must know: rows that fail at this scale, rows without figures, quoted rows, the study's own."""
    lines = []
    for row in study.rows:
        if row.recipe is None:
            lines.append(f"{row.label}: quoted, not run: {row.reason}")
            continue
        if len(runs.get(row.label, {})) < study.seeds:
            lines.append(f"{row.label}: {len(runs.get(row.label, {}))} of {study.seeds} seeds have figures")
        for kind in kinds_of(runs):
            own, _ = spread("AP", by_seed(runs.get(row.label, {}), kind))
            base, _ = spread("AP", by_seed(runs.get(row.baseline or study.baseline, {}), kind))
            if own is not None and base is not None and own < FAILING * base:
                lines.append(
                    f"{row.label}: fails at this scale ({KIND_NAMES[kind]}): AP {percent(own)} is below "
                    f"{FAILING:g} times the {percent(base)} of {row.baseline or study.baseline}"
                )
        if row.remark:
            lines.append(f"{row.label}: {row.remark}")
    return lines


def study_text(study: Study, runs: Runs) -> str:
    """The study for a terminal."""
    parts = [f"{study.name}: {study.summary}" + (f" ({study.paper})" if study.paper else "")]
    for kind in kinds_of(runs):
        parts.append(f"{KIND_NAMES[kind]}, values x 100, mean ± standard deviation over seeds")
        parts.append(columns(*study_rows(study, runs, kind)))
        parts.append("differences paired by seed, mean ± half of the 95 % interval\n"
                     + columns(*difference_table(study, runs, kind)))  # fmt: skip
    return "\n\n".join([*parts, "\n".join(remarks(study, runs))]).strip()


def study_markdown(study: Study, runs: Runs) -> str:
    """The study as Markdown."""
    parts = [f"# {study.name}", " ".join(filter(None, (study.summary, study.paper and f"({study.paper})")))]
    for kind in kinds_of(runs):
        parts += [f"## {KIND_NAMES[kind].capitalize()}", "Values x 100, mean ± standard deviation over seeds.",
                  markdown(*study_rows(study, runs, kind)),
                  "Differences paired by seed, mean ± half of the 95 % interval.",
                  markdown(*difference_table(study, runs, kind))]  # fmt: skip
    parts += ["\n".join(f"- {line}" for line in remarks(study, runs))]
    return "\n\n".join(part for part in parts if part) + "\n"


def study_csv(study: Study, runs: Runs) -> str:
    """One line per row, IoU type, metric and seed; quoted figures have the seed ``quoted``. Values in 0..1."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("row", "kind", "metric", "seed", "value"))
    for row in study.rows:
        writer.writerows(csv_rows(row, study.metrics, runs))
    return out.getvalue()


def csv_rows(row: Row, metrics: Sequence[str], runs: Runs) -> list[tuple[str, str, str, str, str]]:
    """The lines of one row."""
    if row.recipe is None:
        split = [(name.rpartition("/"), value) for name, value in row.quoted.items()]
        return [(row.label, kind, metric, "quoted", f"{value / 100:.6g}") for (kind, _, metric), value in split]
    return [
        (row.label, kind, metric, str(seed), f"{value:.6g}")
        for kind in kinds_of(runs)
        for seed, values in by_seed(runs.get(row.label, {}), kind).items()
        for metric in metrics
        if (value := values.get(metric)) is not None
    ]
