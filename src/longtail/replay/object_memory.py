"""Object-centric sampling of RIO (Chang et al., Image-Level or Object-Level?, ICML 2021): regions of weak classes from
earlier steps at the input of the last layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.replay.base import FeatureReplay, Level, Pool, RegionRows, ReplayRows, check_targeted
from longtail.replay.ring import RingQueues, queue_numbers
from longtail.replay.storage import Storage, to_step

FIELDS = {"features": torch.float32, "proposals": torch.float32, "gt_boxes": torch.float32}


class ObjectMemory(FeatureReplay):
    """Adds regions of the targeted classes present in the batch (RIO, sections 3.1 and 3.2, "OCS").

    With ``source="bank"`` every targeted class has a queue of the last ``capacity`` of its regions. In every step

    1. the targeted classes among the labels of this step's regions are found, of whichever image, each once;
    2. each gives ``min(count, stored)`` rows of its queue, the newest ones or drawn at random without replacement;
    3. then all regions of targeted classes join their queues in their order; full queues drop the oldest.

    So no row of this step comes back in the same step, and the first visit of a class adds nothing.

    ``source="current"`` is the form without a bank (figure 6c; the released code does not have it, so this is our
    reading of the text): each targeted class present gives exactly ``count`` rows, its current ones in their order,
    from the start again when they run out.

    The features carry no graph, so the added rows train the last layers only, the classifier and the box regressor;
    they enter the same mean as the real rows, with weight 1. Their gt_index and image_index are -1, so that whatever
    is averaged per object or per image counts an object once.

    Args:
        num_classes: foreground classes C, at least 1.
        targeted: (C,) bool, the classes to add; see :func:`targeted_classes`.
        count: x, rows per targeted class present, >= 0; published 20. 0 switches the part off, storing included.
        capacity: v, rows that a queue holds, >= 1; published 60.
        draw: ``"newest"``, as released, or ``"random"``.
        source: ``"bank"`` or ``"current"``.
        storage, lazy: where the bank lives and whether it grows; see :class:`~longtail.replay.ring.RingQueues`. A full
            bank takes 4 (D + 8) bytes times ``capacity`` times the targeted classes.

    State (per rank): the queues, ``bank``.

    Shapes:
        rows.features (N, D), rows.labels (N,) in 0..C. (M, D) come back, ordered by class, M <= count * classes.

    Raises:
        ValueError: ``targeted`` is not a bool vector of length C, ``count`` is negative, ``capacity`` is below 1, or
            ``source`` or ``draw`` is unknown.
    """

    level: ClassVar[Level] = "embedded"

    targeted: Tensor
    classes: Tensor
    queue_of: Tensor

    def __init__(
        self,
        num_classes: int,
        targeted: Tensor,
        *,
        count: int = 20,
        capacity: int = 60,
        draw: Literal["newest", "random"] = "newest",
        source: Literal["bank", "current"] = "bank",
        storage: Storage = "auto",
        lazy: bool = True,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        check_targeted(targeted, num_classes)
        if count < 0:
            raise ValueError(f"count must be >= 0, got {count}")
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        if source not in ("bank", "current"):
            raise ValueError(f'source must be "bank" or "current", got {source!r}')
        if draw not in ("newest", "random"):
            raise ValueError(f'draw must be "newest" or "random", got {draw!r}')
        self.num_classes = num_classes
        self.count = count
        self.capacity = capacity
        self.draw = draw
        self.source = source
        self.register_buffer("targeted", targeted.clone())
        self.register_buffer("classes", targeted.nonzero().squeeze(1))
        self.register_buffer("queue_of", queue_numbers(targeted))
        with_bank = source == "bank" and self.classes.shape[0] > 0
        self.bank = (
            RingQueues(self.classes.shape[0], capacity, FIELDS, storage=storage, lazy=lazy) if with_bank else None
        )

    def step(
        self, rows: RegionRows, targets: Sequence[Mapping[str, Any]], pool: Pool, update_state: bool
    ) -> ReplayRows | None:
        """The added rows, or None if there are none or ``update_state`` is False."""
        if self.count == 0 or not update_state or not self.classes.shape[0]:
            return None
        return self._repeat(rows) if self.bank is None else self._replay(rows, self.bank)

    def _replay(self, rows: RegionRows, bank: RingQueues) -> ReplayRows | None:
        """Draws, then stores. Three numbers go to the host, together."""
        device = rows.labels.device
        values = {name: getattr(rows, name) for name in FIELDS}
        arrivals = bank.arrivals(self.queue_of[rows.labels].to(bank.place(values)))
        drawn = torch.where(arrivals.per_queue > 0, bank.fill.clamp(max=self.count), 0)
        total, stored, opened = torch.cat([drawn.sum()[None], arrivals.numbers]).tolist()
        extra = None
        if total:
            queue, slot = bank.newest(drawn, total) if self.draw == "newest" else bank.random(drawn, total)
            nowhere = torch.full((total,), -1, device=device)
            extra = ReplayRows(
                features=bank.read("features", slot, device).to(rows.features.dtype),
                labels=self.classes[to_step(queue, device)],
                proposals=bank.read("proposals", slot, device).to(rows.proposals.dtype),
                gt_boxes=bank.read("gt_boxes", slot, device).to(rows.gt_boxes.dtype),
                gt_index=nowhere,
                image_index=nowhere,
                weight=torch.ones(total, device=device),
            )
        bank.store(arrivals, values, stored=stored, opened=opened)
        return extra

    def _repeat(self, rows: RegionRows) -> ReplayRows | None:
        """This step's own rows again."""
        repeated = self._repeated(rows.labels)
        if repeated.shape[0] == 0:
            return None
        nowhere = torch.full_like(repeated, -1)
        return ReplayRows(
            features=rows.features.detach()[repeated],
            labels=rows.labels[repeated],
            proposals=rows.proposals[repeated],
            gt_boxes=rows.gt_boxes[repeated],
            gt_index=nowhere,
            image_index=nowhere,
            weight=torch.ones(repeated.shape, device=repeated.device),
        )

    def _repeated(self, labels: Tensor) -> Tensor:
        """Indices (M,) of the rows to repeat. The number of classes present goes to the host once."""
        per_class = labels.new_zeros(self.num_classes + 1).index_add_(0, labels, torch.ones_like(labels))
        by_class = labels.argsort(stable=True)  # rows of class 0, of class 1, ..., each in their order
        start = per_class.cumsum(0) - per_class
        present = ((per_class[:-1] > 0) & self.targeted).nonzero().squeeze(1)
        turn = torch.arange(self.count, device=labels.device)
        cycled = turn % per_class[present].unsqueeze(1)  # (K, count)
        return by_class[(start[present].unsqueeze(1) + cycled).flatten()]


def targeted_classes(image_counts: Tensor | NDArray[np.int64] | Sequence[int], threshold: int = 30) -> Tensor:
    """Classes that RIO replays: those with at most ``threshold`` training images.

    Args:
        image_counts: (C,) training images per class, >= 0.
        threshold: published 30.

    Returns:
        (C,) bool.
    """
    return torch.as_tensor(image_counts) <= threshold
