"""What the doctor finds, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longtail.cli import doctor
from longtail.cli.main import main


def test_this_installation_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["versions"]["torch"]
    assert found["devices"]["cpu"]["cores"] >= 1
    assert list(tmp_path.iterdir()) == [], "nothing is left of the write test"
    assert main(["doctor", "--out", str(tmp_path)]) == 0
    assert "everything necessary works" in capsys.readouterr().out


def test_a_missing_extra_names_its_pip_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "wandb", ("no_such_package_anywhere",))
    found = doctor.examine(tmp_path)
    assert found["missing_extras"]["wandb"] == 'pip install "longtail[wandb]"'
    assert 'missing: pip install "longtail[wandb]"' in doctor.text_of(found)
    assert found["problems"] == []


def test_a_missing_requirement_and_a_folder_that_cannot_be_written_are_problems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", (*doctor.REQUIRED, "no-such-package-anywhere"))
    assert main(["doctor", "--out", str(tmp_path / "nowhere")]) == 1
    out = capsys.readouterr().out
    assert "pip install no-such-package-anywhere" in out
    assert "problem: writing to" in out
