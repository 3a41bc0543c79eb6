"""The table of a study from made-up figures that can be checked by hand."""

from __future__ import annotations

import csv
import io

from longtail.reports.study import study_content, study_csv, study_markdown, study_text
from longtail.schema.study import Row, Study

STUDY = Study(
    name="made-up",
    summary="Nothing real.",
    baseline="plain",
    metrics=("AP", "APr"),
    seeds=3,
    rows=(
        Row(label="plain", recipe="baseline"),
        Row(label="longer", recipe="baseline"),
        Row(label="better", recipe="rfs", control="longer"),
        Row(label="broken", recipe="rfs", remark="diverges"),
        Row(label="paper | one", quoted={"AP": 22.6, "segm/AP": 21.0}, reason="needs a chain of models"),
    ),
)


def result(ap: float, rare: float | None) -> dict[str, object]:
    return {"bbox": {"metrics": {"AP": ap, "APr": rare}, "protocol": "lvis", "classes_behind": {}}}


RUNS = {
    "plain": {0: result(0.30, 0.10), 1: result(0.32, 0.12), 2: result(0.31, 0.11)},
    "longer": {0: result(0.31, 0.10), 1: result(0.32, 0.13), 2: result(0.33, 0.10)},
    "better": {0: result(0.40, 0.20), 1: result(0.42, 0.22), 2: result(0.41, 0.21)},
    "broken": {0: result(0.10, None), 1: result(0.11, None)},
}


def test_figures_differences_and_remarks() -> None:
    text = study_text(STUDY, RUNS)
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in text.splitlines()}
    assert lines["plain"] == "plain 3 31.0 ± 1.0 11.0 ± 1.0"
    assert lines["paper | one"] == "paper | one quoted 22.6 -"
    assert lines["better - plain"] == "better - plain +10.0 ± 0.0 gain +10.0 ± 0.0 gain"
    assert lines["better - longer"].startswith("better - longer +9.0 ± 2.5 gain")
    assert lines["longer - plain"].startswith("longer - plain +1.0 ± 2.5 no difference")
    assert "broken: fails at this scale (boxes): AP 10.5 is below 0.7 times the 31.0 of plain" in text
    assert "broken: 2 of 3 seeds have figures" in text
    assert "broken: diverges" in text
    assert "paper | one: quoted, not run: needs a chain of models" in text
    assert "better: fails" not in text
    assert "plain - plain" not in text


def test_the_interval_is_students() -> None:
    """Differences 0.09, 0.10, 0.08: mean 0.09, sd 0.01, t = 4.303 for two degrees of freedom."""
    content = study_content(STUDY, RUNS, {"better": {0: "runs/a"}})
    better = next(row for row in content["rows"] if row["label"] == "better")
    found = better["results"]["bbox"]["AP"]["minus_control"]
    assert found["row"] == "longer"
    assert abs(found["mean"] - 0.09) < 1e-12
    assert abs(found["half_width_95"] - 4.303 * 0.01 / 3**0.5) < 1e-6
    assert better["runs"] == {"0": "runs/a"}
    quoted = content["rows"][-1]
    assert quoted["quoted"]["AP"] == 0.226
    assert quoted["reason"] == "needs a chain of models"


def test_markdown_and_csv() -> None:
    text = study_markdown(STUDY, RUNS)
    assert "| better | 3 | 41.0 ± 1.0 | 21.0 ± 1.0 |" in text
    assert "paper \\| one" in text
    rows = list(csv.DictReader(io.StringIO(study_csv(STUDY, RUNS))))
    assert {"row": "plain", "kind": "bbox", "metric": "APr", "seed": "1", "value": "0.12"} in rows
    assert {"row": "paper | one", "kind": "segm", "metric": "AP", "seed": "quoted", "value": "0.21"} in rows
    assert not [row for row in rows if row["row"] == "broken" and row["metric"] == "APr"]


def test_without_any_figure_the_table_says_so() -> None:
    text = study_text(STUDY, {})
    assert "plain: 0 of 3 seeds have figures" in text
