"""Training runs as processes of their own: started, watched, and never left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from longtail.cli.command import note
from longtail.schema.errors import LongtailError

LAST_LINES = 15
PATIENCE = 5.0  # seconds a child has to end by itself; checkpoints are whole or absent, so killing is safe
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """One child process.

    Attributes:
        name: for messages.
        words: arguments of ``python -m longtail``.
        log: receives everything the child prints.
        progress: the file in which the child keeps its progress.
        after: names of jobs that must have ended well before.
    """

    name: str
    words: tuple[str, ...]
    log: Path
    progress: Path
    after: tuple[str, ...] = ()


def run_jobs(
    jobs: Sequence[Job],
    *,
    parallel: int,
    watch: Callable[[Job, dict[str, object]], None],
    finished: Callable[[Job], None],
    before: Callable[[Job], None] = lambda job: None,
    failed: Callable[[Job, int], None] | None = None,
    interval: float = 0.5,
) -> None:
    """Runs all jobs, at most ``parallel`` at a time, one thread each.

    Args:
        jobs: in the order in which they start.
        parallel: processes at a time, >= 1.
        watch: called with what a child last wrote to its progress file.
        finished: called when a child has ended well.
        before: called just before a job starts.
        failed: called when a child has failed, with its exit code, in place of the error; jobs that come after it are
            left out, the others go on.
        interval: seconds between two looks.

    Raises:
        LongtailError: a child failed; the end of its log has been shown, the other children have been ended.
    """
    waiting = list(jobs)
    left = {job.name for job in jobs}  # not ended well yet
    running: list[tuple[Job, subprocess.Popen[bytes]]] = []
    try:
        while waiting or running:
            while len(running) < parallel and (job := next_job(waiting, left)) is not None:
                waiting.remove(job)
                before(job)
                running.append((job, start(job)))
            if not running:
                break  # what waits comes after a job that failed
            time.sleep(interval)
            for job, child in list(running):
                watch(job, read_progress(job.progress))
                code = child.poll()
                if code is None:
                    continue
                running.remove((job, child))
                if code == 0:
                    left.discard(job.name)
                    finished(job)
                elif failed is not None:
                    failed(job, code)
                else:
                    show_end(job)
                    raise LongtailError(f"the run {job.name} failed with exit code {code}; its log is {job.log}")
    finally:
        end_all([child for _, child in running])


def next_job(waiting: Sequence[Job], left: set[str]) -> Job | None:
    """The first job that waits for nothing in ``left``."""
    return next((job for job in waiting if not left.intersection(job.after)), None)


def start(job: Job) -> subprocess.Popen[bytes]:
    """Starts one child with one thread."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    job.progress.unlink(missing_ok=True)
    with job.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "longtail", *job.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, "1"),
        )


def read_progress(path: Path) -> dict[str, object]:
    """What the child wrote last; empty before its first word."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def show_end(job: Job) -> None:
    """The last lines of a child's log, on standard error."""
    lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
    note(f"--- end of {job.log}")
    for line in lines[-LAST_LINES:]:
        note(line)
    note("---")


def end_all(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks all children to end, and ends those that do not."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + PATIENCE
    for child in children:
        try:
            child.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
