"""What Faster, Mask and Cascade R-CNN have in common: pictures, maps, proposals, regions, detections."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder

from longtail.losses.auxiliary import Record
from longtail.models.base import Detector
from longtail.models.postprocess import Inference, select_detections
from longtail.models.preprocess import ImageBatcher, image_generators, resize_boxes, step_generator
from longtail.models.proposals import Maps, ProposalNetwork, TopN, box_dtype
from longtail.models.proposer import CachedProposals, propose
from longtail.schema.errors import UsageError

Size = tuple[int, int]


@dataclass(frozen=True)
class Pyramid:
    """A batch after the backbone: ``maps`` by name, ``size`` (height, width) of the padded batch in pixels, and
    ``image_sizes``, those of its pictures without padding."""

    maps: Maps
    size: Size
    image_sizes: list[Size]


@dataclass(frozen=True)
class RegionPredictions:
    """What a region head says of the regions of all pictures, in their order: ``scores`` (N, C + 1), ``deltas``
    (N, 4 C) or (N, 4) from the regions' ``boxes`` (n, 4), one entry per picture, corners in pixels of the batch, and
    the ``coder`` that decodes them."""

    scores: Tensor
    deltas: Tensor
    boxes: list[Tensor]
    coder: BoxCoder


class TwoStageDetector(Detector):
    """A detector that proposes regions and then looks at each.

    Args:
        preprocess: pictures -> batch.
        backbone: batch (B, 3, H, W) -> {name: map}.
        rpn: maps -> proposals; or :class:`~longtail.models.proposer.CachedProposals`.
        inference: what becomes a detection.
    """

    def __init__(
        self,
        *,
        preprocess: ImageBatcher,
        backbone: nn.Module,
        rpn: ProposalNetwork | CachedProposals,
        inference: Inference | None = None,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.rpn = rpn
        self.inference = Inference() if inference is None else inference

    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        *,
        record: Record | None = None,
        update_state: bool | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one step: those of :meth:`region_losses`, ``loss_objectness`` and ``loss_rpn_box_reg``; without the
        last two if proposals are given.

        Args:
            images: (3, H, W) each, uint8 or floating point in 0..1, RGB, at training size.
            targets: per image ``boxes`` (G, 4) corners in pixels, each of positive size, ``labels`` (G,) in 0..C-1,
                ``masks`` (G, H, W) for a mask branch, ``proposals`` (P, 4) for a detector that proposes nothing itself,
                and ``draw_seed``, which decides all random draws; without it PyTorch's own generator does, and a loss
                does not subsample.
            record: gets ``"maps"``, ``"image_sizes"`` and ``"batch_size"`` (height, width) without and with padding,
                and what the region head keeps.
            update_state: whether loss and replay may change their state; None follows ``self.training``.
        """
        update = self.training if update_state is None else update_state
        batch, scaled = self.preprocess(images, targets, resize=self.preprocess.resize_in_losses)
        scaled = [{**target, "image_size": size} for target, size in zip(scaled, batch.image_sizes, strict=True)]
        pyramid = Pyramid(self.backbone(batch.tensors), height_width(batch.tensors), batch.image_sizes)
        if record is not None:
            record.keep("maps", pyramid.maps)
            record.keep("image_sizes", pyramid.image_sizes)
            record.keep("batch_size", pyramid.size)
        device = batch.tensors.device
        generators = image_generators(scaled, device)
        proposals, proposal_losses = self.rpn.losses(
            batch, pyramid.maps, scaled, generators=generators, update_state=update
        )
        losses = self.region_losses(
            pyramid,
            proposals.boxes,
            scaled,
            generators=generators,
            step_generator=step_generator(scaled, device),
            record=record,
            update_state=update,
        )
        return losses | proposal_losses

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor], *, proposals: Sequence[Tensor] | None = None) -> list[dict[str, Tensor]]:
        """See :meth:`Detector.detect`.

        Args:
            images: the pictures.
            proposals: (P, 4) per picture, corners in pixels of the given picture: regions to look at instead of its
                own; needed where it proposes nothing itself.
        """
        batch, _ = self.preprocess(images, resize=True)
        pyramid = Pyramid(self.backbone(batch.tensors), height_width(batch.tensors), batch.image_sizes)
        if proposals is None:
            regions = self.rpn.detect(batch, pyramid.maps).boxes
        else:
            parts = zip(proposals, images, batch.image_sizes, strict=True)
            dtype = box_dtype(pyramid.maps)
            regions = [resize_boxes(own.to(dtype), height_width(image), size) for own, image, size in parts]
        found = self.region_predictions(pyramid, regions)
        counts = [len(boxes) for boxes in found.boxes]
        detections = []
        rows = zip(
            torch.split(found.scores, counts), torch.split(found.deltas, counts), found.boxes, batch.image_sizes,
            strict=True,
        )  # fmt: skip
        for scores, deltas, own, size in rows:
            boxes, score, label = select_detections(scores, deltas, own, found.coder, size, self.inference)
            detections.append({"boxes": boxes, "scores": score, "labels": label})
        masks = self.masks(pyramid, [one["boxes"] for one in detections], [one["labels"] for one in detections])
        if masks is not None:
            for one, own_masks in zip(detections, masks, strict=True):
                one["masks"] = own_masks
        for one, image, size in zip(detections, images, batch.image_sizes, strict=True):
            one["boxes"] = resize_boxes(one["boxes"], size, height_width(image))
        return detections

    @torch.no_grad()
    def propose(self, images: Sequence[Tensor], *, top: TopN | None = None) -> list[tuple[Tensor, Tensor]]:
        """Proposals of pictures; see :func:`longtail.models.proposer.propose`.

        Raises:
            UsageError: its own proposals are given.
        """
        if isinstance(self.rpn, CachedProposals):
            raise UsageError("this detector takes its proposals from a table; take those of the one that made them")
        return propose(images, preprocess=self.preprocess, backbone=self.backbone, rpn=self.rpn, top=top)

    @abstractmethod
    def region_losses(
        self,
        pyramid: Pyramid,
        proposals: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        *,
        generators: Sequence[torch.Generator | None],
        step_generator: torch.Generator | None,
        record: Record | None,
        update_state: bool,
    ) -> dict[str, Tensor]:
        """Losses of everything behind the proposals.

        Args:
            pyramid: of the batch.
            proposals: (n, 4) per picture, corners in pixels of the batch.
            targets: as for :meth:`losses`, in pixels of the batch, each with its picture's ``image_size`` (height,
                width) without padding.
            generators: source of the region samplers' draws, one per picture.
            step_generator: source of a stochastic loss's draws.
            record, update_state: as for :meth:`losses`.
        """

    @abstractmethod
    def region_predictions(self, pyramid: Pyramid, proposals: Sequence[Tensor]) -> RegionPredictions:
        """Scores and boxes of the regions; arguments as for :meth:`region_losses`."""

    @abstractmethod
    def masks(self, pyramid: Pyramid, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor] | None:
        """Mask probabilities (D, m, m) of detections with boxes (D, 4), in pixels of the batch, and labels (D,), one
        entry per picture; None without a mask branch."""


def height_width(image: Tensor) -> Size:
    """(height, width) of a picture or a batch."""
    return image.shape[-2], image.shape[-1]
