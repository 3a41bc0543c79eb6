"""Sums and gathers of method state over the processes of a distributed run. Without one, both do nothing."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(tensor: Tensor, *, sync: bool = True) -> Tensor:
    """Sum of ``tensor`` over all ranks, equal on every rank. Every rank must call it, with the same shape.

    Args:
        tensor: any shape, a number type; it is left as it is and no gradient flows through.
        sync: False = this rank's own value, as released code that keeps its state per process does.

    Returns:
        A tensor of the same shape, type and device; the input itself (detached) where there is nothing to sum.
    """
    tensor = tensor.detach()
    if not sync or _ranks() == 1:
        return tensor
    total = tensor.to(_transport(tensor), copy=True).contiguous()
    dist.all_reduce(total)
    return total.to(tensor.device)


def gather_rows(tensor: Tensor, *, sync: bool = True) -> Tensor:
    """Rows of all ranks, in the order of the ranks. Every rank must call it, but may bring any number of rows.

    The lengths go to the host once, since they decide the shape of the result.

    Args:
        tensor: (n, ...), n differs between ranks and may be 0; no gradient flows through.
        sync: False = this rank's own rows.

    Returns:
        (sum of n, ...), equal on every rank, of the same type and device; the input itself (detached) where there is
        nothing to gather.
    """
    tensor = tensor.detach()
    ranks = _ranks()
    if not sync or ranks == 1:
        return tensor
    local = tensor.to(_transport(tensor)).contiguous()
    length = torch.tensor([local.shape[0]], device=local.device)
    lengths = [torch.empty_like(length) for _ in range(ranks)]
    dist.all_gather(lengths, length)
    counts: list[int] = torch.cat(lengths).tolist()
    padded = local.new_zeros((max(counts), *local.shape[1:]))
    padded[: local.shape[0]] = local
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(tensor.device)


def _ranks() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _transport(tensor: Tensor) -> torch.device:
    """Device on which the process group moves ``tensor``: gloo works on the host, NCCL on the current GPU."""
    backend = str(dist.get_backend())
    if backend == "gloo":
        return torch.device("cpu")
    if backend == "nccl" and not tensor.is_cuda:
        return torch.device("cuda", torch.cuda.current_device())
    return tensor.device
