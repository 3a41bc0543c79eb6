"""How a long run reports itself: a bar on a terminal, plain lines elsewhere, or a small file for a parent process."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Protocol, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """What training and evaluation call while they work."""

    def start(self, title: str, total: int, done: int = 0) -> None:
        """A task of ``total`` units begins, ``done`` of them finished before."""

    def advance(self, amount: int, text: str = "") -> None:
        """``amount`` more units are finished; ``text`` says how it goes."""

    def message(self, text: str) -> None:
        """A line worth keeping."""

    def finish(self) -> None:
        """The task is over."""


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Silent:
    """Says nothing."""

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Nothing."""

    def advance(self, amount: int, text: str = "") -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class PlainProgress:
    """A line every ``interval`` seconds at most, with the time left."""

    def __init__(self, stream: TextIO | None = None, interval: float = 5.0) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.interval = interval
        self.title, self.total, self.done, self.first = "", 0, 0, 0
        self.began = self.spoke = time.monotonic()

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Begins a task."""
        self.title, self.total, self.done, self.first = title, total, done, done
        self.began = self.spoke = time.monotonic()

    def advance(self, amount: int, text: str = "") -> None:
        """Counts, and speaks when the interval is over or the task is."""
        self.done += amount
        now = time.monotonic()
        if now - self.spoke < self.interval and self.done < self.total:
            return
        self.spoke = now
        fresh = self.done - self.first
        left = (now - self.began) / fresh * (self.total - self.done) if fresh else 0.0
        self.message(f"{self.title}: {self.done}/{self.total}, {clock(left)} left{', ' + text if text else ''}")

    def message(self, text: str) -> None:
        """Prints the line."""
        print(text, file=self.stream, flush=True)

    def finish(self) -> None:
        """Nothing to tidy up."""


class BarProgress:
    """A bar on a terminal."""

    def __init__(self) -> None:
        self.bar: RichProgress | None = None
        self.task = TaskID(0)

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Begins a task, ending the one before."""
        self.finish()
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=None,
            transient=False,
        )
        self.bar.start()
        self.task = self.bar.add_task(title, total=total, completed=done, text="")

    def advance(self, amount: int, text: str = "") -> None:
        """Moves the bar."""
        if self.bar is not None:
            self.bar.update(self.task, advance=amount, text=text)

    def message(self, text: str) -> None:
        """Prints the line above the bar."""
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Leaves the bar as it stands."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class FileProgress:
    """Keeps a small JSON file up to date: ``{"title", "total", "done", "text"}``."""

    def __init__(self, path: Path, interval: float = 0.5) -> None:
        self.path = path
        self.interval = interval
        self.state: dict[str, object] = {"title": "", "total": 0, "done": 0, "text": ""}
        self.done = 0
        self.wrote = 0.0

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Begins a task."""
        self.done = done
        self.state = {"title": title, "total": total, "done": done, "text": ""}
        self._write()

    def advance(self, amount: int, text: str = "") -> None:
        """Counts; writes at most every ``interval`` seconds."""
        self.done += amount
        self.state |= {"done": self.done, "text": text}
        if time.monotonic() - self.wrote >= self.interval:
            self._write()

    def message(self, text: str) -> None:
        """Shows the line as the current text."""
        self.state["text"] = text
        self._write()

    def finish(self) -> None:
        """Writes the last state."""
        self._write()

    def _write(self) -> None:
        self.wrote = time.monotonic()
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.state), encoding="utf-8")
        os.replace(temporary, self.path)


def make_progress(*, quiet: bool = False) -> Progress:
    """A bar where standard error is a terminal, plain lines otherwise, nothing when ``quiet``."""
    if quiet:
        return Silent()
    return BarProgress() if sys.stderr.isatty() else PlainProgress()
