"""SMOTE (Chawla et al., 2002) on region features: points between neighbours of one weak class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from longtail.replay.base import FeatureReplay, Level, Pool, RegionRows, ReplayRows, check_targeted, virtual_rows
from longtail.replay.drawing import below, choose_among
from longtail.replay.ring import RingQueues, queue_numbers
from longtail.replay.storage import Storage, to_step


class InterpolatedFeatures(FeatureReplay):
    """Adds ``x + u (y - x)``: x a stored feature of a weak class, y one of its neighbours in the class, u ~ U(0, 1).

    The features come from queues like RIO's, filled after the draw. In every step ``count`` rows are made; their
    classes are drawn evenly among the targeted ones that have at least two stored features, whether the step's images
    show them or not. FASA's table 2 has this rival without any detail, so the number of rows and how classes are drawn
    are our choice.

    The rows enter the mean of the real ones, train no box and change no state of the loss. They carry no graph.

    Args:
        num_classes: foreground classes C, at least 1.
        targeted: (C,) bool, the classes to add to.
        count: rows per step, >= 0; 0 switches the part off.
        neighbours: k, nearest features that y is drawn from, >= 1; published 5.
        capacity: features that a class's queue holds, >= 2.
        storage, lazy: see :class:`~longtail.replay.ring.RingQueues`.

    State (per rank): the queues, ``bank``.

    Shapes:
        rows.features (N, D), rows.labels (N,) in 0..C. (count, D) come back, of weight 1, or 0 as long as no class has
        two features.

    Raises:
        ValueError: ``targeted`` is not a bool vector of length C, or a number is out of range.
    """

    level: ClassVar[Level] = "embedded"

    classes: Tensor
    queue_of: Tensor

    def __init__(
        self,
        num_classes: int,
        targeted: Tensor,
        *,
        count: int = 32,
        neighbours: int = 5,
        capacity: int = 60,
        storage: Storage = "auto",
        lazy: bool = True,
    ) -> None:
        super().__init__()
        check_targeted(targeted, num_classes)
        if count < 0 or neighbours < 1 or capacity < 2:
            raise ValueError(
                f"count is >= 0, neighbours >= 1 and capacity >= 2; got {count}, {neighbours} and {capacity}"
            )
        self.count = count
        self.neighbours = min(neighbours, capacity - 1)
        self.register_buffer("classes", targeted.nonzero().squeeze(1))
        self.register_buffer("queue_of", queue_numbers(targeted))
        self.bank: RingQueues | None = None
        if self.classes.shape[0]:
            fields = {"features": torch.float32}
            self.bank = RingQueues(self.classes.shape[0], capacity, fields, storage=storage, lazy=lazy)

    def step(
        self, rows: RegionRows, targets: Sequence[Mapping[str, Any]], pool: Pool, update_state: bool
    ) -> ReplayRows | None:
        """Draws, then stores; None before anything is stored, or if ``update_state`` is False."""
        if self.bank is None or self.count == 0 or not update_state:
            return None
        values = {"features": rows.features}
        arrivals = self.bank.arrivals(self.queue_of[rows.labels].to(self.bank.place(values)))
        extra = self._interpolated(rows, self.bank) if self.bank.opened else None
        stored, opened = arrivals.numbers.tolist()
        self.bank.store(arrivals, values, stored=stored, opened=opened)
        return extra

    def _interpolated(self, rows: RegionRows, bank: RingQueues) -> ReplayRows:
        device = rows.features.device
        fill = bank.fill
        queue, possible = choose_among(fill >= 2, self.count)
        own = fill[queue]
        first, pick = below(own), below((own - 1).clamp(max=self.neighbours))
        slots = bank.slots[queue]  # (M, capacity)
        stored = bank.read("features", slots.clamp(min=0).flatten(), device).view(*slots.shape, -1)
        first, pick, empty = to_step(first, device), to_step(pick, device), to_step(slots < 0, device)
        every = torch.arange(self.count, device=device)
        x = stored[every, first]
        distance = (stored - x.unsqueeze(1)).square().sum(2).masked_fill(empty, torch.inf)
        distance[every, first] = torch.inf
        nearest = distance.topk(self.neighbours, largest=False).indices
        y = stored[every, nearest[every, pick]]
        u = torch.rand(self.count, 1, device=device)
        return virtual_rows(
            rows,
            (x + u * (y - x)).to(rows.features.dtype),
            self.classes[to_step(queue, device)],
            to_step(possible, device).float().expand(self.count),
        )
