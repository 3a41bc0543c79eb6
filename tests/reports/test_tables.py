"""Tables of figures."""

from __future__ import annotations

from typing import Any

from longtail.reports.tables import columns, comparison_text, markdown, percent, results_text, signed


def result(*, ap: float, rare: float | None, kind: str = "bbox", protocol: str = "lvis") -> dict[str, Any]:
    """An EvaluationResult as a dictionary, with two classes."""
    return {
        "protocol": protocol,
        "iou_type": kind,
        "metrics": {"AP": ap, "AP50": ap, "APs": 0.5, "APr": rare, "APc": None, "APf": ap},
        "classes_behind": {
            "AP": {"classes": 2, "with_objects": 2},
            "APr": {"classes": 1, "with_objects": 1},
            "APc": {"classes": 0, "with_objects": 0},
        },
        "per_class": [],
        "notes": ["caps are not the reference's"],
        "settings": {},
    }


def test_columns_align() -> None:
    text = columns(["name", "AP"], [["a", "1.0"], ["longer", "12.0"]])
    assert text.splitlines() == ["name      AP", "a        1.0", "longer  12.0"]


def test_markdown_escapes_bars() -> None:
    assert markdown(["a|b", "x"], [["c", "1"]]) == "| a\\|b | x |\n| --- | ---: |\n| c | 1 |"


def test_numbers() -> None:
    assert [percent(0.12345), percent(0.0), percent(None)] == ["12.3", "0.0", "-"]
    assert [signed(0.012), signed(-0.05), signed(None)] == ["+1.2", "-5.0", "-"]


def test_results_name_protocol_counts_and_notes() -> None:
    text = results_text({"bbox": result(ap=0.301, rare=None), "segm": result(ap=0.25, rare=0.1, kind="segm")})
    lines = text.splitlines()
    assert lines[0].startswith("protocol lvis; values x 100")
    assert lines[1].split() == ["AP", "AP50", "APr", "APc", "APf"]
    assert lines[2].split() == ["boxes", "30.1", "30.1", "-", "-", "30.1"]
    assert lines[3].split() == ["masks", "25.0", "25.0", "10.0", "-", "25.0"]
    assert lines[4].split() == ["classes", "(boxes)", "2/2", "1/1", "0/0"]
    assert lines[-1] == "note: caps are not the reference's"
    assert text.count("note:") == 1


def test_a_protocol_with_other_metrics_shows_those() -> None:
    bins = result(ap=0.3, rare=None) | {"metrics": {"AP1": 0.1, "APs": 0.2, "AR": 0.3, "AP": 0.4}, "classes_behind": {}}
    assert results_text({"bbox": bins}).splitlines()[1].split() == ["AP", "AP1"]
    recall = bins | {"metrics": {"AR@100": 0.1}}
    assert results_text({"bbox": recall}).splitlines()[1].split() == ["AR@100"]


def test_comparison_over_seeds() -> None:
    runs = {
        "baseline": {seed: {"bbox": result(ap=0.30, rare=0.10 + 0.01 * seed)} for seed in range(3)},
        "rfs": {seed: {"bbox": result(ap=0.30, rare=0.20 + 0.01 * seed)} for seed in range(3)},
    }
    text = comparison_text(runs)
    assert "boxes, protocol lvis, values x 100; classes: 2/2 behind AP, 1/1 behind APr" in text
    assert "11.0 ± 1.0" in text
    rare = next(line for line in text.splitlines() if line.startswith("rfs - baseline") and " APr " in line)
    assert "+10.0" in rare
    assert "+10.0, +10.0, +10.0" in rare
    assert rare.endswith("gain")
    overall = next(line for line in text.splitlines() if line.startswith("rfs - baseline") and " AP " in line)
    assert overall.endswith("no difference beyond the noise of the seeds")
    common = next(line for line in text.splitlines() if line.startswith("rfs - baseline") and " APc " in line)
    assert common.endswith("not comparable")


def test_comparison_of_one_recipe_has_no_differences() -> None:
    text = comparison_text({"rfs": {0: {"bbox": result(ap=0.3, rare=0.2)}}})
    assert "verdict" not in text
    assert "30.0" in text


def test_comparison_of_nothing_is_empty() -> None:
    assert comparison_text({"rfs": {0: {}}}) == ""
