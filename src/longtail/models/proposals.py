"""The region proposal network, with matcher, sampler, box loss and proposal filter as seams (seam 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers
from torchvision.ops import batched_nms, clip_boxes_to_image

from longtail.losses.base import BoxLoss
from longtail.losses.cells import full_precision
from longtail.losses.state import shared_normalisers
from longtail.models.matching import Matcher
from longtail.sampling.regions import RegionSampler

Maps = Mapping[str, Tensor]


@dataclass(frozen=True)
class Proposals:
    """Class-agnostic boxes, one entry per image: ``boxes`` (P, 4), corners in pixels of the network input, and their
    objectness ``scores`` (P,) in 0..1, highest first. Without gradient."""

    boxes: list[Tensor]
    scores: list[Tensor]


@dataclass(frozen=True)
class TopN:
    """How many boxes are kept: ``before`` the filter on every level, ``after`` it on every image."""

    before: int
    after: int


TOP_IN_LOSSES = TopN(before=2000, after=2000)
TOP_IN_DETECT = TopN(before=1000, after=1000)


class ProposalFilter(ABC):
    """Decides which candidates of one image become proposals."""

    @abstractmethod
    def __call__(
        self,
        boxes: Tensor,
        scores: Tensor,
        levels: Tensor,
        image_size: tuple[int, int],
        gt_boxes: Tensor | None = None,
        gt_labels: Tensor | None = None,
    ) -> Tensor:
        """Indices of the boxes to keep, highest score first.

        Args:
            boxes: (K, 4) corners in pixels, already clipped to the image.
            scores: (K,) objectness in 0..1.
            levels: (K,) int64, the pyramid level every box comes from.
            image_size: (height, width) in pixels, without padding.
            gt_boxes, gt_labels: (G, 4) and (G,) in training, None in detection.
        """


class LevelNMS(ProposalFilter):
    """Non-maximum suppression on every level by itself.

    Args:
        nms_threshold: a box gives way to a better one of its level if their IoU is above this.
        min_size: boxes with a side shorter than this many pixels are dropped.
        score_threshold: so are boxes with a lower score.
    """

    def __init__(self, nms_threshold: float = 0.7, *, min_size: float = 1e-3, score_threshold: float = 0.0) -> None:
        self.nms_threshold = nms_threshold
        self.min_size = min_size
        self.score_threshold = score_threshold

    def __call__(
        self,
        boxes: Tensor,
        scores: Tensor,
        levels: Tensor,
        image_size: tuple[int, int],
        gt_boxes: Tensor | None = None,
        gt_labels: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`ProposalFilter.__call__`."""
        kept = ((boxes[:, 2:] - boxes[:, :2]) >= self.min_size).all(dim=1)
        if self.score_threshold > 0:
            kept &= scores >= self.score_threshold
        candidates = torch.where(kept)[0]
        best = batched_nms(boxes[candidates], scores[candidates], levels[candidates], self.nms_threshold)
        return candidates[best]


