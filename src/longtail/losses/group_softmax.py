"""Balanced group softmax, BAGS (Li et al., CVPR 2020, section 4)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import BatchLoss
from longtail.losses.cells import counted_rows, full_precision, left_out_cells
from longtail.losses.column_groups import group_cross_entropy


class GroupSoftmaxLoss(BatchLoss):
    """Classes of similar counts compete in a softmax of their own, so that frequent ones cannot push rare ones down.

    A class belongs to the group of its number of training instances: [0, 10), [10, 100), [100, 1000), [1000, inf).
    Each group has one more output, *others*, at position 0 of its softmax, which is the target of rows of other groups
    and of the background. A last group tells background from foreground. The loss is the sum of the groups'
    cross-entropies, each averaged over the rows it keeps:

    * the background group keeps every row;
    * any other group keeps the rows of its own classes and ``int(others_ratio * their number)`` of the rest, drawn
      uniformly from the batch, whatever their class; without a row of its own it keeps none and contributes 0.

    The draw needs a ``generator``. Without one nothing is left out: every group averages over all rows, also where no
    row is its own. Rows with weight 0 are neither drawn nor counted. In several processes each draws from, and
    averages over, its own rows, as released code does.

    A class that ``class_mask`` takes out of a row leaves the denominator of its group, unless it is the row's label.
    The *others* and the background group are not touched by it.

    Args:
        instance_counts: training instances per class, (C,), >= 0.
        edges: where the groups end, ascending; published 10, 100, 1000.
        others_ratio: rows drawn per row of the group's own classes, >= 0; published 8.

    State:
        ``group`` (C,), constant: the group of every class.

    Shapes:
        logits (N, C + G + 2) with G = number of edges + 1 groups: C class logits, then *others* of every group, then
        [foreground, background]; labels (N,) in 0..C with C = background; class_mask (N, C) bool. Row losses (N,),
        >= 0. Scores (N, C + 1): ``P_group(c) * P(foreground)``, then ``P(background)``; rows do not sum to 1.

    Raises:
        ValueError: a negative count, no class, edges that do not ascend, or a negative ratio.
    """

    def __init__(
        self, instance_counts: Tensor, *, edges: Sequence[float] = (10, 100, 1000), others_ratio: float = 8.0
    ) -> None:
        super().__init__(num_classes=len(instance_counts))
        if (instance_counts < 0).any() or others_ratio < 0:
            raise ValueError(
                f"instance_counts and others_ratio must be >= 0, got min {instance_counts.min()} and {others_ratio}"
            )
        if any(low >= high for low, high in itertools.pairwise(edges)):
            raise ValueError(f"edges must ascend, got {list(edges)}")
        self.others_ratio = others_ratio
        self.num_groups = len(edges) + 1
        group = torch.bucketize(instance_counts.double().cpu(), torch.tensor(edges, dtype=torch.float64), right=True)
        sizes = torch.bincount(group, minlength=self.num_groups).tolist()
        self.occupied = [g for g, size in enumerate(sizes) if size]  # a group without classes has no softmax
        self.group: Tensor
        self.register_buffer("group", group, persistent=False)
        classes = [torch.where(group == g)[0] for g in range(self.num_groups)]
        for g in self.occupied:
            self.register_buffer(f"classes_{g}", classes[g], persistent=False)
        # columns group by group, each with its *others* first, then foreground and background
        order = [torch.cat([torch.tensor([self.num_classes + g]), columns]) for g, columns in enumerate(classes)]
        order.append(torch.arange(2) + self.num_classes + self.num_groups)
        self.widths = [len(columns) for columns in order]
        self.order: Tensor
        self.place: Tensor
        self.register_buffer("order", torch.cat(order), persistent=False)
        self.register_buffer("place", self.order.argsort(), persistent=False)
        starts = torch.tensor([0, *itertools.accumulate(self.widths)])
        self.position: Tensor
        self.register_buffer("position", self.place[: self.num_classes] - starts[group], persistent=False)

    @property
    def num_logits(self) -> int:
        """C classes, one *others* per group, foreground and background: C + 6 with the published groups."""
        return self.num_classes + self.num_groups + 2

    def batch_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        weight: Tensor | None,
        class_mask: Tensor | None,
        normaliser: Tensor | float,
        update_state: bool,
        generator: torch.Generator | None,
    ) -> Tensor:
        """(N,), scaled so that their mean over the rows with weight > 0 is the sum of the groups' means."""
        counted = counted_rows(labels, weight)
        logits = full_precision(logits)
        if class_mask is not None:
            logits = logits.masked_fill(left_out_cells(labels, class_mask, self.num_logits), float("-inf"))
        own_group = F.pad(self.group, (0, 1), value=-1)[labels].unsqueeze(1)
        own = own_group == torch.arange(self.num_groups, device=labels.device)  # (N, G)
        position = F.pad(self.position, (0, 1))[labels].unsqueeze(1)
        targets = torch.cat([torch.where(own, position, 0), (labels == self.num_classes).long().unsqueeze(1)], dim=1)
        rows = group_cross_entropy(logits, targets, self.widths, order=self.order, place=self.place)
        total = rows[:, -1]
        for g in self.occupied:
            total = total + rows[:, g] * self._share(own[:, g], counted, generator, logits.dtype)
        return total

    def _share(self, own: Tensor, counted: Tensor, generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
        """(N,) weight of every row in a group: 1 without a draw; with one, counted rows / kept rows where it is kept,
        and 0 elsewhere."""
        if generator is None:
            return torch.ones_like(own, dtype=dtype)
        own, others = own & counted, ~own & counted
        wanted = (self.others_ratio * own.sum()).floor()
        draw = torch.rand(own.shape, generator=generator, device=own.device).masked_fill(~others, 2.0)
        kept = own | (others & (draw.argsort().argsort() < wanted))
        return kept.to(dtype) * (counted.sum().to(dtype) / kept.sum().clamp(min=1))

    def scores(self, logits: Tensor) -> Tensor:
        logits = full_precision(logits)
        foreground, background = logits[:, -2:].softmax(dim=1).unbind(dim=1)
        within = logits.new_zeros(logits.shape[0], self.num_classes)
        for g in self.occupied:
            classes = self.get_buffer(f"classes_{g}")
            others = logits[:, self.num_classes + g, None]
            probability = torch.cat([others, logits[:, classes]], dim=1).softmax(dim=1)[:, 1:]
            within = within.index_copy(1, classes, probability)
        return torch.cat([within * foreground[:, None], background[:, None]], dim=1)
