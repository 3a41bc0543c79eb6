"""FASA's figure 3 from the table of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longtail.cli.main import main
from longtail.reports.figures.probabilities import draw_probabilities
from longtail.training.class_log import ClassLog, ClassRow


def test_groups_and_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = ClassLog(tmp_path / "class_losses.csv")
    log.add("before", 1, 4, [ClassRow("a", "f", 1, 0.1, 0.9), ClassRow("b", "r", 1, 0.1, 0.9)])
    for step in (1, 2, 3):
        classes = [("a", "f", 0.01), ("b", "r", 0.2), ("c", "r", 0.4)]
        log.add("last", step, 4 * step, [ClassRow(name, group, 3, 0.5, p * step) for name, group, p in classes])
    drawn = draw_probabilities(tmp_path)
    left, right = drawn.canvas.axes
    assert {line.get_label(): np.round(line.get_ydata(), 6).tolist() for line in left.lines} == {
        "rare": [0.3, 0.6, 0.9],
        "frequent": [0.01, 0.02, 0.03],
    }
    assert left.lines[0].get_xdata().tolist() == [4, 8, 12]
    assert [np.round(line.get_ydata(), 6).tolist() for line in right.lines] == [[1, 2, 3]] * 3
    assert drawn.rows[1] == ["4", "b", "r", "0.2"]
    assert len(drawn.rows) == 9
    assert main(["figure", "probabilities", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "probabilities.png").is_file()


def test_other_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figure", "probabilities", str(tmp_path)]) == 2
    assert "has drawn no virtual features" in capsys.readouterr().err
    assert main(["figure", "probabilities"]) == 2
    assert "needs one run" in capsys.readouterr().err
