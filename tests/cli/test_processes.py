"""Child processes: in parallel, watched, and ended when something goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longtail.cli import processes
from longtail.cli.processes import Job, end_all, read_progress, run_jobs
from longtail.schema import LongtailError

CHILD = """
import json, os, pathlib, sys, time
kind, file = sys.argv[1], pathlib.Path(sys.argv[2])
file.write_text(json.dumps({"title": "train", "total": 2, "done": 1, "text": os.environ["OMP_NUM_THREADS"]}))
print("a line of", kind, os.getpid(), flush=True)
if kind == "fails":
    sys.exit("what went wrong")
time.sleep(60 if kind == "sleeps" else 0.3)
"""


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Replaces ``python -m longtail`` by a small script and collects the processes."""
    started: list[subprocess.Popen[bytes]] = []
    really = subprocess.Popen

    def start(words: list[str], **options: object) -> subprocess.Popen[bytes]:
        assert words[:3] == [sys.executable, "-m", "longtail"]
        child: subprocess.Popen[bytes] = really([sys.executable, "-c", CHILD, *words[3:]], **options)  # type: ignore[call-overload]
        started.append(child)
        return child

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    return started


def job(folder: Path, kind: str, name: str = "") -> Job:
    name = name or kind
    progress = folder / f"{name}.json"
    return Job(name, (kind, str(progress)), folder / "logs" / f"{name}.txt", progress)


def test_all_jobs_run_and_report(tmp_path: Path, children: list[subprocess.Popen[bytes]]) -> None:
    seen: dict[str, dict[str, object]] = {}
    ended: list[str] = []
    run_jobs(
        [job(tmp_path, "works", name) for name in "abc"],
        parallel=2,
        watch=lambda each, state: seen.update({each.name: state}),
        finished=lambda each: ended.append(each.name),
        interval=0.05,
    )
    assert sorted(ended) == ["a", "b", "c"]
    assert all(seen[name]["text"] == "1" for name in "abc"), "every child has one thread"
    assert "a line of works" in (tmp_path / "logs" / "a.txt").read_text()


def test_no_more_than_asked_for_at_a_time(tmp_path: Path, children: list[subprocess.Popen[bytes]]) -> None:
    most = 0

    def watch(each: Job, state: dict[str, object]) -> None:
        nonlocal most
        most = max(most, sum(child.poll() is None for child in children))

    run_jobs(
        [job(tmp_path, "works", name) for name in "abcd"],
        parallel=2,
        watch=watch,
        finished=lambda each: None,
        interval=0.02,
    )
    assert len(children) == 4
    assert most <= 2


def test_a_failing_child_ends_the_others_and_shows_its_log(
    tmp_path: Path, children: list[subprocess.Popen[bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LongtailError, match=r"the run fails failed with exit code 1; its log is .*fails\.txt"):
        run_jobs(
            [job(tmp_path, "sleeps"), job(tmp_path, "fails"), job(tmp_path, "works")],
            parallel=2,
            watch=lambda each, state: None,
            finished=lambda each: None,
            interval=0.05,
        )
    errors = capsys.readouterr().err
    assert "a line of fails" in errors
    assert "what went wrong" in errors
    assert len(children) == 2, "nothing is started after a failure"
    assert all(child.poll() is not None for child in children), "nothing is left behind"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_interruption_ends_all_children(
    tmp_path: Path, children: list[subprocess.Popen[bytes]], stop: type[BaseException]
) -> None:
    def watch(each: Job, state: dict[str, object]) -> None:
        if len(children) == 2 and state:
            raise stop

    with pytest.raises(stop):
        run_jobs(
            [job(tmp_path, "sleeps", "a"), job(tmp_path, "sleeps", "b")],
            parallel=2,
            watch=watch,
            finished=lambda each: None,
            interval=0.05,
        )
    assert len(children) == 2
    for child in children:
        assert child.poll() is not None
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)


def test_a_child_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    began = time.monotonic()
    end_all([child])
    child.stdout.close()
    assert child.returncode is not None
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_progress_that_is_not_there_yet(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "progress.json"
    if content is not None:
        file.write_text(content)
    assert read_progress(file) == {}
