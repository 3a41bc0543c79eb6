"""What is refused before processes join."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longtail.schema import UsageError
from longtail.training.setup import draw_apart, join_processes


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes on this machine, but 1 GPU; start one process per GPU"):
        join_processes("cuda")


def test_every_process_draws_for_itself_and_the_first_as_if_alone() -> None:
    drawn = []
    for rank in range(3):
        torch.manual_seed(7)
        torch.rand(5)  # what building the model draws
        before = torch.get_rng_state()
        fabric: Any = SimpleNamespace(global_rank=rank)
        draw_apart(fabric, 7)
        assert torch.equal(before, torch.get_rng_state()) == (rank == 0)
        drawn.append(torch.rand(4).tolist())
    assert len({tuple(own) for own in drawn}) == 3
