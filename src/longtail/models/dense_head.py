"""The head of a one-stage detector: classes and boxes of all anchors of all levels, and its losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from longtail.losses.auxiliary import Record
from longtail.losses.base import BoxLoss, ClassificationLoss
from longtail.losses.cells import full_precision
from longtail.losses.state import shared_normalisers
from longtail.models.atss import ATSSMatcher
from longtail.models.classifiers import Classifier
from longtail.models.dense_layers import ConvClassifier, TowerNorm, by_anchor, normal_layer, tower
from longtail.models.matching import BETWEEN, Matcher
from longtail.models.proposals import Maps, box_loss_between, make_anchors
from longtail.schema.errors import UsageError

Quality = Literal["none", "iou"]


@dataclass(frozen=True)
class DenseOutputs:
    """What the head says of all anchors, one entry per level: ``logits`` (B, n, K), ``deltas`` (B, n, 4) and
    ``quality`` (B, n), logits of the expected IoU, or None."""

    logits: list[Tensor]
    deltas: list[Tensor]
    quality: list[Tensor] | None


@dataclass(frozen=True)
class Assigned:
    """What the anchors of all images (R = B * N) are to learn: ``labels`` (R,), background = C; ``weight`` (R,), 0 =
    left out, or None where all count; the ``positive`` rows and their ``gt_boxes`` (P, 4)."""

    labels: Tensor
    weight: Tensor | None
    positive: Tensor
    gt_boxes: Tensor


class DenseHead(nn.Module):
    """Classifies all anchors and moves their boxes (Lin et al., RetinaNet, ICCV 2017).

    Losses: ``loss_classifier``, divided by the number of positive anchors, or by what the loss says of dense heads;
    ``loss_box_reg``, summed over positives and divided by their number; with ``quality="iou"`` also ``loss_quality``,
    the binary cross-entropy between a further output and the IoU of the predicted box, likewise. All numbers are those
    of all processes.

    Memory: an 800 x 1333 picture has about 200,000 anchors (nine per place), and with 1,203 classes one value per
    anchor and class in float32 is 1 GB a picture. The logits exist twice, by level and in one piece, and a focal loss
    keeps four to six more such tensors for its gradient; two anchors per place (ATSS) need a quarter of it. Anchors
    that are left out get weight 0 instead of being cut out, which would be one more copy.

    Args:
        num_classes: C.
        channels: of the maps.
        anchor_generator: the anchors of every level, as many at every place of all levels.
        classification_loss, box_loss: seams 6 and 7.
        matcher: anchors with objects (seam 2).
        layers, norm: convolutions of each of the two towers, and what follows each of them.
        quality: ``"iou"`` adds an output that learns the IoU of the box; scores are then the geometric mean of the
            class's score and the expected IoU.
        box_weights: factors of the encoded dx, dy, dw, dh.
        classification_weight, box_weight, quality_weight: factors of the losses.

    Raises:
        UsageError: the loss is not one for dense heads.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        anchor_generator: AnchorGenerator,
        classification_loss: ClassificationLoss,
        box_loss: BoxLoss,
        matcher: Matcher | ATSSMatcher,
        layers: int = 4,
        norm: TowerNorm = "none",
        quality: Quality = "none",
        box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
        classification_weight: float = 1.0,
        box_weight: float = 1.0,
        quality_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_dense_loss(classification_loss, num_classes)
        if quality not in ("none", "iou") or norm not in ("none", "group"):
            raise ValueError(f"quality is 'none' or 'iou' and norm 'none' or 'group', got {quality!r} and {norm!r}")
        per_place = anchor_generator.num_anchors_per_location()
        if len(set(per_place)) != 1:
            raise UsageError(f"all levels must have as many anchors per place, got {per_place}")
        self.num_classes = num_classes
        self.anchor_generator = anchor_generator
        self.class_tower = tower(channels, layers, norm)
        self.box_tower = tower(channels, layers, norm)
        self.classifier: Classifier = ConvClassifier(channels, classification_loss.num_logits, per_place[0])
        self.classifier.initialise(classification_loss.bias_prior)
        self.regressor = normal_layer(nn.Conv2d(channels, 4 * per_place[0], 3, padding=1))
        self.quality = normal_layer(nn.Conv2d(channels, per_place[0], 3, padding=1)) if quality == "iou" else None
        self.classification_loss = classification_loss
        self.box_loss = box_loss
        self.matcher = matcher
        self.box_coder = BoxCoder(box_weights)
        self.classification_weight = classification_weight
        self.box_weight = box_weight
        self.quality_weight = quality_weight
        self.adjustment: nn.Module | None = None  # of the logits, when detecting; see longtail.models.adjustment

    def forward(self, maps: Maps) -> DenseOutputs:
        """Logits, deltas and quality of all anchors."""
        logits, deltas, quality = [], [], []
        for features in maps.values():
            moved = self.box_tower(features)
            logits.append(self.classifier(self.class_tower(features)))
            deltas.append(by_anchor(self.regressor(moved), 4))
            if self.quality is not None:
                quality.append(by_anchor(self.quality(moved), 1)[:, :, 0])
        return DenseOutputs(logits, deltas, quality if self.quality is not None else None)

    def losses(
        self,
        images: ImageList,
        maps: Maps,
        targets: Sequence[Mapping[str, Any]],
        *,
        generator: torch.Generator | None = None,
        record: Record | None = None,
        update_state: bool | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one step.

        Args:
            images: the batch.
            maps: feature maps, every one of which has anchors.
            targets: per image ``boxes`` (G, 4) in pixels of the batch and ``labels`` (G,) in 0..C-1, and if wanted
                ``class_mask`` (C,) bool, False = the class takes no part in this image.
            generator: source of a stochastic loss's draws.
            record: gets ``"dense_logits"``, a list of (B, n, K) by level, and ``"dense_labels"`` (B, N).
            update_state: whether the losses may change their state; None follows ``self.training``.
        """
        outputs = self(maps)
        anchors = make_anchors(self.anchor_generator, images, maps)
        per_level = [level.shape[1] for level in outputs.logits]
        assigned = self.assign(anchors, per_level, targets)
        logits = full_precision(torch.cat(outputs.logits, dim=1)).flatten(0, 1)
        if record is not None:
            record.keep("dense_logits", outputs.logits)
            record.keep("dense_labels", assigned.labels.reshape(len(targets), -1))
        count = self.classification_loss.dense_normaliser_count(assigned.labels, assigned.weight)
        positives = assigned.positive.shape[0]
        normaliser, box_normaliser = shared_normalisers([count, positives], device=logits.device)
        classification = self.classification_loss(
            logits,
            assigned.labels,
            weight=assigned.weight,
            class_mask=_class_mask(targets, anchors.shape[0], self.num_classes),
            normaliser=normaliser,
            update_state=update_state,
            generator=generator,
        )
        deltas = full_precision(torch.cat(outputs.deltas, dim=1)).flatten(0, 1)[assigned.positive]
        own = anchors[assigned.positive % anchors.shape[0]]
        box = box_loss_between(
            self.box_loss, self.box_coder, deltas, own, assigned.gt_boxes, normaliser=box_normaliser,
            update_state=update_state,
        )  # fmt: skip
        losses = {
            "loss_classifier": classification * self.classification_weight,
            "loss_box_reg": box * self.box_weight,
        }
        if outputs.quality is not None:
            quality = full_precision(torch.cat(outputs.quality, dim=1)).flatten()[assigned.positive]
            with torch.no_grad():
                reached = paired_iou(self.box_coder.decode_single(deltas, own), assigned.gt_boxes)
            terms = F.binary_cross_entropy_with_logits(quality, reached, reduction="sum")
            losses["loss_quality"] = terms / box_normaliser * self.quality_weight
        return losses

    @torch.no_grad()
    def assign(self, anchors: Tensor, per_level: Sequence[int], targets: Sequence[Mapping[str, Any]]) -> Assigned:
        """What the anchors (N, 4) of every image learn."""
        labels, left_out, boxes = [], [], []
        for target in targets:
            gt_boxes, gt_labels = target["boxes"].to(anchors.dtype), target["labels"]
            if isinstance(self.matcher, ATSSMatcher):
                _, matched = self.matcher(gt_boxes, anchors, per_level)
            else:
                _, matched = self.matcher(gt_boxes, anchors)
            # one more entry for anchors without an object
            padded = torch.cat((gt_labels, gt_labels.new_full((1,), self.num_classes)))
            index = torch.where(matched >= 0, matched, gt_labels.shape[0])
            labels.append(padded[index])
            left_out.append(matched == BETWEEN)
            boxes.append(gt_boxes[matched[matched >= 0]])
        label = torch.cat(labels)
        weight = None if isinstance(self.matcher, ATSSMatcher) else (~torch.cat(left_out)).to(anchors.dtype)
        return Assigned(label, weight, torch.where(label < self.num_classes)[0], torch.cat(boxes))

    def scores(self, logits: Tensor, quality: Tensor | None) -> Tensor:
        """(n, C) scores in 0..1 of anchors with logits (n, K) and quality (n,)."""
        logits = full_precision(logits)
        if self.adjustment is not None:
            logits = self.adjustment(logits)
        scores = self.classification_loss.scores(logits)[:, : self.num_classes]
        return scores if quality is None else (scores * full_precision(quality).sigmoid()[:, None]).sqrt()


def check_dense_loss(loss: ClassificationLoss, num_classes: int) -> None:
    """Refuse a loss that is not one for dense heads, or one for another number of classes."""
    name = type(loss).__name__
    if "dense" not in loss.heads:
        raise UsageError(
            f"{name} is a loss for {', '.join(sorted(loss.heads))} heads, not for the anchors of a one-stage detector "
            "('dense')"
        )
    if loss.num_classes != num_classes:
        raise UsageError(f"{name} was built for {loss.num_classes} classes, the detector has {num_classes}")


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU (P,) of box p of (P, 4) with box p of another (P, 4), corners in pixels."""
    sides = (first[:, 2:].minimum(second[:, 2:]) - first[:, :2].maximum(second[:, :2])).clamp(min=0)
    inner = sides.prod(dim=1)
    area = (first[:, 2:] - first[:, :2]).prod(dim=1) + (second[:, 2:] - second[:, :2]).prod(dim=1)
    return inner / (area - inner).clamp(min=1e-7)


def _class_mask(targets: Sequence[Mapping[str, Any]], anchors: int, num_classes: int) -> Tensor | None:
    """(R, C) bool, or None where no image leaves out a class."""
    if not any("class_mask" in target for target in targets):
        return None
    everything = targets[0]["labels"].new_ones(num_classes, dtype=torch.bool)
    rows = torch.stack([target.get("class_mask", everything) for target in targets])
    return rows[:, None].expand(-1, anchors, -1).flatten(0, 1)
