"""Figures hold the numbers they show, and the same numbers give the same files."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.cli.main import main
from longtail.data import ClassStatistics
from longtail.evaluation.errors import ErrorAnalysis
from longtail.evaluation.removed_errors import KINDS, ErrorCurves
from longtail.losses import BucketedReweightingLoss
from longtail.reports.figures.box_losses import draw_box_losses
from longtail.reports.figures.canvas import Drawing, panels
from longtail.reports.figures.class_weights import draw_class_weights
from longtail.reports.figures.errors import draw_errors
from longtail.reports.figures.regions import draw_negative_overlap, draw_sampled_regions
from longtail.schema import UsageError


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_files_are_complete_and_repeatable(tmp_path: Path) -> None:
    first, second = (draw_box_losses().save(tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == ["box-losses.png", "box-losses.svg", "box-losses.csv"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert Image.open(first[0]).size == (1500, 540)


def test_box_losses(tmp_path: Path) -> None:
    rows = read(draw_box_losses().save(tmp_path)[2])
    at_half = {row["loss"]: row for row in rows if abs(float(row["difference"]) - 0.5) < 1e-9}
    assert float(at_half["smooth L1"]["value"]) == pytest.approx(0.125)
    assert float(at_half["smooth L1"]["gradient"]) == pytest.approx(0.5)
    assert float(at_half["L1"]["gradient"]) == pytest.approx(1.0)
    beyond = {row["loss"]: float(row["gradient"]) for row in rows if float(row["difference"]) > 1.5}
    assert beyond["balanced L1, alpha 0.5"] == pytest.approx(1.0)
    assert beyond["LGR-L1, alpha 0.5, gamma 1.5"] == pytest.approx(1.5)


def test_class_weights(tmp_path: Path) -> None:
    images = np.array([2, 500, 40])
    statistics = ClassStatistics(["a", "b", "c"], images, images, num_images=500, num_nonempty=500)
    loss = BucketedReweightingLoss(3, torch.as_tensor(images))
    rows = read(draw_class_weights(loss, statistics).save(tmp_path)[2])
    assert [row["class"] for row in rows] == ["b", "c", "a"]
    assert [row["bucket"] for row in rows] == ["9", "5", "0"]
    assert [float(row["weight"]) for row in rows] == pytest.approx(loss.class_weight[[1, 2, 0]].tolist())


def test_negative_overlap(tmp_path: Path) -> None:
    overlaps = {"random": np.array([0.0, 0.01, 0.07, 0.49]), "none": np.zeros(0)}
    rows = read(draw_negative_overlap(overlaps, negative_iou=0.5).save(tmp_path)[2])
    shares = {name: [float(row["share"]) for row in rows if row["sampler"] == name] for name in overlaps}
    assert shares["random"] == [0.5, 0.25, 0, 0, 0, 0, 0, 0, 0, 0.25]
    assert sum(shares["none"]) == 0


def test_sampled_regions(tmp_path: Path) -> None:
    box = np.array([[1.0, 2.0, 5.0, 6.0]])
    many = np.repeat(box, 9, axis=0)
    picture = Image.new("RGB", (20, 10))
    drawn = draw_sampled_regions(picture, box, {"a": many, "b": box}, {"a": box, "b": box}, most=4)
    rows = read(drawn.save(tmp_path)[2])
    assert [(row["sampler"], row["kind"]) for row in rows].count(("a", "negative")) == 4
    assert {row["x2"] for row in rows} == {"5.0"}


def test_errors(tmp_path: Path) -> None:
    curves = ErrorCurves({kind: np.full(101, 0.1 * n) for n, kind in enumerate(KINDS)}, classes=1, grouped=False)
    lost = dict.fromkeys(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FP", "FN"), 0.25)
    analysis = ErrorAnalysis(ap50=0.5, lost=lost, counts={}, confusions=[])
    rows = read(draw_errors({"one": (curves, analysis), "two": (curves, analysis)}).save(tmp_path)[2])
    assert {row["precision"] for row in rows if row["kind"] == "Loc"} == {"0.2"}
    assert [row["precision"] for row in rows if row["kind"] == "TIDE Cls"] == ["0.25", "0.25"]


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"longtail\[figures\]"):
        panels(1)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figure", "box-losses", "--out", str(tmp_path / "f")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "f" / f"box-losses.{kind}") for kind in ("png", "svg", "csv")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["box-losses", "run"], "needs no SOURCE"),
        (["class-weights"], "needs --train"),
        (["errors"], "at least one run"),
        (["negatives"], "needs one run"),
        (["regions", "a", "b"], "needs one run"),
        (["negatives", "a", "--pictures", "0"], "at least 1"),
    ],
)
def test_wrong_usage(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figure", *words]) == 2
    assert message in capsys.readouterr().err


def test_class_weights_of_annotations(smoke_set, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["figure", "class-weights", "--train", str(smoke_set.train), "--out", str(tmp_path)]
    assert main(words) == 0
    assert len(read(tmp_path / "class-weights.csv")) == 12
    assert main(["figure", "class-weights", "baseline", "--train", str(smoke_set.train)]) == 2
    assert "another loss than bcr" in capsys.readouterr().err


def test_an_own_drawing(tmp_path: Path) -> None:
    canvas, plots = panels(2, width=2, height=1)
    plots[0].plot([0, 1])
    files = Drawing("own", canvas, ("x",), [[0], [1]]).save(tmp_path / "deep" / "folder")
    assert files[2].read_text() == "x\n0\n1\n"
