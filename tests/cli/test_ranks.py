"""One of several processes: who speaks, and how it leaves. Real ones are in tests/training/test_ranks.py."""

from __future__ import annotations

import os

import pytest

from longtail.cli import ranks
from longtail.cli.main import main


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """This process is the second of two; the codes it leaves with."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    return codes


def test_commands_that_share_no_work_are_refused(left: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 2
    assert left == [2], "without waiting for the other process"
    error = capsys.readouterr().err
    assert error.startswith("longtail: process 1 of 2: `longtail recipes` runs in one process")
    assert "`longtail train` and `longtail eval`" in error


def test_only_the_first_to_fail_speaks(
    left: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranks, "first_to_fail", lambda: False)
    assert main(["recipes"]) == 2
    assert left == [2]
    assert capsys.readouterr().err == ""


def test_one_process_returns(capsys: pytest.CaptureFixture[str]) -> None:
    assert ranks.leave(3) == 3
    ranks.tell("why")
    assert capsys.readouterr().err == "longtail: why\n"
