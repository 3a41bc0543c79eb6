"""Classification distillation of step-wise learning (ICCV 2023, equation 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from longtail.losses.auxiliary import AuxiliaryLoss, Record
from longtail.losses.cells import full_precision
from longtail.losses.state import shared_normalisers


class ClassificationDistillation(AuxiliaryLoss):
    """Keeps a student's probabilities of the head classes close to its teacher's.

    With ``p = softmax(z_T[head] / T)`` and ``q = softmax(z_S[head] / T)``, a row's loss is ``T ** 2 * sum(p * (log p -
    log q))``, the divergence of the student from the teacher. It is averaged over all rows of a layer, those on the
    background included, and summed over the layers. Background and tail classes take no part.

    Args:
        head: (C,) bool, True for the head classes.
        loss_weight: factor on the result; 0.1 in the released code.
        rows: ``"query"``: queries of a set-prediction detector; ``"region"``: regions of a two-stage detector.
        shared: True: both classify the teacher's features (shared object queries), so that rows belong together and
            the gradient reaches the student's classifiers alone. False: the student classifies its own.
        align: for queries that are not shared. ``"index"``: query k belongs to query k; ``"matched"``: those belong
            together that are matched with the same object, and the mean is over the objects of all processes.
        classes: ``"head"``, or ``"all"`` foreground classes.
        layers: ``"all"`` decoder layers, or the ``"last"`` one.
        temperature: T > 0.

    Records ``"query_logits"`` (L, B, Q, K) or ``"region_logits"`` (N, K), K >= C, foreground first; for ``"matched"``
    also ``"object_queries"`` (L, G), rows of the objects' queries among the B * Q, -1 without one.
    """

    def __init__(
        self,
        head: Tensor,
        *,
        loss_weight: float = 0.1,
        rows: Literal["query", "region"] = "query",
        shared: bool = True,
        align: Literal["index", "matched"] = "index",
        classes: Literal["head", "all"] = "head",
        layers: Literal["all", "last"] = "all",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if head.dtype != torch.bool or head.ndim != 1:
            raise ValueError(f"head must be a boolean vector, got {head.dtype} of shape {tuple(head.shape)}")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        columns = torch.arange(len(head)) if classes == "all" else head.nonzero()[:, 0]
        self.register_buffer("columns", columns, persistent=False)
        self.columns: Tensor
        self.loss_weight = loss_weight
        self.shared = shared
        self.matched = not shared and align == "matched" and rows == "query"
        self.layers = layers
        self.temperature = temperature
        self.teacher_logits = f"{rows}_logits"
        self.student_logits = f"shared_{rows}_logits" if shared else self.teacher_logits
        self.shares = frozenset({f"{rows}_features"} if shared else ())
        own = {"object_queries"} if self.matched else set()
        self.wants = frozenset({self.teacher_logits, self.student_logits, *self.shares, *own})

    def forward(self, student: Record, teacher: Record, targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``{"loss_classification_distillation": scalar}``.

        Raises:
            ValueError: student and teacher have other numbers of rows.
        """
        own, other = student[self.student_logits], teacher[self.teacher_logits].detach()
        if own.shape != other.shape:
            raise ValueError(f"student and teacher have logits of other shapes: {own.shape} and {other.shape}")
        layers = own.shape[0] if own.ndim == 4 else 1
        own, other = (logits.reshape(layers, -1, logits.shape[-1]) for logits in (own, other))
        first = layers - 1 if self.layers == "last" else 0
        divergence = self.divergence(own[first:], other[first:]) if not self.matched else None
        if divergence is not None:
            loss = divergence.mean(dim=1).sum() if divergence.shape[1] else own.sum() * 0
        else:
            loss = self._of_objects(own, other, student["object_queries"], teacher["object_queries"], first)
        return {"loss_classification_distillation": self.loss_weight * loss}

    def _of_objects(self, own: Tensor, other: Tensor, own_rows: Tensor, other_rows: Tensor, first: int) -> Tensor:
        """Mean over the objects that both have a query for, summed over the layers."""
        both = (own_rows >= 0) & (other_rows >= 0)  # (L, G)
        width = own.shape[-1]
        mine = own.gather(1, own_rows.clamp(min=0)[..., None].expand(-1, -1, width))
        theirs = other.gather(1, other_rows.clamp(min=0)[..., None].expand(-1, -1, width))
        sums = (self.divergence(mine, theirs) * both).sum(dim=1)[first:]
        counts: list[Tensor | float] = list(both.sum(dim=1)[first:].unbind())
        normalisers = shared_normalisers(counts, device=own.device)
        return torch.stack([part / count for part, count in zip(sums.unbind(), normalisers, strict=True)]).sum()

    def divergence(self, own: Tensor, other: Tensor) -> Tensor:
        """Divergence (L, N) of the rows of logits (L, N, K)."""
        log_q = F.log_softmax(full_precision(own)[..., self.columns] / self.temperature, dim=-1)
        log_p = F.log_softmax(full_precision(other)[..., self.columns] / self.temperature, dim=-1)
        return self.temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1)
