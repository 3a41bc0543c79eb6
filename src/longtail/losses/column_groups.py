"""Softmax cross-entropies over several groups of the same logits' columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def group_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    widths: Sequence[int],
    *,
    order: Tensor | None = None,
    place: Tensor | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy of every row in every one of P groups of columns, (N, P). Cannot be differentiated twice.

    Args:
        logits: (N, K).
        targets: (N, P), position of the target among the group's columns.
        widths: columns of every group; their sum is K.
        order: (K,), the columns group by group, each once; None = as they are.
        place: (K,), the inverse of ``order``.
        added: (N, widths[0]), constants added to the logits of the first group; None = 0.
    """
    rows: Tensor = _GroupCrossEntropy.apply(logits, targets, list(widths), order, place, added)
    return rows


class _GroupCrossEntropy(torch.autograd.Function):
    """Written out because the gradients of all groups go straight into one matrix, and, where columns change places,
    are put back by reading in a fixed order; indexing would add them up, several times slower."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        widths: list[int],
        order: Tensor | None,
        place: Tensor | None,
        added: Tensor | None,
    ) -> Tensor:
        if order is None:
            pieces = list(torch.split(logits, widths, dim=1))
        else:
            pieces = [logits.index_select(1, columns) for columns in torch.split(order, widths)]
        if added is not None:
            pieces[0] = pieces[0] + added
        log_p = [piece.log_softmax(dim=1) for piece in pieces]
        ctx.save_for_backward(targets, place, *log_p)
        ctx.widths = widths
        return -torch.cat([p.gather(1, targets[:, g, None]) for g, p in enumerate(log_p)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        targets, place, *log_p = ctx.saved_tensors
        together = gradient.new_empty(gradient.shape[0], sum(ctx.widths))
        for g, piece in enumerate(torch.split(together, ctx.widths, dim=1)):
            target = targets[:, g, None]
            torch.exp(log_p[g], out=piece)
            piece.scatter_(1, target, piece.gather(1, target) - 1).mul_(gradient[:, g, None])
        return together if place is None else together.index_select(1, place), None, None, None, None, None
