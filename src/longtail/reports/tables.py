"""Tables of figures, for terminals and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longtail.reports.compare import difference, spread
from longtail.reports.results import Result, RunResults, classes_behind, metrics_of, notes_of

GROUP_NAMES = {"r": "rare", "c": "common", "f": "frequent", "-": "unseen"}
KIND_NAMES = {"bbox": "boxes", "segm": "masks", "picture": "pictures"}
USUAL = ("AP", "AP50", "AP75", "APr", "APc", "APf")
COMPARED = ("AP", "APr", "APc", "APf")


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text in aligned columns, the first to the left, the others to the right."""
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    safe = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    marks = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (safe[0], marks, *safe[1:]))


def percent(value: float | None) -> str:
    """A share as percentage points with one decimal; ``-`` where there is nothing to average."""
    return "-" if value is None else f"{100 * value:.1f}"


def signed(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return "-" if value is None else f"{100 * value:+.1f}"


def metric_names(results: Mapping[str, Result]) -> list[str]:
    """The usual metrics that any of the results has, then its other precisions, without those by object size."""
    present = list(dict.fromkeys(name for result in results.values() for name in metrics_of(result)))
    others = [name for name in present if name.startswith("AP") and name not in (*USUAL, "APs", "APm", "APl")]
    return [*(name for name in USUAL if name in present), *others] or present


def results_rows(results: Mapping[str, Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row per IoU type, then the number of classes behind each mean."""
    names = metric_names(results)
    rows = [
        [KIND_NAMES.get(kind, kind), *(percent(metrics_of(result).get(name)) for name in names)]
        for kind, result in results.items()
    ]
    for kind, result in results.items():
        counts = classes_behind(result)
        rows.append([f"classes ({KIND_NAMES.get(kind, kind)})", *(counts.get(name, "") for name in names)])
    return ["", *names], rows


def results_text(results: Mapping[str, Result]) -> str:
    """The figures of one evaluation, with its protocol and what a reader must know."""
    protocols = dict.fromkeys(str(result["protocol"]) for result in results.values())
    notes = dict.fromkeys(note for result in results.values() for note in notes_of(result))
    head = f"protocol {', '.join(protocols)}; values x 100; classes: with objects / all"
    return "\n".join([head, columns(*results_rows(results)), *(f"note: {note}" for note in notes)])


def comparison_rows(runs: Mapping[str, Mapping[int, RunResults]], kind: str) -> tuple[list[str], list[list[str]]]:
    """Mean ± standard deviation over seeds of every recipe."""
    rows = []
    for name, seeds in runs.items():
        row = [name, str(len(seeds))]
        for metric in COMPARED:
            mean, deviation = spread(metric, by_seed(seeds, kind))
            row.append(percent(mean) + (f" ± {percent(deviation)}" if deviation is not None else ""))
        rows.append(row)
    return ["recipe", "seeds", *COMPARED], rows


def difference_rows(runs: Mapping[str, Mapping[int, RunResults]], kind: str) -> tuple[list[str], list[list[str]]]:
    """Every other recipe minus the first, paired by seed: mean, 95 % interval, each seed, and what may be said."""
    reference_name, *others = runs
    reference = by_seed(runs[reference_name], kind)
    rows = []
    for name in others:
        for metric in COMPARED:
            found = difference(metric, by_seed(runs[name], kind), reference)
            interval = "-" if found.half_width is None else f"± {percent(found.half_width)}"
            seeds = ", ".join(signed(value) for value in found.by_seed.values()) or "-"
            rows.append([f"{name} - {reference_name}", metric, signed(found.mean), interval, seeds, found.verdict])
    return ["difference", "metric", "mean", "95 %", "by seed", "verdict"], rows


def comparison_text(runs: Mapping[str, Mapping[int, RunResults]]) -> str:
    """Several recipes over several seeds, for boxes and, where there are, masks."""
    parts = []
    for kind in kinds_of(runs):
        first = next(results[kind] for seeds in runs.values() for results in seeds.values() if kind in results)
        counts = classes_behind(first)
        behind = ", ".join(f"{counts[metric]} behind {metric}" for metric in COMPARED if metric in counts)
        parts.append(
            f"{KIND_NAMES.get(kind, kind)}, protocol {first['protocol']}, values x 100"
            + (f"; classes: {behind}" if behind else "")
        )
        parts.append(columns(*comparison_rows(runs, kind)))
        if len(runs) > 1:
            parts.append(columns(*difference_rows(runs, kind)))
    return "\n\n".join(parts)


def kinds_of(runs: Mapping[str, Mapping[int, RunResults]]) -> list[str]:
    """The IoU types any run has."""
    return [
        kind for kind in KIND_NAMES if any(kind in results for seeds in runs.values() for results in seeds.values())
    ]


def by_seed(seeds: Mapping[int, RunResults], kind: str) -> dict[int, dict[str, float | None]]:
    """Metrics of one IoU type by seed."""
    return {seed: metrics_of(results[kind]) for seed, results in seeds.items() if kind in results}
