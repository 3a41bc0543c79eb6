"""Losses of a region head whose batch holds replayed rows (seam 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.losses.base import ClassificationLoss
from longtail.replay.base import RegionRows, ReplayRows


@dataclass(frozen=True)
class BoxRows:
    """Rows that train the box regressor: labels (P,), proposals and gt_boxes (P, 4), weight (P,) or None = all 1, and
    what the sum of their losses is divided by."""

    labels: Tensor
    proposals: Tensor
    gt_boxes: Tensor
    weight: Tensor | None
    normaliser: Tensor | float


def classification_losses(
    loss: ClassificationLoss,
    logits: Tensor,
    labels: Tensor,
    replayed: Sequence[ReplayRows],
    *,
    update_state: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor | None]:
    """The loss of this step's rows with the replayed rows that join them, and of those that stay apart.

    Args:
        logits: (R + M, num_logits), this step's R rows and then the rows of every entry of ``replayed`` in order.
        labels: (R,) of this step's rows.

    Returns:
        The mean over the R rows and the joining rows; the sum of the separate means, each times its ``loss_weight``,
        or None if there are no separate rows.
    """
    if not replayed:
        return loss(logits, labels, update_state=update_state, generator=generator), None
    current, *parts = torch.split(logits, [labels.shape[0], *(rows.labels.shape[0] for rows in replayed)])
    joining = [(part, rows) for part, rows in zip(parts, replayed, strict=True) if rows.joins_normaliser]

    own_weight = _without_replaced(labels, logits, replayed)
    all_labels = torch.cat([labels, *(rows.labels for _, rows in joining)])
    all_weights = torch.cat([own_weight, *(rows.weight.to(logits.dtype) for _, rows in joining)])
    normaliser = loss.normaliser(all_labels, all_weights)

    # rows that may change the loss's state go with this step's own, the others through a call that may not
    moving = [(part, rows) for part, rows in joining if rows.updates_loss_state]
    still = [(part, rows) for part, rows in joining if not rows.updates_loss_state]
    together = loss(
        logits if len(moving) == len(replayed) else torch.cat([current, *(part for part, _ in moving)]),
        torch.cat([labels, *(rows.labels for _, rows in moving)]),
        weight=torch.cat([own_weight, *(_first_weight(rows, logits) for _, rows in moving)]),
        normaliser=normaliser,
        update_state=update_state,
        generator=generator,
    )
    for part, rows in moving:
        together = together + _second_term(loss, part, rows, normaliser, generator)
    for part, rows in still:
        together = together + _both_terms(loss, part, rows, normaliser, False, generator)

    separate: Tensor | None = None
    for part, rows in zip(parts, replayed, strict=True):
        if not rows.joins_normaliser:
            own = loss.normaliser(rows.labels, rows.weight)
            update = update_state and rows.updates_loss_state
            term = rows.loss_weight * _both_terms(loss, part, rows, own, update, generator)
            separate = term if separate is None else separate + term
    return together, separate


def joining_box_rows(positives: BoxRows, replayed: Sequence[ReplayRows], num_classes: int) -> BoxRows:
    """This step's positives together with the replayed rows that share their mean. Every such row counts in the
    divisor if its weight is positive, even if it is background and trains no box."""
    if not replayed:
        return positives
    ones = positives.proposals.new_ones(positives.labels.shape[0])
    extra = [box_rows(rows, num_classes) for rows in replayed]
    return BoxRows(
        labels=torch.cat([positives.labels, *(rows.labels for rows in extra)]),
        proposals=torch.cat([positives.proposals, *(rows.proposals for rows in extra)]),
        gt_boxes=torch.cat([positives.gt_boxes, *(rows.gt_boxes for rows in extra)]),
        weight=torch.cat([ones, *(rows.weight for rows in extra if rows.weight is not None)]),
        normaliser=positives.normaliser + sum((rows.weight > 0).sum() for rows in replayed),
    )


def box_rows(rows: ReplayRows, num_classes: int) -> BoxRows:
    """Replayed rows as rows of the box regressor, with a mean of their own. Background rows have weight 0."""
    foreground = rows.labels < num_classes
    return BoxRows(
        labels=rows.labels.clamp(max=num_classes - 1),
        proposals=rows.proposals,
        # the object of a background row is meaningless and might turn the gradient of its zero loss into NaN
        gt_boxes=torch.where(foreground[:, None], rows.gt_boxes, rows.proposals),
        weight=rows.weight.to(rows.proposals.dtype) * foreground,
        normaliser=(rows.weight > 0).sum().clamp(min=1),
    )


def all_rows(current: RegionRows, replayed: Sequence[ReplayRows], features: Tensor) -> RegionRows:
    """This step's rows and the replayed ones in one, with ``features`` (R + M, D) at level ``"embedded"``."""
    everything = [current, *replayed]
    return RegionRows(
        features=features,
        labels=torch.cat([rows.labels for rows in everything]),
        proposals=torch.cat([rows.proposals for rows in everything]),
        gt_boxes=torch.cat([rows.gt_boxes for rows in everything]),
        gt_index=torch.cat([rows.gt_index for rows in everything]),
        image_index=torch.cat([rows.image_index for rows in everything]),
    )


def _without_replaced(labels: Tensor, logits: Tensor, replayed: Sequence[ReplayRows]) -> Tensor:
    """(R,) 0 for this step's rows that give way to replayed ones, else 1."""
    count = labels.shape[0]
    weight = logits.new_ones(count + 1)  # the last slot takes what replaces nothing (-1)
    for rows in replayed:
        if rows.replaces is not None:
            weight[rows.replaces] = 0.0
    return weight[:count]


def _first_weight(rows: ReplayRows, logits: Tensor) -> Tensor:
    weight = rows.weight.to(logits.dtype)
    return weight if rows.second_weight is None else weight * (1 - rows.second_weight)


def _second_term(
    loss: ClassificationLoss,
    logits: Tensor,
    rows: ReplayRows,
    normaliser: Tensor | float,
    generator: torch.Generator | None,
) -> Tensor:
    """The share of the second labels; a row is counted in the loss's state once, with its first label."""
    if rows.second_labels is None or rows.second_weight is None:
        return logits.new_zeros(())
    weight = rows.weight.to(logits.dtype) * rows.second_weight
    return loss(  # type: ignore[no-any-return]
        logits, rows.second_labels, weight=weight, normaliser=normaliser, update_state=False, generator=generator
    )


def _both_terms(
    loss: ClassificationLoss,
    logits: Tensor,
    rows: ReplayRows,
    normaliser: Tensor | float,
    update_state: bool,
    generator: torch.Generator | None,
) -> Tensor:
    first: Tensor = loss(
        logits,
        rows.labels,
        weight=_first_weight(rows, logits),
        normaliser=normaliser,
        update_state=update_state,
        generator=generator,
    )
    return first + _second_term(loss, logits, rows, normaliser, generator)
