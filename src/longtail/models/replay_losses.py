"""Losses of a region head whose batch holds replayed rows (seam 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtail.losses.base import ClassificationLoss
from longtail.losses.state import at_least_one, shared_normalisers
from longtail.replay.base import RegionRows, ReplayRows


@dataclass(frozen=True)
class BoxRows:
    """Rows that train the box regressor: labels (P,), proposals and gt_boxes (P, 4), weight (P,) or None = all 1, and
    the number of rows that their losses are averaged over."""

    labels: Tensor
    proposals: Tensor
    gt_boxes: Tensor
    weight: Tensor | None
    count: Tensor | float


@dataclass(frozen=True)
class Normalisers:
    """What sums of row losses are divided by: those of this step's rows with the replayed rows that join them, and by
    replay part those of rows with a mean of their own."""

    classification: Tensor | float
    box: Tensor | float
    separate: Sequence[Tensor | float]
    separate_box: Sequence[Tensor | float]


def region_normalisers(
    loss: ClassificationLoss,
    labels: Tensor,
    replayed: Mapping[int, ReplayRows],
    box: BoxRows,
    separate_box: Mapping[int, BoxRows],
    *,
    parts: int,
) -> Normalisers:
    """The divisors of one step, over all processes, in one message.

    Every process sends a number for every one of the ``parts`` replay parts, 0 where the part gave no rows or its rows
    have no mean of their own. Rows whose mean is this process's alone are divided by their own number.
    """
    separate = {part: rows for part, rows in replayed.items() if not rows.joins_normaliser}
    own = [
        loss.normaliser_count(separate[p].labels, separate[p].weight) if p in separate else 0.0 for p in range(parts)
    ]
    own_box = [separate_box[p].count if p in separate_box else 0.0 for p in range(parts)]
    counts = [_joint_count(loss, labels, list(replayed.values())), box.count, *own, *own_box]
    shared = shared_normalisers(counts, device=labels.device)
    divisors, box_divisors = shared[2 : 2 + parts], shared[2 + parts :]
    for part, rows in separate.items():
        if not rows.shares_mean:
            divisors[part], box_divisors[part] = at_least_one(own[part]), at_least_one(own_box[part])
    return Normalisers(shared[0], shared[1], divisors, box_divisors)


def _joint_count(loss: ClassificationLoss, labels: Tensor, replayed: Sequence[ReplayRows]) -> Tensor | float:
    """Rows in the mean over this step's rows and the replayed ones that join them."""
    if not replayed:
        return loss.normaliser_count(labels, None)
    joining = [rows for rows in replayed if rows.joins_normaliser]
    weights = torch.cat([_without_replaced(labels, replayed), *(rows.weight.float() for rows in joining)])
    return loss.normaliser_count(torch.cat([labels, *(rows.labels for rows in joining)]), weights)


def classification_losses(
    loss: ClassificationLoss,
    logits: Tensor,
    labels: Tensor,
    replayed: Mapping[int, ReplayRows],
    normalisers: Normalisers,
    *,
    update_state: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor | None]:
    """The loss of this step's rows with the replayed rows that join them, and of those that stay apart.

    Args:
        logits: (R + M, num_logits), this step's R rows and then the rows of every entry of ``replayed`` in order.
        labels: (R,) of this step's rows.
        replayed: rows by replay part.
        normalisers: the divisors.

    Returns:
        The mean over the R rows and the joining rows; the sum of the separate means, each times its ``loss_weight``,
        or None if there are no separate rows.
    """
    normaliser = normalisers.classification
    if not replayed:
        return loss(logits, labels, normaliser=normaliser, update_state=update_state, generator=generator), None
    added = list(replayed.values())
    current, *parts = torch.split(logits, [labels.shape[0], *(rows.labels.shape[0] for rows in added)])
    joining = [(part, rows) for part, rows in zip(parts, added, strict=True) if rows.joins_normaliser]
    own_weight = _without_replaced(labels, added).to(logits.dtype)

    # rows that may change the loss's state go with this step's own, the others through a call that may not
    moving = [(part, rows) for part, rows in joining if rows.updates_loss_state]
    still = [(part, rows) for part, rows in joining if not rows.updates_loss_state]
    together = loss(
        logits if len(moving) == len(added) else torch.cat([current, *(part for part, _ in moving)]),
        torch.cat([labels, *(rows.labels for _, rows in moving)]),
        weight=torch.cat([own_weight, *(_first_weight(rows, logits) for _, rows in moving)]),
        normaliser=normaliser,
        update_state=update_state,
        generator=generator,
    )
    for part, rows in moving:
        together = together + _second_term(loss, part, rows, normaliser, generator)
    for part, rows in still:
        together = together + _both_terms(loss, part, rows, normaliser, generator)

    separate: Tensor | None = None
    for own_logits, (index, rows) in zip(parts, replayed.items(), strict=True):
        if not rows.joins_normaliser:
            mean = _both_terms(loss, own_logits, rows, normalisers.separate[index], generator)
            term = rows.loss_weight * mean
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
        count=positives.count + sum((rows.weight > 0).sum() for rows in replayed),
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
        count=(rows.weight > 0).sum(),
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


def _without_replaced(labels: Tensor, replayed: Sequence[ReplayRows]) -> Tensor:
    """(R,) 0 for this step's rows that give way to replayed ones, else 1."""
    count = labels.shape[0]
    weight = torch.ones(count + 1, device=labels.device)  # the last slot takes what replaces nothing (-1)
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
    generator: torch.Generator | None,
) -> Tensor:
    """The loss of rows that change no state: not every rank has them, so nothing may wait for the others."""
    first: Tensor = loss(
        logits,
        rows.labels,
        weight=_first_weight(rows, logits),
        normaliser=normaliser,
        update_state=False,
        generator=generator,
    )
    return first + _second_term(loss, logits, rows, normaliser, generator)
