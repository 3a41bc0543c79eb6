"""Figures of classes and of what studies vary, from the files of runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from longtail.cli.main import main
from longtail.data import ClassStatistics
from longtail.reports.figures.class_scores import draw_scores, draw_training_scores
from longtail.reports.figures.sweeps import draw_sweeps
from longtail.reports.figures.weight_norms import draw_weight_norms
from longtail.schema import UsageError, load_recipe
from longtail.schema.load import dump_recipe
from longtail.training.class_probe import ClassProbe

STATISTICS = ClassStatistics(["a", "b", "c"], np.array([2, 500, 40]), np.array([2, 900, 50]), 500, 500)


def seen(score: list[float]) -> ClassProbe:
    return ClassProbe(STATISTICS, np.array([0, 4, 2]), np.array(score), np.array(score) / 2)


def test_scores_are_in_the_order_of_training_objects() -> None:
    drawn = draw_scores({"one": seen([np.nan, 0.8, 0.5]), "two": seen([np.nan, 0.6, 0.25])})
    assert drawn.rows[:3] == [
        ["one", "b", "f", 900, 4, "0.8", "0.4"],
        ["one", "c", "c", 50, 2, "0.5", "0.25"],
        ["one", "a", "r", 2, 0, "", ""],
    ]
    left, right = drawn.canvas.axes
    assert [collection.get_offsets().tolist() for collection in left.collections] == [
        [[1, 0.8], [2, 0.5]],
        [[1, 0.6], [2, 0.25]],
    ]
    assert right.collections[1].get_offsets().tolist() == [[1, 0.3], [2, 0.125]]
    other = ClassProbe(ClassStatistics(["x"], np.array([2]), np.array([2]), 5, 5), *[np.ones(1)] * 3)
    with pytest.raises(UsageError, match="two has other classes than one"):
        draw_scores({"one": seen([0, 0, 0]), "two": other})


def lines_of(axes: object) -> dict[str, list[float]]:
    return {
        line.get_label(): np.round(line.get_ydata(), 6).tolist()
        for line in axes.lines  # type: ignore[attr-defined]
        if not line.get_label().startswith("_")
    }


def test_training_scores_are_means_of_the_groups_over_the_epochs(tmp_path: Path) -> None:
    (tmp_path / "class_scores.csv").write_text(
        "stage,step,epoch,head,class,group,mean_score,regions,accuracy\n"
        "one,5,1,0,a,r,0.1,2,\none,5,1,0,b,f,0.5,9,0.5\none,5,1,0,c,r,0.3,0,0.25\n"
        "one,5,1,1,a,r,0.2,2,\none,5,1,1,b,f,0.6,9,0.75\none,5,1,1,c,r,0.4,0,0.25\n"
        "two,5,1,0,a,r,0,2,\ntwo,5,1,0,b,f,0,9,0\ntwo,5,1,0,c,r,0,0,0\n"
        "two,5,1,1,a,r,0.4,2,\ntwo,5,1,1,b,f,0.7,9,1\ntwo,5,1,1,c,r,0.8,0,\n"
    )
    drawn = draw_training_scores(tmp_path)
    left, right = drawn.canvas.axes
    assert lines_of(left) == {"rare": [0.3, 0.6], "frequent": [0.6, 0.7]}, "the last head"
    assert lines_of(right)["frequent"] == [0.75, 1]
    assert lines_of(right)["rare"][0] == 0.25 and np.isnan(lines_of(right)["rare"][1])
    assert len(drawn.rows) == 6


def norms(folder: Path, *values: float) -> Path:
    folder.mkdir()
    rows = [
        f"s,{step},{step},0,{name},{group},{value * step}"
        for step in (1, 2)
        for name, group, value in zip("abc", "rfr", values, strict=True)
    ]
    (folder / "class_norms.csv").write_text("\n".join(["stage,step,epoch,head,class,group,norm", *rows]) + "\n")
    return folder


def test_weight_norms_of_two_runs(tmp_path: Path) -> None:
    runs = {"plain": norms(tmp_path / "plain", 0.25, 2, 0.75), "fasa": norms(tmp_path / "fasa", 0.5, 2, 0.5)}
    drawn = draw_weight_norms(runs)
    first, plain, fasa = drawn.canvas.axes
    assert first.collections[0].get_offsets().tolist() == [[1, 4], [2, 0.5], [3, 1.5]], "frequent first"
    assert lines_of(plain) == {"rare": [0.5, 1], "frequent": [2, 4]}
    assert lines_of(fasa)["rare"] == [0.5, 1]
    assert len(drawn.rows) == 12 and drawn.rows[0] == ["plain", "s", "1", "1", "0", "a", "r", "0.25"]
    with pytest.raises(UsageError, match="wrote no norms of class weights"):
        draw_weight_norms({"none": tmp_path})


def study(folder: Path, **rows: list[str]) -> Path:
    """A finished study of RIO's settings; the n-th row has AP n and APr 2n, in hundredths."""
    content = []
    for place, (label, changes) in enumerate(rows.items(), start=1):
        run = folder / "runs" / f"run{place}"
        run.mkdir(parents=True)
        recipe = load_recipe("rfs-cosine" if label == "rfs" else "rio", ["scale=tiny", *changes])
        (run / "recipe.yaml").write_text(dump_recipe(recipe))
        metric = {name: {"mean": n * place / 100, "sd": 0.01} for n, name in ((1, "AP"), (2, "APr"))}
        content.append({"label": label, "runs": {"0": f"elsewhere/runs/run{place}"}, "results": {"bbox": metric}})
    content.append({"label": "quoted", "quoted": {"AP": 0.2}, "reason": "not here"})
    (folder / "table.json").write_text(json.dumps({"baseline": "rio", "rows": content}))
    return folder


