"""Sums and gathers over the processes of a distributed run: method state, and what losses are divided by. Without one,
nothing is exchanged."""

from __future__ import annotations

from collections.abc import Sequence

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


def from_first(tensor: Tensor, *, sync: bool = True) -> Tensor:
    """The first rank's ``tensor``, on every rank. Every rank must call it, with the same shape.

    Args:
        tensor: any shape and type; it is left as it is and no gradient flows through.
        sync: False = this rank's own.

    Returns:
        A tensor of the same shape, type and device; the input itself (detached) where there is nothing to send.
    """
    tensor = tensor.detach()
    if not sync or _ranks() == 1:
        return tensor
    sent = tensor.to(_transport(tensor), copy=True).contiguous()
    dist.broadcast(sent, src=0)
    return sent.to(tensor.device)


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
    if not sync or _ranks() == 1:
        return tensor
    padded, counts = _padded(tensor)
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(tensor.device)


def gather_on_first(tensor: Tensor) -> Tensor:
    """Rows of all ranks, in the order of the ranks, on the first rank; no rows on the others. As :func:`gather_rows`,
    for what only one rank needs and several could not hold."""
    tensor = tensor.detach()
    if _ranks() == 1:
        return tensor
    padded, counts = _padded(tensor)
    if max(counts) == 0:
        return tensor
    parts = [torch.empty_like(padded) for _ in counts] if dist.get_rank() == 0 else None
    dist.gather(padded, parts, dst=0)
    if parts is None:
        return tensor[:0]
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(tensor.device)


def shared_normalisers(counts: Sequence[Tensor | float], *, device: torch.device) -> list[Tensor | float]:
    """What sums of row losses are divided by, so that the mean of the ranks' gradients is the gradient of the mean over
    the rows of all ranks: the number of rows on all ranks, at least 1, divided by the number of ranks.

    Every rank must call it with as many counts; they travel in one message, and nothing waits for the device. In a
    single process the counts come back as they are, at least 1.

    Args:
        counts: rows of this rank, >= 0, below 2 ** 24 over all ranks; scalars.
        device: where the losses are.

    Returns:
        One divisor per count, > 0.
    """
    ranks = _ranks()
    if ranks == 1:
        return [at_least_one(count) for count in counts]
    own = [torch.as_tensor(count, dtype=torch.float32, device=device) for count in counts]
    total = sum_over_ranks(torch.stack(own))
    return list((total.clamp(min=1) / ranks).unbind())


def at_least_one(count: Tensor | float) -> Tensor | float:
    """A divisor for a sum that may be empty."""
    return count.clamp(min=1) if isinstance(count, Tensor) else float(max(count, 1))


def _padded(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """The rows where the process group can move them, as many as the longest rank has, and the rows of every rank."""
    local = tensor.to(_transport(tensor)).contiguous()
    length = torch.tensor([local.shape[0]], device=local.device)
    lengths = [torch.empty_like(length) for _ in range(_ranks())]
    dist.all_gather(lengths, length)
    counts: list[int] = torch.cat(lengths).tolist()
    padded = local.new_zeros((max(counts), *local.shape[1:]))
    padded[: local.shape[0]] = local
    return padded, counts


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
