"""SIGINT and SIGTERM: a step that has begun is finished and saved before the process ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

NOTICE = b"\nlongtail: finishing this step and saving; the same signal again quits at once\n"


class StopSignals:
    """Within the block, SIGINT and SIGTERM that arrive during :meth:`deferred` work wait for its end; at any other
    time, and the second time, they end the process at once (KeyboardInterrupt, or SystemExit with code 143).

    Outside the main thread nothing is changed, since signals arrive there. With several processes :meth:`requested` is
    agreed on, so that all of them stop after the same step.

    Args:
        speaks: whether to say on standard error that the signal has been heard.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        self.speaks = speaks
        self.number = 0
        self.deferring = False
        self.before: dict[int, Any] = {}
        self.group: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.arrived)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before.clear()

    def arrived(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.deferring and not self.number:
            self.number = number
            if self.speaks:
                os.write(2, NOTICE)
            return
        stop(number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Work that is finished before a first signal is obeyed."""
        before, self.deferring = self.deferring, True
        try:
            yield
        finally:
            self.deferring = before
        if self.number and not before:
            stop(self.number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Work within deferred work that a signal may cut off."""
        before, self.deferring = self.deferring, False
        try:
            if self.number:
                stop(self.number)
            yield
        finally:
            self.deferring = before

    def requested(self) -> int:
        """The signal that any process has received, or 0; every process gets the same answer.

        The processes talk through a group of their own on the CPU, so that no device is waited for.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return self.number
        if self.group is None:
            self.group = dist.new_group(backend="gloo")
        number = torch.tensor(self.number)
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self.group)
        return int(number)


def stop(number: int) -> None:
    """Ends the process as its signal asks: KeyboardInterrupt for SIGINT, exit code 143 for SIGTERM."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
