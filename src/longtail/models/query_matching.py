"""Which query of a set-prediction detector answers for which object (Carion et al., ECCV 2020, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from longtail.schema.errors import UsageError

MISSING = 'deformable_detr needs transformers and scipy: pip install "longtail[detr]"'


@dataclass(frozen=True)
class MatchCost:
    """What a pair of query and object costs.

    Attributes:
        classification: factor of the focal cost (alpha 0.25, gamma 2) of the object's class; published 2.
        l1: factor of the sum of absolute differences of centre, width and height, in shares of the picture;
            published 5.
        giou: factor of one minus the generalised IoU, which is the published cost plus a constant; published 2.
    """

    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0

    @torch.no_grad()
    def __call__(self, scores: Tensor, predicted: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
        """Costs (L, Q, G) of one picture.

        Args:
            scores: (L, Q, C) in 0..1, of L layers and Q queries.
            predicted: (L, Q, 4) centre, width and height in shares of the picture.
            labels: (G,) in 0..C-1.
            boxes: (G, 4) as ``predicted``.
        """
        own = scores[..., labels].float()
        positive = 0.25 * (1 - own) ** 2 * -(own + 1e-8).log()
        negative = 0.75 * own**2 * -(1 - own + 1e-8).log()
        predicted, boxes = predicted.float(), boxes.float()
        distance = torch.cdist(predicted, boxes.expand(len(predicted), -1, -1), p=1)
        giou = pairwise_giou(box_convert(predicted, "cxcywh", "xyxy"), box_convert(boxes, "cxcywh", "xyxy"))
        return self.classification * (positive - negative) + self.l1 * distance + self.giou * (1 - giou)


def pairwise_giou(predicted: Tensor, boxes: Tensor) -> Tensor:
    """Generalised IoU (..., Q, G) of corners (..., Q, 4) and (G, 4), in -1..1."""
    one, other = predicted[..., :, None, :], boxes[None, :, :]
    inner = (one[..., 2:].minimum(other[..., 2:]) - one[..., :2].maximum(other[..., :2])).clamp(min=0).prod(-1)
    enclosing = (one[..., 2:].maximum(other[..., 2:]) - one[..., :2].minimum(other[..., :2])).prod(-1)
    union = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1) - inner
    return inner / (union + 1e-9) - (enclosing - union) / (enclosing + 1e-9)


@dataclass(frozen=True)
class Matches:
    """The matched pairs of one layer, over all pictures.

    Attributes:
        rows: (M,) indices into the layer's queries, those of all pictures after each other.
        objects: (M,) indices into the objects of all pictures.
        others: (K,) rows matched with objects that have no loss.
    """

    rows: Tensor
    objects: Tensor
    others: Tensor


def match(costs: Sequence[Sequence[Tensor]], *, repeats: int = 1, chosen: Tensor | None = None) -> list[Matches]:
    """The cheapest one-to-one matching per layer and picture (Hungarian method), or one-to-many.

    All costs go to the host in one copy, and all indices come back in one.

    Args:
        costs: for every layer and picture (Q, G) costs; Q is the same for all pictures of a layer.
        repeats: queries per object, as long as there are enough for all objects of the picture.
        chosen: (objects of all pictures,) bool, those that have a loss; None = all. The others are matched, too.

    Returns:
        One entry per layer.

    Raises:
        UsageError: scipy is not installed.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    solve = _solver()
    matrices = [matrix for layer in costs for matrix in layer]
    device = matrices[0].device
    flat = [matrix.detach().flatten() for matrix in matrices]
    flat += [] if chosen is None else [chosen.to(flat[0].dtype)]
    on_host = torch.cat(flat).cpu().numpy()
    # a run that has diverged is stopped by its loss, not here
    on_host = np.nan_to_num(on_host, nan=1e6, posinf=1e6, neginf=-1e6)
    has_loss = None if chosen is None else on_host[len(on_host) - len(chosen) :] > 0
    parts, start = [], 0
    for layer in costs:
        pairs, first_row, first_object = [], 0, 0
        for matrix in layer:
            queries, objects = matrix.shape
            own = on_host[start : start + queries * objects].reshape(queries, objects)
            start += queries * objects
            times = min(repeats, max(queries // objects, 1)) if objects else 1
            row, column = solve(np.tile(own, (1, times)))
            pairs.append(np.stack([row + first_row, column % max(objects, 1) + first_object]))
            first_row, first_object = first_row + queries, first_object + objects
        both = np.concatenate(pairs, axis=1)
        mine = np.ones(both.shape[1], dtype=np.bool_) if has_loss is None else has_loss[both[1]]
        parts += [both[:, mine], both[:, ~mine]]
    indices = torch.from_numpy(np.concatenate(parts, axis=1)).to(device, torch.int64, non_blocking=True)
    found = torch.split(indices, [part.shape[1] for part in parts], dim=1)
    return [
        Matches(rows=kept[0], objects=kept[1], others=others[0])
        for kept, others in zip(found[::2], found[1::2], strict=True)
    ]


def _solver() -> Any:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise UsageError(MISSING) from error
    return linear_sum_assignment