class ProposalNetwork(nn.Module):
    """Scores anchors and shifts them towards objects (Ren et al., 2015); parameters are named as in torchvision.

    Args:
        head: maps -> objectness logits and box deltas on every level.
        anchor_generator: the anchors of every level.
        matcher: anchors with objects.
        sampler: chooses the anchors that are learnt from.
        box_loss: between predicted and target deltas or boxes, divided by the number of sampled anchors (with several
            processes, both losses by their share of the anchors of all processes).
        proposal_filter: default :class:`LevelNMS` with threshold 0.7.
        top_in_losses, top_in_detect: how many proposals ``losses`` and ``detect`` keep.
        objectness_weight, box_weight: factors of the two losses.
    """

    def __init__(
        self,
        head: RPNHead,
        anchor_generator: AnchorGenerator,
        *,
        matcher: Matcher,
        sampler: RegionSampler,
        box_loss: BoxLoss,
        proposal_filter: ProposalFilter | None = None,
        top_in_losses: TopN = TOP_IN_LOSSES,
        top_in_detect: TopN = TOP_IN_DETECT,
        objectness_weight: float = 1.0,
        box_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.head = head
        self.anchor_generator = anchor_generator
        self.matcher = matcher
        self.sampler = sampler
        self.box_loss = box_loss
        self.proposal_filter = LevelNMS() if proposal_filter is None else proposal_filter
        self.top_in_losses = top_in_losses
        self.top_in_detect = top_in_detect
        self.objectness_weight = objectness_weight
        self.box_weight = box_weight
        self.box_coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))

    def losses(
        self,
        images: ImageList,
        maps: Maps,
        targets: Sequence[Mapping[str, Any]],
        *,
        generators: Sequence[torch.Generator | None] | None = None,
        update_state: bool | None = None,
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Proposals of every image and the losses ``loss_objectness`` and ``loss_rpn_box_reg``.

        Args:
            images: the batch.
            maps: feature maps, every one of which has anchors.
            targets: ``boxes`` (G, 4), corners in pixels of the batch, and ``labels`` (G,).
            generators: one source of draws per image, on the maps' device.
            update_state: whether the box loss may change its state; None follows ``self.training``.
        """
        logits, deltas, anchors, per_level = self._predict(images, maps)
        proposals = self._propose(logits, deltas, anchors, per_level, images, self.top_in_losses, targets)
        return proposals, self._losses(logits, deltas, anchors, targets, generators, update_state)

    def detect(self, images: ImageList, maps: Maps, *, top: TopN | None = None) -> Proposals:
        """Proposals of every image, ``top_in_detect`` of them unless ``top`` says otherwise."""
        logits, deltas, anchors, per_level = self._predict(images, maps)
        return self._propose(
            logits, deltas, anchors, per_level, images, self.top_in_detect if top is None else top, None
        )

    def _predict(self, images: ImageList, maps: Maps) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Logits (B, N) and deltas (B, N, 4) of all anchors (N, 4), and the anchors of every level."""
        per_map_logits, per_map_deltas = self.head(list(maps.values()))
        per_level = [logits[0].numel() for logits in per_map_logits]
        anchors = make_anchors(self.anchor_generator, images, maps)
        logits, deltas = concat_box_prediction_layers(per_map_logits, per_map_deltas)
        batch = len(images.image_sizes)
        return (
            full_precision(logits).reshape(batch, -1),
            full_precision(deltas).reshape(batch, -1, 4),
            anchors,
            per_level,
        )

    @torch.no_grad()
    def _propose(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        per_level: list[int],
        images: ImageList,
        top: TopN,
        targets: Sequence[Mapping[str, Any]] | None,
    ) -> Proposals:
        batch = logits.shape[0]
        chosen, levels, offset = [], [], 0
        for level, part in enumerate(torch.split(logits, per_level, dim=1)):
            best = part.topk(min(top.before, part.shape[1]), dim=1).indices
            chosen.append(best + offset)
            levels.append(torch.full((best.shape[1],), level, dtype=torch.int64, device=best.device))
            offset += part.shape[1]
        index, level_of = torch.cat(chosen, dim=1), torch.cat(levels)

        scores = logits.gather(1, index).sigmoid()
        picked = deltas.gather(1, index[:, :, None].expand(-1, -1, 4)).reshape(-1, 4)
        boxes = self.box_coder.decode_single(picked, anchors[index.reshape(-1)]).reshape(batch, -1, 4)

        result = Proposals([], [])
        for image, size in enumerate(images.image_sizes):
            target = None if targets is None else targets[image]
            clipped = clip_boxes_to_image(boxes[image], size)
            kept = self.proposal_filter(
                clipped,
                scores[image],
                level_of,
                size,
                gt_boxes=None if target is None else target["boxes"],
                gt_labels=None if target is None else target["labels"],
            )[: top.after]
            result.boxes.append(clipped[kept])
            result.scores.append(scores[image][kept])
        return result

    def _losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        targets: Sequence[Mapping[str, Any]],
        generators: Sequence[torch.Generator | None] | None,
        update_state: bool | None,
    ) -> dict[str, Tensor]:
        positives, negatives, matched_boxes = [], [], []
        for image, target in enumerate(targets):
            gt_boxes = target["boxes"].to(anchors.dtype)
            positive, negative, matched = self._sample(
                logits[image], anchors, gt_boxes, target["labels"], None if generators is None else generators[image]
            )
            offset = image * anchors.shape[0]
            positives.append(positive + offset)
            negatives.append(negative + offset)
            matched_boxes.append(gt_boxes[matched[positive]])
        positive, negative = torch.cat(positives), torch.cat(negatives)
        sampled = positive.shape[0] + negative.shape[0]
        (normaliser,) = shared_normalisers([sampled], device=logits.device)

        flat = logits.flatten()
        objectness = F.binary_cross_entropy_with_logits(
            torch.cat((flat[positive], flat[negative])),
            torch.cat((flat.new_ones(positive.shape[0]), flat.new_zeros(negative.shape[0]))),
            reduction="sum",
        )
        predicted = deltas.reshape(-1, 4)[positive]
        own_anchors, target_boxes = anchors[positive % anchors.shape[0]], torch.cat(matched_boxes)
        box = box_loss_between(
            self.box_loss, self.box_coder, predicted, own_anchors, target_boxes, normaliser=normaliser,
            update_state=update_state,
        )  # fmt: skip
        return {
            "loss_objectness": objectness / normaliser * self.objectness_weight,
            "loss_rpn_box_reg": box * self.box_weight,
        }

    @torch.no_grad()
    def _sample(
        self,
        logits: Tensor,
        anchors: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the chosen positives and negatives of one image, and what every anchor is matched with."""
        iou, matched = self.matcher(gt_boxes, anchors)

        def loss_of(indices: Tensor) -> Tensor:
            wanted = (matched[indices] >= 0).to(logits.dtype)
            return F.binary_cross_entropy_with_logits(logits[indices], wanted, reduction="none")

        needed = loss_of if self.sampler.needs_loss else None
        positive, negative = self.sampler(iou, matched, gt_labels, generator, needed)
        return positive, negative, matched


def make_anchors(generator: AnchorGenerator, images: ImageList, maps: Maps) -> Tensor:
    """Anchors (N, 4) of the batch, corners in pixels: the same for every image of it.

    In the dtype of :func:`box_dtype`.
    """
    blank = torch.empty((), dtype=box_dtype(maps), device=next(iter(maps.values())).device)
    shapes = [blank.expand(1, 1, *feature.shape[-2:]) for feature in maps.values()]
    anchors: Tensor = generator(ImageList(images.tensors, images.image_sizes[:1]), shapes)[0]
    return anchors


def box_dtype(maps: Maps) -> torch.dtype:
    """Number format of boxes: that of the maps, but float32 even if the maps are in half precision, in which
    coordinates above 256 would be rounded to whole pixels and worse."""
    return torch.float64 if next(iter(maps.values())).dtype == torch.float64 else torch.float32


def box_loss_between(
    box_loss: BoxLoss,
    coder: BoxCoder,
    deltas: Tensor,
    references: Tensor,
    target_boxes: Tensor,
    *,
    weight: Tensor | None = None,
    normaliser: Tensor | float | None = None,
    update_state: bool | None = None,
) -> Tensor:
    """The box loss in the space in which it is defined.

    Args:
        deltas: (P, 4) predicted offsets from ``references``.
        references: (P, 4) anchors or proposals, corners in pixels.
        target_boxes: (P, 4) matched objects.
        weight, normaliser, update_state: as in :meth:`BoxLoss.forward`.
    """
    if box_loss.space == "boxes":
        predicted, target = coder.decode_single(deltas, references), target_boxes
    else:
        predicted, target = deltas, coder.encode_single(target_boxes, references)
    loss: Tensor = box_loss(predicted, target, weight, normaliser, update_state=update_state)
    return loss
