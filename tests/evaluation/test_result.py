"""What is written and shown of a result."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtail.evaluation import DetectionTable, EvaluationResult, coco, evaluate, format_table, lvis


@pytest.fixture
def result(load: Any) -> EvaluationResult:
    """Two classes of one name, one of them without an object, and a frequent one that is found."""
    dataset = {
        "images": [{"id": 1, "height": 90, "width": 90, "file_name": "a.jpg"}],
        "categories": [{"id": 3, "name": "ring"}, {"id": 8, "name": "ring"}, {"id": 9, "name": "Tür, groß"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "area": 81},
            {"id": 2, "image_id": 1, "category_id": 9, "bbox": [0, 0, 9, 9], "area": 81},
        ],
    }
    truth = load(dataset)
    found = DetectionTable(np.array([0]), np.array([0]), np.array([0.5]), np.array([[0, 0, 9, 9.0]]))
    return coco(found, truth, groups=["r", "f", "f"])


def test_classes_are_told_apart_by_id(result: EvaluationResult) -> None:
    assert list(result.per_class) == [3, 8, 9]
    assert result.per_class[3].ap == pytest.approx(1)
    assert result.per_class[8].ap is None
    assert result.per_class[9].ap == 0
    assert result.metrics["AP"] == pytest.approx(0.5)
    assert result.headline == "AP"


def test_files_are_complete_and_read_back_equal(result: EvaluationResult, tmp_path: Path) -> None:
    result.write(tmp_path / "eval")
    result.write(tmp_path / "eval")
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["metrics.json", "per_class.csv"]
    content = json.loads((tmp_path / "eval" / "metrics.json").read_text(encoding="utf-8"))
    assert content == result.to_dict()
    assert EvaluationResult.from_dict(content) == result
    assert content["metrics"]["APl"] is None
    assert content["classes_behind"]["APf"] == {"classes": 2, "with_objects": 1}
    assert content["settings"]["caps"] == {"per_class_and_image": 100}
    with (tmp_path / "eval" / "per_class.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["3", "8", "9"]
    assert rows[2]["name"] == "Tür, groß"
    assert (rows[0]["group"], rows[0]["objects"], rows[0]["detections"]) == ("r", "1", "1")
    assert float(rows[0]["ap"]) == pytest.approx(1)
    assert rows[1]["ap"] == ""


def test_table_shows_the_classes_behind_every_number(result: EvaluationResult) -> None:
    lines = format_table({"mine": result}).splitlines()
    header, values, classes = (line.split() for line in lines[:3])
    assert header[:3] == ["protocol", "type", "AP"]
    assert values[:4] == ["mine", "coco", "bbox", "50.0"]
    assert classes[:2] == ["classes", "2/3"]
    assert values[3 + header.index("APl") - 2] == "-"


def test_results_do_not_depend_on_the_number_of_runs(load: Any, random_problem: Any) -> None:
    dataset, results = random_problem(21, iou_type="bbox")
    truth = load(dataset)
    found = DetectionTable.from_coco_results(results, truth)
    assert lvis(found, truth).to_dict() == lvis(found, truth).to_dict()


def test_every_protocol_gives_valid_json(load: Any, random_problem: Any) -> None:
    dataset, results = random_problem(22, iou_type="bbox")
    for number, category in enumerate(dataset["categories"]):
        category["name"] = f"class {number}"
    truth = load(dataset)
    found = DetectionTable.from_coco_results(results, truth)
    for protocol in ("auto", "lvis", "coco", "voc", "fixed", "pool", "bins"):
        result = evaluate(found, truth, protocol=protocol, training=truth.statistics())
        json.dumps(result.to_dict(), allow_nan=False)
        assert len(result.per_class) == truth.num_classes
        assert result.metrics.keys() == result.classes_behind.keys()
        assert result.settings["source"].endswith("truth.json")
