"""The contract of every classification loss (seam 6) and every box loss (seam 7)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from longtail.losses.state import at_least_one

Head = Literal["roi", "dense", "query"]

CLASSIFIERS = frozenset({"linear", "cosine", "normed_linear", "lws"})
TEST_TIME_CLASSIFIERS = CLASSIFIERS | {"deconfounded"}
CERTAIN = 1e4  # a logit whose exponential is 0 (or, its sign changed, whose sigmoid is) in every number format
"""The same and those that change the class logits at test time, which needs scores made by a softmax."""


class ClassificationLoss(nn.Module, ABC):
    """A loss over class logits that also says what classifier it needs and how its logits become scores.

    A subclass writes :meth:`row_losses` and :meth:`scores`; weights, normalisers and the decision whether running
    state may change are handled here, once for all. Where rows depend on each other, or state on what is
    back-propagated, it is a :class:`BatchLoss` and writes :meth:`batch_losses` instead.

    Shapes:
        logits (N, :attr:`num_logits`), floating point; labels (N,) int64 in 0..C, where C = ``num_classes`` is the
        background; weight (N,) >= 0, 0 = ignored row; class_mask (N, C) bool, False = this class takes no part in
        this row (federated or unselected labels).

    Attributes:
        heads: where the loss makes sense: ``"roi"`` (second stage of R-CNN), ``"dense"`` (anchors of a one-stage
            detector), ``"query"`` (DETR).
        classifiers: names of the classifiers it may be paired with.
        adjustable: whether the class scores are a softmax over the first C logits, with or without the background's,
            so that class logits can be adjusted after training with the background's score kept.
    """

    heads: ClassVar[frozenset[str]] = frozenset({"roi"})
    classifiers: ClassVar[frozenset[str]] = CLASSIFIERS
    adjustable: ClassVar[bool] = False

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes

    @property
    def num_logits(self) -> int:
        """Outputs the classifier must have. C + 1 unless the loss says otherwise."""
        return self.num_classes + 1

    @property
    def bias_prior(self) -> float | None:
        """Value the classifier's bias starts from, or None for its own default."""
        return None

    @property
    def no_background(self) -> tuple[float, ...] | None:
        """Values of the logits behind the C class logits that mean "certainly one of the classes", so that pictures,
        which are never background, can be classified: with them the loss is that of the C classes alone. None = there
        are no such values."""
        extra = self.num_logits - self.num_classes
        return {0: (), 1: (-CERTAIN,)}.get(extra)

    def acts_on(self) -> str | None:
        """The part of the classes it treats in its own way, in words for the log of a run; a fact of the class counts
        alone. None = all of them, or a part that only the steps decide (:meth:`running_shares`)."""
        return None

    def running_shares(self) -> dict[str, Tensor]:
        """Shares in 0..1 of the cells or classes that it treats in its own way as its state stands, scalars by name.
        They are worked out when asked for, from the state alone, and nothing waits for the device. Empty = it has no
        state that says so."""
        return {}

    @abstractmethod
    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        class_mask: Tensor | None = None,
        update_state: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Loss of every row, shape (N,), before weight and normaliser. Running state changes only if
        ``update_state``; random subsampling uses ``generator``, and does not happen where it is None."""

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """Scores in [0, 1], shape (N, C + 1), background last. Rows need not sum to 1."""

    def normaliser_count(self, labels: Tensor, weight: Tensor | None) -> Tensor | float:
        """The rows that the sum of the row losses is averaged over, >= 0: those with positive weight, unless the
        method's paper divides by something else. Additive: the count of two batches together is the sum of their
        counts, so that it can be summed over ranks."""
        return float(labels.shape[0]) if weight is None else (weight > 0).sum()

    def dense_normaliser_count(self, labels: Tensor, weight: Tensor | None) -> Tensor | float:
        """The same for a dense head, whose background rows are legion: the foreground rows with positive weight."""
        foreground: Tensor = labels < self.num_classes
        if weight is not None:
            foreground = foreground & (weight > 0)
        return foreground.sum()

    def normaliser(self, labels: Tensor, weight: Tensor | None) -> Tensor | float:
        """What the sum of these rows' losses is divided by on their own: :meth:`normaliser_count`, at least 1.

        A detector in several processes hands over the share of the rows of all processes instead
        (:func:`longtail.losses.state.shared_normalisers`).
        """
        return at_least_one(self.normaliser_count(labels, weight))

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
        """Loss of every row within its batch, (N,), before weight and normaliser: :meth:`row_losses`, unless the loss
        is a :class:`BatchLoss`.

        Args:
            weight: None = all 1. It is not multiplied in here; rows with weight 0 influence neither the other rows nor
                the state.
            normaliser: what the sum of the weighted rows is going to be divided by.
        """
        return self.row_losses(logits, labels, class_mask=class_mask, update_state=update_state, generator=generator)

    def per_sample(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of every row, (N,), without subsampling and without touching state."""
        return self.row_losses(logits, labels)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        weight: Tensor | None = None,
        class_mask: Tensor | None = None,
        normaliser: Tensor | float | None = None,
        update_state: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Scalar loss. ``normaliser=None`` is the paper's own; ``update_state=None`` follows ``self.training``."""
        update = self.training if update_state is None else update_state
        divisor = self.normaliser(labels, weight) if normaliser is None else normaliser
        rows = self.batch_losses(
            logits,
            labels,
            weight=weight,
            class_mask=class_mask,
            normaliser=divisor,
            update_state=update,
            generator=generator,
        )
        if weight is not None:
            # where, not a product: an ignored row may hold an infinite loss
            rows = torch.where(weight > 0, rows * weight, rows.new_zeros(()))
        return rows.sum() / divisor


