"""Where a bank of features lives: on the device of the step, or in pinned memory of the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Storage = Literal["auto", "device", "cpu"]
SHARE_OF_FREE_MEMORY = 0.1  # that "auto" takes of a GPU


def bank_device(storage: Storage, size: int, device: torch.device) -> torch.device:
    """Device of a bank.

    Args:
        storage: ``"device"`` = that of the step, ``"cpu"`` = the host, ``"auto"`` = the device if the bank fits into
            10 % of its free memory.
        size: bytes of the full bank, > 0.
        device: that of the step.
    """
    host = torch.device("cpu")
    if storage == "cpu" or device.type == "cpu":
        return host
    if storage == "device" or device.type != "cuda":
        return device
    return device if size <= SHARE_OF_FREE_MEMORY * free_memory(device) else host


def free_memory(device: torch.device) -> float:
    """Bytes of a GPU that this process could still take, with what its allocator holds in reserve."""
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + reserve)


def empty_bank(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, pinned: bool) -> Tensor:
    """Memory of a bank; ``pinned`` = on the host, for copies to a GPU that nothing waits for."""
    return torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)


def to_step(values: Tensor, device: torch.device) -> Tensor:
    """Rows of a bank where the step needs them. From pinned memory the copy is asynchronous."""
    if device.type == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class HostCopy:
    """Rows on their way from a GPU to the host. They are there once :meth:`wait` has returned, one step later."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = {
            name: torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
            for name, value in values.items()
        }
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record(torch.cuda.current_stream(next(iter(values.values())).device))

    def wait(self) -> dict[str, Tensor]:
        """The rows, on the host."""
        self._done.synchronize()
        return self._values
