"""The mean score of every class (LOCE, Feng et al., ICCV 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from longtail.losses.cells import full_precision
from longtail.losses.state import sum_over_ranks


class ObjectRows(Protocol):
    """What a score is averaged over: labels (N,) in 0..C, gt_index (N,) of the object within its image, image_index
    (N,) within the batch, -1 for rows that are not of this step."""

    @property
    def labels(self) -> Tensor: ...
    @property
    def gt_index(self) -> Tensor: ...
    @property
    def image_index(self) -> Tensor: ...


class MeanScore(nn.Module):
    """Moving average of the score that objects of every class get for their own class.

    In the replay list of a region head it is told of every step's logits and adds no rows; a loss and a memory that
    are guided by it hold the same object. One *observation* is the mean score ``p_y`` of all regions of one object of
    this step, or of all replayed rows of one class. With ``n`` observations of mean ``m`` in a step, over all
    processes, the paper's recursion in any order becomes

        ``s_y <- alpha^n s_y + (1 - alpha^n) m``.

    Sums go over the processes, so the order of rows does not matter and all processes have the same values.

    Args:
        num_classes: foreground classes C, at least 1.
        alpha: in [0, 1); published 0.9.
        background: the background's entry, which never moves, > 0; published 0.01.
        initial: first value of every class, > 0; 0.01 in the released code.
        scores: (N, K) logits -> (N, >= C) scores in [0, 1]; None = a softmax over all logits.

    State (shared):
        value (C + 1,) float32, background last; rows (C,) and hits (C,) float64, regions of every class since
        :meth:`restart`, and those of them whose highest score is their own class, background included.

    Shapes:
        logits (N, K); labels, gt_index, image_index (N,), as in ``longtail.replay.RegionRows``.

    Raises:
        ValueError: a value out of range.
    """

    level: ClassVar[Literal["pooled"]] = "pooled"  # it reads no features, so it goes with every classifier
    per_rank: ClassVar[frozenset[str]] = frozenset()

    value: Tensor
    rows: Tensor
    hits: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float = 0.9,
        background: float = 0.01,
        initial: float = 0.01,
        scores: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha must be in [0, 1), got {alpha}")
        if background <= 0 or initial <= 0:
            raise ValueError(f"background and initial must be > 0, got {background} and {initial}")
        self.num_classes = num_classes
        self.alpha = alpha
        self.scores = scores
        value = torch.full((num_classes + 1,), float(initial))
        value[-1] = background
        self.register_buffer("value", value)
        self.register_buffer("rows", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("hits", torch.zeros(num_classes, dtype=torch.float64))

    def step(self, rows: Any, targets: Any, pool: Any, update_state: bool) -> None:
        """Adds no rows."""

    @torch.no_grad()
    def after_logits(self, rows: ObjectRows, logits: Tensor, update_state: bool) -> None:
        """Takes in all rows of a step. Every process calls it, with any number of rows."""
        if not update_state:
            return
        classes = self.num_classes
        logits = full_precision(logits.detach())
        scores = logits.softmax(dim=1) if self.scores is None else self.scores(logits)
        labels = rows.labels
        own_score = scores.gather(1, labels.clamp(max=scores.shape[1] - 1).unsqueeze(1)).squeeze(1).double()
        label, count, total = observations(rows, own_score, classes)

        current = (rows.image_index >= 0).double()
        hit = current * (scores.argmax(dim=1) == labels)
        table = torch.zeros(4, classes + 1, dtype=torch.float64, device=labels.device)
        table[:2].index_add_(1, label, torch.stack([count, total]))
        table[2:].index_add_(1, labels, torch.stack([current, hit]))
        table = sum_over_ranks(table)[:, :classes]

        number, mean = table[0], table[1] / table[0].clamp(min=1)
        keep = self.alpha**number
        moved = keep * self.value[:classes].double() + (1 - keep) * mean
        self.value[:classes] = torch.where(number > 0, moved, self.value[:classes].double()).to(self.value.dtype)
        self.rows += table[2]
        self.hits += table[3]

    def restart(self) -> None:
        """Counts regions afresh; the scores stay."""
        self.rows.zero_()
        self.hits.zero_()


def observations(rows: ObjectRows, score: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """One mean score per object of this step and per class among the other rows, without asking how many there are.

    Args:
        rows: N of them.
        score: (N,) of their own class, float64.
        num_classes: C; rows with this label are left out.

    Returns:
        label (N,), and count (N,), 1 for an observation and 0 otherwise, and their mean score (N,), 0 if there is none.
    """
    labels = rows.labels
    key = torch.where(rows.image_index >= 0, (rows.image_index << 32) + rows.gt_index, -1 - labels)
    key = torch.where(labels < num_classes, key, -1 - num_classes)
    key, order = key.sort(stable=True)
    first = torch.ones_like(key, dtype=torch.bool)
    first[1:] = key[1:] != key[:-1]
    group = first.cumsum(0) - 1
    ones = torch.ones_like(score)
    size = torch.zeros_like(score).index_add_(0, group, ones)
    total = torch.zeros_like(score).index_add_(0, group, score[order])
    label = torch.full_like(labels, num_classes).scatter_(0, group, labels[order])
    count = ((size > 0) & (label < num_classes)).to(score.dtype)
    return label, count, count * total / size.clamp(min=1)
