"""The contract of feature replay (seam 5): extra region features for weak classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

Level = Literal["pooled", "embedded"]
Pool = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class RegionRows:
    """Regions of one training step, one row each.

    Shapes:
        features (N, D) at level ``"embedded"``, (N, K, h, w) at level ``"pooled"``; labels (N,) in 0..C, C =
        background; proposals and gt_boxes (N, 4) corners in pixels of the network input (gt_boxes of a background
        row are meaningless); gt_index (N,) index of the matched object within its image, -1 for background;
        image_index (N,) index of the image within the batch, -1 for a row that did not come from this step.
    """

    features: Tensor
    labels: Tensor
    proposals: Tensor
    gt_boxes: Tensor
    gt_index: Tensor
    image_index: Tensor


@dataclass(frozen=True)
class ReplayRows(RegionRows):
    """Rows that a replay part adds to this step.

    Attributes:
        weight: (M,) weight of every row in the classification and box loss.
        joins_normaliser: True = the rows enter the same mean as the real ones (RIO, LOCE); False = a separate mean of
            their own, scaled by ``loss_weight`` (FASA).
        trains_box: whether the rows also train the box regressor.
        loss_weight: factor of the separate term.
        shares_mean: whether a separate mean is over the rows of all processes, or over this process's own.
        updates_loss_state: whether these rows may change the running state of the classification loss. Rows with a
            mean of their own may not: their part of the loss is computed only on the ranks that have such rows, and
            state that is summed over the ranks would wait for the others for ever.
        second_labels, second_weight: (M,) mixed labels: ``(1 - second_weight) * L(labels) + second_weight *
            L(second_labels)``.
        replaces: (M,) rows of this step that give way to these in the classification loss, -1 = none.

    Raises:
        ValueError: ``updates_loss_state`` without ``joins_normaliser``.
    """

    weight: Tensor
    joins_normaliser: bool = True
    trains_box: bool = True
    loss_weight: float = 1.0
    shares_mean: bool = True
    updates_loss_state: bool = True
    second_labels: Tensor | None = None
    second_weight: Tensor | None = None
    replaces: Tensor | None = None

    def __post_init__(self) -> None:
        if self.updates_loss_state and not self.joins_normaliser:
            raise ValueError(
                "rows with a mean of their own must not change the loss's state: set updates_loss_state=False"
            )


class FeatureReplay(nn.Module, ABC):
    """A part that adds rows to the region head's batch. Everything it keeps is a buffer, so that it is saved.

    Attributes:
        level: where its features live: ``"pooled"`` (output of RoIAlign) or ``"embedded"`` (input of the last layer).
        per_rank: names of buffers that differ between ranks (banks, draws); all others are equal on every rank.
        number: which of a detector's parts of the same kind it is, from 0; parts that are given one source of draws
            draw different things. :func:`number_parts` sets it.
    """

    level: ClassVar[Level] = "embedded"
    per_rank: ClassVar[frozenset[str]] = frozenset()
    number: int = 0

    @abstractmethod
    def step(
        self, rows: RegionRows, targets: Sequence[Mapping[str, Any]], pool: Pool, update_state: bool
    ) -> ReplayRows | None:
        """Rows to add, or None. ``rows`` are this step's own regions only, ``pool(boxes)`` is RoIAlign on this step's
        maps, one (n, 4) tensor per image. The part decides its own order of storing and drawing. With
        ``update_state=False`` nothing is stored, drawn or counted."""

    def after_logits(self, rows: RegionRows, logits: Tensor, update_state: bool) -> None:
        """Called with all rows (this step's, then replayed ones) and their logits, before the loss."""


def number_parts(parts: Iterable[nn.Module]) -> None:
    """Numbers the parts of every kind, in order; modules of other kinds may be among them."""
    count: Counter[type[nn.Module]] = Counter()
    for part in parts:
        if isinstance(part, FeatureReplay):
            part.number = count[type(part)]
            count[type(part)] += 1


def virtual_rows(rows: RegionRows, features: Tensor, labels: Tensor, weight: Tensor) -> ReplayRows:
    """Rows that join the mean of ``rows`` in the classification loss alone and change no state of it."""
    nowhere = torch.full_like(labels, -1)
    boxes = rows.proposals.new_zeros(labels.shape[0], 4)
    boxes[:, 2:] = 1  # never used: the rows train no box
    return ReplayRows(
        features=features,
        labels=labels,
        proposals=boxes,
        gt_boxes=boxes,
        gt_index=nowhere,
        image_index=nowhere,
        weight=weight,
        trains_box=False,
        updates_loss_state=False,
    )


def check_targeted(targeted: Tensor, num_classes: int) -> None:
    """Refuses anything but one bool per class.

    Raises:
        ValueError: with what was given.
    """
    if targeted.shape != (num_classes,) or targeted.dtype != torch.bool:
        raise ValueError(
            f"targeted must be a bool tensor of shape ({num_classes},), "
            f"got {targeted.dtype} of shape {tuple(targeted.shape)}"
        )
