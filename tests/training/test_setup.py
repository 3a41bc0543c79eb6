"""What is refused before processes join."""

from __future__ import annotations

import pytest
import torch

from longtail.schema import UsageError
from longtail.training.setup import join_processes


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes on this machine, but 1 GPU; start one process per GPU"):
        join_processes("cuda")