class BatchLoss(ClassificationLoss):
    """A loss whose rows depend on each other (counts or draws of the batch), or whose state depends on the gradient
    that is back-propagated, and so on weight and normaliser.

    A subclass writes :meth:`batch_losses`. Asked for rows alone, it takes them as a batch of their own: every weight
    is 1 and the normaliser is the paper's.
    """

    @abstractmethod
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
        """Loss of every row within its batch, (N,); state changes after it is computed, unless the paper says so."""

    def row_losses(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        class_mask: Tensor | None = None,
        update_state: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.batch_losses(
            logits,
            labels,
            weight=None,
            class_mask=class_mask,
            normaliser=self.normaliser(labels, None),
            update_state=update_state,
            generator=generator,
        )


class BoxLoss(nn.Module, ABC):
    """A loss between predicted and target boxes.

    ``space`` says what it is given: ``"deltas"``, encoded offsets (dx, dy, dw, dh), or ``"boxes"``, corners x1, y1,
    x2, y2 in pixels. Values of the four coordinates are summed.

    Shapes:
        predicted and target (P, 4); weight (P,) or None.
    """

    space: ClassVar[Literal["deltas", "boxes"]] = "deltas"

    @abstractmethod
    def row_losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Loss of every box, shape (P,)."""

    def batch_losses(self, predicted: Tensor, target: Tensor, *, weight: Tensor | None, update_state: bool) -> Tensor:
        """Loss of every box among the others, (P,), before weight and normaliser: :meth:`row_losses`, unless boxes
        depend on each other. Boxes with weight 0 influence neither the others nor the state."""
        return self.row_losses(predicted, target)

    def forward(
        self,
        predicted: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        normaliser: Tensor | float | None = None,
        *,
        update_state: bool | None = None,
    ) -> Tensor:
        """Weighted sum over boxes divided by ``normaliser`` (None: the number of boxes, at least 1).

        ``update_state`` says whether running state may change; None follows ``self.training``.
        """
        update = self.training if update_state is None else update_state
        rows = self.batch_losses(predicted, target, weight=weight, update_state=update)
        if weight is not None:
            rows = torch.where(weight > 0, rows * weight, rows.new_zeros(()))
        return rows.sum() / (max(predicted.shape[0], 1) if normaliser is None else normaliser)
