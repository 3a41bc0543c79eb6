"""First-in-first-out queues of rows, one per class, as rings of slots in common tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from longtail.replay.storage import HostCopy, Storage, bank_device, empty_bank, to_step

_SMALLEST = 64  # rows a bank that grows begins with


@dataclass(frozen=True)
class Arrivals:
    """Where the rows of one step go.

    Shapes:
        queue, position (N,), the queue of every row and its place in the ring; kept (N,) bool, rows that are stored:
        those of a queue, without the ones that later rows of the same step would overwrite; per_queue (Q,) rows that
        arrive; numbers (2,), rows stored and slots opened.
    """

    queue: Tensor
    position: Tensor
    kept: Tensor
    per_queue: Tensor
    numbers: Tensor


class RingQueues(nn.Module):
    """Q queues of at most ``capacity`` rows each; a row has one tensor per field. Full queues drop their oldest row.

    Everything lives where the bank lives (:mod:`longtail.replay.storage`), the bookkeeping too: with a bank on the
    device only a count of rows goes to the host, with a bank on the host only the labels. The state dict holds the
    filled slots alone, so that its length grows with them; ``load_state_dict`` takes any length. Rows that were loaded
    stay on the host until :meth:`place` says where they belong, and ``"auto"`` goes by what it decided before.

    A step calls :meth:`place`, then :meth:`arrivals`, brings ``numbers`` (together with whatever else it has to know)
    to the host, and calls :meth:`store`; rows are read with :meth:`slots_of` and :meth:`read`, before or after.

    Buffers (per rank):
        slots (Q, capacity) index of a place's row in the fields' tensors, -1 = never filled; pushed (Q,) rows that
        ever arrived; placement (), where ``"auto"`` has put the bank: 0 on a GPU, 1 on the host beside one, -1 not
        decided yet; one tensor (S, ...) per field, S >= slots opened.

    Args:
        queues: Q >= 1.
        capacity: >= 1.
        fields: type of the stored values by name; floating point values are rounded to it.
        storage: ``"device"``, ``"cpu"`` or ``"auto"``.
        lazy: whether memory grows with the rows instead of being taken at once.

    Shapes:
        queue numbers (N,) in 0..Q, Q = no queue; values (N, ...) with the same trailing shape in every step.

    Raises:
        ValueError: a count below 1.
    """

    slots: Tensor
    pushed: Tensor
    placement: Tensor

    def __init__(
        self,
        queues: int,
        capacity: int,
        fields: Mapping[str, torch.dtype],
        *,
        storage: Storage = "auto",
        lazy: bool = True,
    ) -> None:
        super().__init__()
        if queues < 1 or capacity < 1:
            raise ValueError(f"queues and capacity must be at least 1, got {queues} and {capacity}")
        self.capacity = capacity
        self.fields = dict(fields)
        self.storage = storage
        self.lazy = lazy
        self.per_rank = frozenset({"slots", "pushed", "placement", *fields})
        self.opened = 0
        self.host = False  # whether the bank has been put on the host, apart from the step
        self._placed = False
        self._loaded = False  # whether it holds rows of a state dict
        self._coming: tuple[Tensor, HostCopy] | None = None
        self.register_buffer("slots", torch.full((queues, capacity), -1))
        self.register_buffer("pushed", torch.zeros(queues, dtype=torch.long))
        self.register_buffer("placement", torch.tensor(-1))
        for name, dtype in self.fields.items():
            self.register_buffer(name, torch.empty(0, dtype=dtype))

    @property
    def fill(self) -> Tensor:
        """(Q,) rows that each queue holds."""
        return self.pushed.clamp(max=self.capacity)

    @property
    def size(self) -> int:
        """Bytes of the fields' memory."""
        return sum(self.get_buffer(name).nbytes for name in self.fields)

    def place(self, values: Mapping[str, Tensor]) -> torch.device:
        """Where the bank lives; decided in the first step.

        Args:
            values: rows (N, ...) as :meth:`store` gets them, N may be 0.
        """
        device = next(iter(values.values())).device
        if not self._placed:
            shapes = {name: value.shape[1:].numel() for name, value in values.items()}
            size = self.slots.numel() * sum(shapes[name] * dtype.itemsize for name, dtype in self.fields.items())
            before = int(self.placement) if self.storage == "auto" else -1
            where = bank_device(self.storage if before < 0 else ("device", "cpu")[before], size, device)
            self._placed = True
            self.to(where)
            self.host = where != device
            if self.storage == "auto" and device.type != "cpu":
                self.placement.fill_(self.host)
        return self.slots.device

    def arrivals(self, queue: Tensor) -> Arrivals:
        """Where rows go, of which row i joins the queue ``queue[i]`` (N,) in 0..Q; on the bank's device."""
        count = self.slots.shape[0]
        with_rest = queue.new_zeros(count + 1).index_add_(0, queue, torch.ones_like(queue))
        by_queue = queue.argsort(stable=True)
        start = with_rest.cumsum(0) - with_rest
        turn = torch.empty_like(queue)
        turn[by_queue] = torch.arange(queue.shape[0], device=queue.device) - start[queue[by_queue]]
        kept = (queue < count) & (turn >= with_rest[queue] - self.capacity)
        own = queue.clamp(max=count - 1)
        position = (self.pushed[own] + turn) % self.capacity
        opening = kept & (self.slots[own, position] < 0)
        numbers = torch.stack([kept.sum(), opening.sum()])
        return Arrivals(queue, position, kept, with_rest[:-1], numbers)

    def store(self, arrivals: Arrivals, values: Mapping[str, Tensor], *, stored: int, opened: int) -> None:
        """Stores rows.

        Args:
            arrivals: where they go.
            values: rows (N, ...) by field, on the step's device; they are copied without their graph.
            stored, opened: ``arrivals.numbers``, on the host.
        """
        self.pushed += arrivals.per_queue
        if not stored:
            return
        rows = arrivals.kept.logical_not().argsort(stable=True)[:stored]  # without asking how many there are
        queue, position = arrivals.queue[rows], arrivals.position[rows]
        slot = self.slots[queue, position]
        fresh = slot < 0
        slot = torch.where(fresh, self.opened + fresh.cumsum(0) - 1, slot)
        self.slots[queue, position] = slot
        self.opened += opened
        with torch.no_grad():
            device = next(iter(values.values())).device
            index = rows if rows.device == device else to_step(rows, device)
            chosen = {name: values[name].detach()[index].to(self.get_buffer(name).dtype) for name in self.fields}
            self.arrive()
            self._grow(chosen)
            if self.host:
                self._coming = (slot, HostCopy(chosen))
            else:
                self._write(slot, chosen)

    def newest(self, drawn: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """The newest rows of every queue, oldest of them first.

        Args:
            drawn: (Q,) rows of each queue, at most ``fill``.
            total: their sum.

        Returns:
            Queue and slot (total,), queue by queue.
        """
        queue, turn = self._turns(drawn, total)
        position = (self.pushed[queue] - drawn[queue] + turn) % self.capacity
        return queue, self.slots[queue, position]

    def random(self, drawn: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Rows of every queue drawn evenly without replacement, with the arguments of :meth:`newest`."""
        queue, turn = self._turns(drawn, total)
        order = torch.rand(self.slots.shape, device=self.slots.device)
        order = order.masked_fill(self.slots < 0, 2.0).argsort(1)
        return queue, self.slots[queue, order[queue, turn]]

    def read(self, name: str, slot: Tensor, device: torch.device) -> Tensor:
        """Rows (M, ...) of a field at slots (M,), on ``device``."""
        self.arrive()
        return to_step(self.get_buffer(name)[slot], device)

    def arrive(self) -> None:
        """Waits for rows that are still on their way to the host."""
        if self._coming is not None:
            slot, copy = self._coming
            self._coming = None
            self._write(slot, copy.wait())

    def _turns(self, drawn: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """Queue of every drawn row, and its number among those of its queue."""
        every = torch.arange(drawn.shape[0], device=drawn.device)
        queue = every.repeat_interleave(drawn, output_size=total)
        start = drawn.cumsum(0) - drawn
        return queue, torch.arange(total, device=drawn.device) - start[queue]

    def _write(self, slot: Tensor, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.get_buffer(name).index_copy_(0, slot, value)

    def _grow(self, values: Mapping[str, Tensor]) -> None:
        """Makes room for all opened slots."""
        most = self.slots.numel()
        for name, value in values.items():
            old = self.get_buffer(name)
            if old.shape[0] >= (self.opened if self.lazy else most):
                continue
            rows = min(most, max(self.opened, old.shape[0] * 3 // 2, _SMALLEST)) if self.lazy else most
            shape = (rows, *value.shape[1:])
            new = empty_bank(shape, old.dtype, self.slots.device, pinned=self.host)
            if old.shape[0]:
                new[: old.shape[0]] = old
            setattr(self, name, new)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves with its module, unless the bank has been put on the host, or was loaded and has no place yet."""
        stays = self.host or (self._loaded and not self._placed)
        return self if stays else super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        self.arrive()
        return self.__dict__.copy()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.arrive()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.fields:
            destination[prefix + name] = self.get_buffer(name)[: self.opened].detach()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        own = {name: state_dict[prefix + name] for name in self.fields if prefix + name in state_dict}
        if own:
            self.arrive()
            self.opened = min(value.shape[0] for value in own.values())
            self._loaded = True
        for name, value in own.items():
            setattr(self, name, value.detach().to(self.slots.device, self.get_buffer(name).dtype, copy=True))
        undecided = {prefix + "placement": torch.tensor(-1)} if own else {}  # states of older versions have none
        super()._load_from_state_dict(undecided | dict(state_dict), prefix, *arguments)


def queue_numbers(targeted: Tensor) -> Tensor:
    """(C + 1,) number of every label's queue, that of the other classes and of background the number of queues Q."""
    queues = int(targeted.sum())
    number = torch.full((targeted.shape[0] + 1,), queues, device=targeted.device)
    number[:-1][targeted] = torch.arange(queues, device=targeted.device)
    return number
