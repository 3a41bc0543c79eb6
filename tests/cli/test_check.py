"""The command: exit codes, text, JSON, and the mended file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import longtail
from longtail.cli.main import main
from longtail.data.check import check


def save(folder: Path, *boxes: list[float]) -> str:
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 50}],
        "annotations": [
            {"id": row, "image_id": 1, "category_id": 1, "bbox": box} for row, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", save(tmp_path, [1, 2, 3, 4])]) == 0
    assert "0 kinds of errors, 0 kinds of warnings" in capsys.readouterr().out
    warned = save(tmp_path, [1, 2, 3, 4], [1, 2, 3, 4])
    assert main(["check", warned]) == 0
    assert main(["check", warned, "--strict"]) == 3
    assert main(["check", save(tmp_path, [1, 2, -3, 4])]) == 3
    captured = capsys.readouterr()
    assert "bbox-negative" in captured.out
    assert captured.err == ""
    assert main(["check", str(tmp_path / "none.json")]) == 3
    assert "file-missing" in capsys.readouterr().out


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", save(tmp_path, [1, 2, 3, 4]), "--deep"]) == 2
    assert "--images" in capsys.readouterr().err
    assert main(["check", save(tmp_path, [1, 2, 3, 4]), "--fix", str(tmp_path / "a.json")]) == 2
    assert "exists" in capsys.readouterr().err


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, [1, 2, -3, 4], [1, 2, 3, 4])
    assert main(["check", path, "--images", str(tmp_path), "--no-masks", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert found["fix"] is None
    assert [(each["code"], each["count"], each["ids"]) for each in found["findings"]] == [
        ("picture-missing", 1, [1]),
        ("bbox-negative", 1, [1]),
    ]
    assert all(each["remedy"] and each["message"] and each["severity"] == "error" for each in found["findings"])


def test_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = save(tmp_path, [1, 2, -3, 4], [1, 2, 3, 4]), tmp_path / "out.json"
    assert main(["check", path, "--fix", str(out)]) == 3, "what was given has errors"
    assert "1 annotations kept, 1 dropped" in capsys.readouterr().out
    assert main(["check", str(out), "--strict"]) == 0
    assert main(["check", path, "--fix", str(tmp_path / "second.json"), "--json"]) == 3
    capsys_out = capsys.readouterr().out
    found = json.loads(capsys_out[capsys_out.index('{\n "path"') :])
    assert found["fix"]["done"] == [{"how": "drop", "code": "bbox-negative", "count": 1}]


def test_public_name() -> None:
    assert longtail.check is check
