"""The HTML report, from files as a run leaves them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from longtail.data.statistics import ClassStatistics
from longtail.reports.html import loss_curve, write_comparison_report, write_run_report

EVIL = "<script>alert(1)</script> & co"


def content(ap: float, rare: float | None, kind: str = "bbox") -> dict[str, Any]:
    """An evaluation result of two classes as a dictionary."""
    common = {"train_instances": 5, "detections": 9, "ap50": None, "ar": None, "best_f1": None, "best_score": None}
    return {
        "protocol": "lvis",
        "iou_type": kind,
        "metrics": {"AP": ap, "APr": rare, "APc": None, "APf": ap},
        "classes_behind": {"AP": {"classes": 2, "with_objects": 2}},
        "per_class": [
            {"id": 4, "name": EVIL, "group": "r", "train_images": 2, "objects": 3, "ap": rare, **common},
            {"id": 9, "name": "plain", "group": "f", "train_images": 200, "objects": 7, "ap": ap, **common},
        ],
        "notes": ["a note"],
        "settings": {"protocol": "lvis", "caps": {"per_image": 300}, "versions": {"hotcoco": "1"}, "dropped": {}},
    }


def make_run(folder: Path, results: dict[str, dict[str, Any]]) -> Path:
    """A run directory with the files the report reads."""
    (folder / "eval" / "val").mkdir(parents=True)
    (folder / "checkpoints" / "last").mkdir(parents=True)
    (folder / "eval" / "val" / "metrics.json").write_text(json.dumps(results))
    (folder / "recipe.yaml").write_text("name: rfs\n")
    (folder / "data.json").write_text(
        json.dumps({"paths": {"train": "/some/where/t.json", "val": None}, "train": {"sha256": "abc"}})
    )
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2", "timm": None}}))
    rows = ["stage,step,images,metric,value"]
    for stage in ("one", "two"):
        rows += [f"{stage},{step},{step * 4},loss,{10 - step}" for step in range(1, 4)]
        rows += [f"{stage},3,12,lr,0.1"]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    known = ClassStatistics(
        names=[EVIL, "plain"],
        image_counts=np.array([2, 200]),
        instance_counts=np.array([2, 400]),
        num_images=300,
        num_nonempty=290,
    )
    (folder / "checkpoints" / "last" / "model.json").write_text(json.dumps({"statistics": known.to_dict()}))
    return folder


class Cells(HTMLParser):
    """Collects the text of all table cells, and refuses everything that loads or runs something."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "img")
        assert not {"src", "href", "onload", "onclick"} & {name for name, _ in attrs}
        self.inside = tag in ("td", "th")
        if self.inside:
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def cells_of(path: Path) -> list[str]:
    """The text of all cells of a self-contained page."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import", text), "the page refers to nothing outside"
    parser = Cells()
    parser.feed(text)
    return parser.cells


def test_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a run", {"bbox": content(0.3, 0.1), "segm": content(0.2, None, "segm")})
    path = write_run_report(run)
    assert path == run / "report.html"
    cells = cells_of(path)
    text = path.read_text(encoding="utf-8")
    assert EVIL in cells, "names are shown as they are"
    assert "<script" not in text
    assert [
        cell
        for cell in ("30.0", "10.0", "20.0", "2/2", "per_image 300", "hotcoco 1", "t.json", "abc", "not installed")
        if cell not in cells
    ] == []
    assert "a note" in text
    assert text.count("<svg") == 2
    assert "/some/where" not in text
    assert "1 rare, 1 frequent (rare up to 10, frequent above 100); 300 images" in text
    masks = cells.index("AP a run (masks)")
    assert cells[masks + 1 : masks + 11] == [
        "plain", "frequent", "200", "7", "20.0",
        EVIL, "rare", "2", "3", "-",
    ]  # fmt: skip


def test_a_run_without_evaluation(tmp_path: Path) -> None:
    text = write_run_report(tmp_path).read_text(encoding="utf-8")
    assert "Nothing was evaluated" in text


def test_a_comparison(tmp_path: Path) -> None:
    runs = {
        name: {
            seed: make_run(tmp_path / f"{name}{seed}", {"bbox": content(0.3, rare + 0.01 * seed)}) for seed in range(3)
        }
        for name, rare in (("baseline", 0.1), ("rfs", 0.2))
    }
    path = write_comparison_report(tmp_path, runs, remarks=["a remark & more"], commands=["longtail train <x>"])
    cells = cells_of(path)
    text = path.read_text(encoding="utf-8")
    assert "11.0 ± 1.0" in cells
    assert "rfs - baseline" in cells
    assert "gain" in cells
    assert "a remark &amp; more" in text
    assert "longtail train &lt;x&gt;" in text
    place = cells.index("AP rfs (boxes)")
    assert cells[place + 7 : place + 13] == [EVIL, "rare", "2", "3", "11.0", "21.0"], "the mean over seeds of each"


def test_stages_follow_one_another_in_the_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {})
    assert loss_curve(run) == [(4, 9), (8, 8), (12, 7), (16, 9), (20, 8), (24, 7)]
    assert loss_curve(tmp_path) == []
