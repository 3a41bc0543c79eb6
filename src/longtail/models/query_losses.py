"""The losses of a set-prediction detector: matched queries learn an object, all others that there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from longtail.losses.base import ClassificationLoss
from longtail.losses.boxes import GIoULoss, L1Loss
from longtail.losses.focal import FocalLoss
from longtail.losses.state import shared_normalisers
from longtail.models.query_matching import MatchCost, Matches, match
from longtail.schema.errors import UsageError


@dataclass(frozen=True)
class Objects:
    """The objects of a batch.

    Attributes:
        labels: (G,) in 0..C-1, those of all pictures after each other.
        boxes: (G, 4) centre, width and height in shares of their picture.
        counts: objects of each picture.
        chosen: (G,) bool, those that have a loss; None = all.
    """

    labels: Tensor
    boxes: Tensor
    counts: list[int]
    chosen: Tensor | None = None

    @classmethod
    def of(cls, targets: Sequence[Mapping[str, Any]]) -> Objects:
        """From ``boxes`` (g, 4), corners in pixels, ``labels`` (g,), ``input_size`` (height, width) and, if some
        objects have no loss, ``chosen`` (g,)."""
        shares = [target["boxes"] / target["boxes"].new_tensor(target["input_size"][::-1] * 2) for target in targets]
        return cls(
            torch.cat([target["labels"] for target in targets]),
            box_convert(torch.cat(shares).float(), "xyxy", "cxcywh"),
            [len(own) for own in shares],
            torch.cat([target["chosen"] for target in targets]) if targets and "chosen" in targets[0] else None,
        )


@dataclass(frozen=True)
class QueryOutputs:
    """What a set-prediction detector says of a batch of B pictures.

    Attributes:
        logits: (B, Q, K) per decoder layer.
        boxes: (B, Q, 4) per decoder layer; centre, width and height in shares of the picture.
        proposal_logits: (B, P) whether there is an object; None without proposals.
        proposal_boxes: (B, P, 4) as ``boxes``.
    """

    logits: list[Tensor]
    boxes: list[Tensor]
    proposal_logits: Tensor | None = None
    proposal_boxes: Tensor | None = None


class QueryCriterion(nn.Module):
    """Set-prediction losses of all layers (Zhu et al., Deformable DETR, ICLR 2021).

    Every decoder layer, and the encoder's proposals, are matched with the objects on their own. Matched queries have
    their object's label, all others are background; the sum of the classification loss over all queries, and those of
    L1 and GIoU over the matched ones, are divided by the number of matched queries of all processes, at least 1. The
    layers count alike. The encoder's proposals only learn whether there is an object, by focal loss; neither they nor
    any layer but the last see or change the state of the classification loss.

    Args:
        num_classes: C.
        classification_loss: one that declares the head ``"query"``.
        classification_weight: factor of the classification loss, in all decoder layers.
        proposal_weight: factor of the proposals' focal loss.
        l1_weight, giou_weight: factors of the box losses.
        cost: of the matching.
        repeats: queries per object; 1 = one to one.

    Raises:
        UsageError: the loss is not for queries.
    """

    def __init__(
        self,
        num_classes: int,
        classification_loss: ClassificationLoss,
        *,
        classification_weight: float = 2.0,
        proposal_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        cost: MatchCost | None = None,
        repeats: int = 1,
    ) -> None:
        super().__init__()
        if "query" not in classification_loss.heads:
            raise UsageError(
                f"{type(classification_loss).__name__} is a loss for {', '.join(sorted(classification_loss.heads))} "
                "heads, not for the query head of deformable_detr; use FocalLoss, SigmoidCrossEntropy, "
                "EqualizedFocalLoss, EqualizationLossV2, FederatedLoss or, over sigmoids, ClassBalancedLoss"
            )
        self.num_classes = num_classes
        self.classification_loss = classification_loss
        self.classification_weight = classification_weight
        self.proposal_weight = proposal_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.cost = MatchCost() if cost is None else cost
        self.repeats = repeats
        self.objectness_loss = FocalLoss(1)
        self.l1 = L1Loss()
        self.giou = GIoULoss(eps=1e-9)  # of boxes in shares of the picture

    def forward(
        self,
        outputs: QueryOutputs,
        targets: Sequence[Mapping[str, Any]],
        *,
        generator: torch.Generator | None = None,
        update_state: bool = False,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses by name, and the labels (B * Q,) of the last layer's queries.

        Args:
            outputs: of one batch.
            targets: per picture ``boxes``, ``labels``, ``input_size`` and, if only some classes are known of it,
                ``class_mask`` (C,) bool, and ``chosen`` (g,) bool if some objects have no loss: all are matched, but
                queries of the others count nowhere.
            generator: of a loss that draws.
            update_state: whether the classification loss may change its state.

        Returns:
            ``loss_classifier``, ``loss_l1`` and ``loss_giou`` of the last layer, ``loss_auxiliary`` of all layers
            before it if there are any, ``loss_proposal`` of the proposals if there are any.
        """
        objects = Objects.of(targets)
        matches = self.match(outputs, objects)
        ignored = [None if objects.chosen is None else own.others for own in matches]
        counts: list[Tensor | float] = [float(len(own.rows)) for own in matches]
        normalisers = shared_normalisers(counts, device=outputs.boxes[0].device)
        mask = _class_mask(targets, outputs.boxes[0].shape[1])
        layers = len(outputs.logits)
        terms, labels = [], objects.labels
        for layer in range(layers):
            own = matches[layer]
            logits = outputs.logits[layer].flatten(0, 1)
            labels = objects.labels.new_full((len(logits),), self.num_classes)
            labels = labels.scatter(0, own.rows, objects.labels[own.objects])
            classified = self.classification_loss(
                logits,
                labels,
                weight=_row_weight(ignored[layer], logits),
                class_mask=mask,
                normaliser=normalisers[layer],
                update_state=update_state and layer == layers - 1,
                generator=generator,
            )
            boxes = self._box_losses(outputs.boxes[layer], objects, own, normalisers[layer])
            terms.append((self.classification_weight * classified, *boxes))
        losses = dict(zip(("loss_classifier", "loss_l1", "loss_giou"), terms[-1], strict=True))
        if layers > 1:
            losses["loss_auxiliary"] = torch.stack([term for layer in terms[:-1] for term in layer]).sum()
        if outputs.proposal_logits is not None and outputs.proposal_boxes is not None:
            rows = outputs.proposal_logits.reshape(-1, 1)
            background = torch.ones(len(rows), dtype=torch.int64, device=rows.device)
            found = background.scatter(0, matches[-1].rows, 0)
            objectness = self.objectness_loss(
                rows, found, weight=_row_weight(ignored[-1], rows), normaliser=normalisers[-1]
            )
            l1, giou = self._box_losses(outputs.proposal_boxes, objects, matches[-1], normalisers[-1])
            losses["loss_proposal"] = self.proposal_weight * objectness + l1 + giou
        return losses, labels

    @torch.no_grad()
    def object_queries(self, outputs: QueryOutputs, objects: Objects) -> Tensor:
        """(L, G) row of the query among the B * Q that every decoder layer matches with every object one to one; -1 for
        objects that are not chosen, or for which there is no query left."""
        alone = QueryOutputs(outputs.logits, outputs.boxes)
        matches = self.match(alone, objects, repeats=1)
        rows = objects.labels.new_full((len(matches), len(objects.labels)), -1)
        for row, own in zip(rows, matches, strict=True):
            row[own.objects] = own.rows
        return rows

    @torch.no_grad()
    def match(self, outputs: QueryOutputs, objects: Objects, *, repeats: int | None = None) -> list[Matches]:
        """The matches of every decoder layer, and last those of the proposals if there are any; with so many queries
        per object, None = as in training. Queries of objects that are not chosen are ``others``."""
        logits = torch.stack(outputs.logits)
        scores = self.classification_loss.scores(logits.flatten(0, 2))[:, : self.num_classes]
        scores = scores.reshape(*logits.shape[:3], self.num_classes)
        boxes = torch.stack(outputs.boxes)
        labels, own_boxes = torch.split(objects.labels, objects.counts), torch.split(objects.boxes, objects.counts)
        pictures = range(len(objects.counts))
        found = [self.cost(scores[:, b], boxes[:, b], labels[b], own_boxes[b]) for b in pictures]
        costs = [[found[b][layer] for b in pictures] for layer in range(len(logits))]
        if outputs.proposal_logits is not None and outputs.proposal_boxes is not None:
            score, proposed = outputs.proposal_logits.float().sigmoid()[None, :, :, None], outputs.proposal_boxes[None]
            zeros = [torch.zeros_like(own) for own in labels]
            costs.append([self.cost(score[:, b], proposed[:, b], zeros[b], own_boxes[b])[0] for b in pictures])
        return match(costs, repeats=self.repeats if repeats is None else repeats, chosen=objects.chosen)

    def _box_losses(
        self, predicted: Tensor, objects: Objects, own: Matches, normaliser: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """L1 and GIoU of the matched boxes, with their factors."""
        found, wanted = predicted.flatten(0, 1)[own.rows], objects.boxes[own.objects]
        l1 = self.l1(found, wanted, normaliser=normaliser)
        corners = box_convert(found, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy")
        return self.l1_weight * l1, self.giou_weight * self.giou(*corners, normaliser=normaliser)


def _row_weight(ignored: Tensor | None, rows: Tensor) -> Tensor | None:
    """(N,) 0 for the ignored rows, 1 for the others; None = all count."""
    return None if ignored is None else rows.new_ones(len(rows)).index_fill(0, ignored, 0.0)


def _class_mask(targets: Sequence[Mapping[str, Any]], queries: int) -> Tensor | None:
    """(B * Q, C): the classes that take part in the picture; None = all in all pictures."""
    if not any("class_mask" in target for target in targets):
        return None
    return torch.stack([target["class_mask"] for target in targets]).repeat_interleave(queries, dim=0)