def memory(**options: object) -> list[str]:
    return ["stages.*.replay=" + json.dumps([{"type": "object_memory", **options}])]


def test_sweeps_of_figure_6(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study(
        tmp_path / "study",
        no_bank_4=memory(source="current", count=4),  # as many as the baseline, so that only a word differs
        rio=[],
        images_10=memory(max_images=10),
        images_40=memory(max_images=40),
        x_2=memory(count=2),
        no_bank_2=memory(source="current", count=2),
        rfs=[],
        both=memory(count=3, max_images=7),
    )
    drawn = draw_sweeps(folder)
    points: dict[str, list[tuple[str, str, str]]] = {}
    for plot, row, value, metric, mean, deviation in drawn.rows:
        assert deviation == "0.01"
        if metric == "APr":
            points.setdefault(str(plot), []).append((str(row), str(value), str(mean)))
    lines = [("rfs", "", "0.14"), ("both", "", "0.16")]
    assert points == {
        "count, source = current": [("no_bank_4", "4", "0.02"), ("no_bank_2", "2", "0.12"), *lines],
        "max_images": [("rio", "30", "0.04"), ("images_10", "10", "0.06"), ("images_40", "40", "0.08"), *lines],
        "count": [("rio", "4", "0.04"), ("x_2", "2", "0.1"), *lines],
    }
    axes = {plot.get_xlabel(): plot for plot in drawn.canvas.axes}
    line = axes["max_images"].lines[0]
    assert line.get_xdata().tolist() == [10, 30, 40] and line.get_ydata().tolist() == [3, 2, 4]
    assert main(["figure", "sweeps", str(folder), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "sweeps.svg").is_file()


def test_studies_without_a_sweep_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no table\.json"):
        draw_sweeps(tmp_path)
    with pytest.raises(UsageError, match="no row varies a number of the baseline 'rio'"):
        draw_sweeps(study(tmp_path / "a", rio=[], rfs=[]))
    with pytest.raises(UsageError, match="the baseline 'rio' has not been run"):
        draw_sweeps(study(tmp_path / "b", rfs=[]))
    gone = study(tmp_path / "c", rio=[], x=memory(count=2))
    (gone / "runs" / "run2" / "recipe.yaml").unlink()
    with pytest.raises(UsageError, match="run2 is not there any more"):
        draw_sweeps(gone)
