"""Memory-augmented feature sampling of LOCE (Feng et al., Exploring Classification Equilibrium in Long-Tailed Object
Detection, ICCV 2021, section 3.2): pooled features around earlier objects, more of them for classes with low scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from longtail.losses.mean_score import MeanScore
from longtail.replay.base import FeatureReplay, Level, Pool, RegionRows, ReplayRows
from longtail.replay.jittered_boxes import PATTERNS, jitter_boxes
from longtail.replay.ring import Arrivals, RingQueues
from longtail.replay.storage import Storage, to_step

FLOOR = 1e-7  # added to a score before it is inverted
SMALLEST_SIDE = 0.1  # of the object's: a box that lost more at the picture's edge has no use
_SALT = 0x10CE


class FeatureMemory(FeatureReplay):
    """Adds pooled features around objects of earlier steps, drawn by the scores of their classes.

    In every step

    1. :func:`~longtail.replay.jitter_boxes` makes 16 boxes around every object of the process's pictures, and their
       pooled features join the queue of their class, of every class the first ``capacity`` rows at most; full queues
       drop their oldest rows;
    2. ``classes`` classes are drawn with probability in proportion to ``1 / (s_c + 1e-7)``, with replacement, with the
       scores before this step; those with an empty queue give nothing;
    3. ``count`` slots of each are drawn evenly, with replacement; what was stored in this very step may come back.

    The features carry no graph; with a frozen region head the rows train the classifier and the box regressor only.
    They enter the same mean as the real rows, with weight 1. Boxes are kept instead of encoded targets, so every box
    loss works. Draws come from the first target's ``draw_seed``, so they differ between processes; without it from
    PyTorch's own generator.

    Args:
        num_classes: foreground classes C, at least 1.
        guide: the running scores, or training objects per class (C,), >= 0: then probabilities are in proportion to
            ``1 / n_c``, the paper's rival "P(y)".
        classes: k, draws of a class per step, >= 0; published 8.
        count: m, rows per drawn class, >= 0; published 4. 0 of either switches the part off, storing included.
        capacity: rows per queue, >= 1; published 80, the boxes of 5 objects.
        arrivals: which rows are stored if a step has more than ``capacity`` of a class: the ``"first"``, as released,
            or those of ``"random"`` objects, as the paper says.
        half: whether features are kept in float16.
        storage, lazy: where the bank lives and whether it grows; see :class:`~longtail.replay.ring.RingQueues`. A
            full bank takes ``4 K h w + 32`` bytes times C times ``capacity``, 4.8 GB on LVIS v1.

    State (per rank): the queues, ``bank``. The scores are the guide's.

    Shapes:
        rows.features (N, K, h, w). targets: per image boxes (G, 4) in pixels of the batch, labels (G,), and
        image_size (height, width) without padding, where boxes are cut off if it is there. (M, K, h, w) come back,
        M <= ``classes * count``.

    Raises:
        ValueError: a value out of range, or a guide for another number of classes.
    """

    level: ClassVar[Level] = "pooled"

    class_counts: Tensor | None

    def __init__(
        self,
        num_classes: int,
        guide: MeanScore | Tensor,
        *,
        classes: int = 8,
        count: int = 4,
        capacity: int = 80,
        arrivals: Literal["first", "random"] = "first",
        half: bool = False,
        storage: Storage = "auto",
        lazy: bool = True,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        of_guide = guide.num_classes if isinstance(guide, MeanScore) else torch.as_tensor(guide).shape[0]
        if of_guide != num_classes:
            raise ValueError(f"the guide is for {of_guide} classes, the memory for {num_classes}")
        if classes < 0 or count < 0 or capacity < 1:
            raise ValueError(f"classes and count are >= 0 and capacity >= 1, got {classes}, {count} and {capacity}")
        if arrivals not in ("first", "random"):
            raise ValueError(f'arrivals must be "first" or "random", got {arrivals!r}')
        self.num_classes = num_classes
        self.guide = guide if isinstance(guide, MeanScore) else None
        self.register_buffer("class_counts", None if isinstance(guide, MeanScore) else torch.as_tensor(guide).double())
        self.classes = classes
        self.count = count
        self.capacity = capacity
        self.arrivals = arrivals
        fields = {
            "features": torch.float16 if half else torch.float32,
            "proposals": torch.float32,
            "gt_boxes": torch.float32,
        }
        self.bank = RingQueues(num_classes, capacity, fields, storage=storage, lazy=lazy)

    @property
    def wanted(self) -> Tensor:
        """(C,) float64, how often every class is drawn, up to a factor."""
        if self.guide is not None:
            return 1 / (self.guide.value[:-1].double() + FLOOR)
        assert self.class_counts is not None
        return 1 / self.class_counts.clamp(min=1)

    @torch.no_grad()
    def step(
        self, rows: RegionRows, targets: Sequence[Mapping[str, Any]], pool: Pool, update_state: bool
    ) -> ReplayRows | None:
        """The added rows, or None if there are none or ``update_state`` is False."""
        if not update_state or not self.classes or not self.count:
            return None
        generator = source_of(targets, self.number)
        labels, values = self._around_objects(rows, targets, pool, generator)
        where = self.bank.place(values)
        queue = first_rows(labels.to(where), self.num_classes, self.capacity)
        arrivals = self.bank.arrivals(queue)

        fill = (self.bank.pushed + arrivals.per_queue).clamp(max=self.capacity)
        chance = torch.rand(self.classes, generator=generator, dtype=torch.float64).sort().values
        spot = torch.rand(self.classes, self.count, generator=generator, dtype=torch.float64)
        drawn = draw_classes(self.wanted.to(where), to_step(chance, where))
        empty = fill[drawn] == 0
        numbers = torch.cat([(~empty).sum()[None], arrivals.numbers])
        giving, stored, opened = numbers.tolist()
        extra = None
        if giving:
            chosen = empty.long().argsort(stable=True)[:giving]
            queues = drawn[chosen, None].expand(-1, self.count)
            positions = (to_step(spot, where)[chosen] * fill[queues]).long()
            extra = self._rows_at(queues.flatten(), positions.flatten(), arrivals, values, rows)
        self.bank.store(arrivals, values, stored=stored, opened=opened)
        return extra

    def _rows_at(
        self, queue: Tensor, position: Tensor, arrivals: Arrivals, values: Mapping[str, Tensor], rows: RegionRows
    ) -> ReplayRows:
        """The rows that the queues (M,) will hold at places (M,) once this step's are stored. Those of this step are
        taken from ``values``, so that nothing waits for their way to a bank on the host."""
        device = rows.labels.device
        same = (
            (arrivals.queue == queue[:, None]) & (arrivals.position == position[:, None]) & arrivals.kept
        )  # (M, 16 G)
        slot = self.bank.slots[queue, position].clamp(min=0)
        arriving = same.any(dim=1)
        row = to_step(same.long().argmax(dim=1), device) if same.shape[1] else None
        arriving = to_step(arriving, device)

        def of(name: str) -> Tensor:
            stored = self.bank.read(name, slot, device) if self.bank.opened else None
            if row is None:
                assert stored is not None, "a queue that holds something held it before"
                return stored
            fresh = values[name][row].to(self.bank.fields[name])
            if stored is None:
                return fresh
            return torch.where(arriving.reshape(-1, *[1] * (fresh.ndim - 1)), fresh, stored)

        nowhere = torch.full(queue.shape, -1, device=device)
        return ReplayRows(
            features=of("features").to(rows.features.dtype),
            labels=to_step(queue, device),
            proposals=of("proposals").to(rows.proposals.dtype),
            gt_boxes=of("gt_boxes").to(rows.gt_boxes.dtype),
            gt_index=nowhere,
            image_index=nowhere,
            weight=torch.ones(queue.shape, device=device),
        )

    def _around_objects(
        self, rows: RegionRows, targets: Sequence[Mapping[str, Any]], pool: Pool, generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels (16 G,), C for boxes that are left out, and what is stored of the boxes around all objects."""
        device = rows.labels.device
        noise = to_step(torch.rand(len(targets), 4, PATTERNS, generator=generator), device)
        own = [target["boxes"].to(rows.proposals.dtype) for target in targets]
        boxes = [
            jitter_boxes(objects, noise[image], size=targets[image].get("image_size"))
            for image, objects in enumerate(own)
        ]
        objects = torch.cat(own) if own else rows.gt_boxes[:0]
        labels = torch.cat([target["labels"] for target in targets]) if targets else rows.labels[:0]
        if objects.shape[0]:
            proposals, features = torch.cat(boxes), pool(boxes)
        else:
            proposals, features = objects, rows.features[:0]
        objects, labels = objects.repeat_interleave(PATTERNS, dim=0), labels.repeat_interleave(PATTERNS)
        sides, own_sides = proposals[:, 2:] - proposals[:, :2], objects[:, 2:] - objects[:, :2]
        labels = torch.where((sides > SMALLEST_SIDE * own_sides).all(dim=1), labels, self.num_classes)
        values = {"features": features, "proposals": proposals, "gt_boxes": objects}
        if self.arrivals == "random":
            order = torch.randperm(len(labels) // PATTERNS, generator=generator)[:, None] * PATTERNS
            mixed = to_step((order + torch.arange(PATTERNS)).flatten(), device)
            return labels[mixed], {name: value[mixed] for name, value in values.items()}
        return labels, values


def source_of(targets: Sequence[Mapping[str, Any]], number: int = 0) -> torch.Generator | None:
    """The source of the draws of a step and a part of this number, on the host; None = PyTorch's own."""
    seed = targets[0].get("draw_seed") if targets else None
    return None if seed is None else torch.Generator().manual_seed(int(seed) ^ (_SALT + number))


def first_rows(labels: Tensor, num_classes: int, most: int) -> Tensor:
    """Labels (N,) in 0..C, with C instead of those of rows behind the first ``most`` of their class."""
    count = labels.new_zeros(num_classes + 1).index_add_(0, labels, torch.ones_like(labels))
    order = labels.argsort(stable=True)
    start = count.cumsum(0) - count
    turn = torch.empty_like(labels)
    turn[order] = torch.arange(len(labels), device=labels.device) - start[labels[order]]
    return torch.where(turn < most, labels, num_classes)


def draw_classes(wanted: Tensor, chance: Tensor) -> Tensor:
    """Classes (k,) whose share of the cumulative distribution holds ``chance`` (k,) in [0, 1).

    Args:
        wanted: (C,) >= 0, probabilities up to a factor.
    """
    share = (wanted / wanted.max() * 2**40).long().cumsum(0)  # whole numbers add up alike in any order, on a GPU too
    return torch.searchsorted(share, (chance * share[-1]).long(), right=True).clamp(max=wanted.shape[0] - 1)
