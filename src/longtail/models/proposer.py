"""The network that proposes, trained alone; and proposals that are given to a detector instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from longtail.losses.auxiliary import Record
from longtail.models.base import ClassHead, Detector, TrainableModel
from longtail.models.postprocess import Inference
from longtail.models.preprocess import ImageBatcher, image_generators, resize_boxes
from longtail.models.proposals import Maps, ProposalNetwork, Proposals, TopN, box_dtype
from longtail.schema.errors import UsageError


class CachedProposals(nn.Module):
    """Takes the place of a :class:`~longtail.models.proposals.ProposalNetwork` in a detector whose proposals are given
    with the pictures (Fast R-CNN; Girshick, ICCV 2015)."""

    def losses(
        self,
        images: ImageList,
        maps: Maps,
        targets: Sequence[Mapping[str, Any]],
        *,
        generators: Sequence[torch.Generator | None] | None = None,
        update_state: bool | None = None,
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """The targets' ``proposals`` (P, 4), corners in pixels of the batch; no losses.

        Raises:
            UsageError: a target without proposals.
        """
        if not all("proposals" in target for target in targets):
            raise UsageError(
                "this detector takes its proposals from a table, but its targets have none; give its data set one "
                "(stages.<name>.proposals=cached), or let it propose (stages.<name>.proposals=network)"
            )
        boxes = [target["proposals"].to(box_dtype(maps)) for target in targets]
        return Proposals(boxes, [own.new_ones(len(own)) for own in boxes]), {}

    def detect(self, images: ImageList, maps: Maps, *, top: TopN | None = None) -> Proposals:
        """Refuses, since nothing is proposed here.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "this detector takes its proposals from a table and cannot look at pictures without; give it some: "
            "detect(images, proposals=...)"
        )


def propose(
    images: Sequence[Tensor],
    *,
    preprocess: ImageBatcher,
    backbone: nn.Module,
    rpn: ProposalNetwork,
    top: TopN | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Proposals of pictures, highest score first.

    Args:
        images: (3, H, W) each, uint8 or floating point in 0..1, RGB, of any size.
        preprocess, backbone, rpn: of a detector.
        top: how many; None = as many as when detecting.

    Returns:
        Per picture boxes (P, 4), corners in pixels of the given picture, and scores (P,) in 0..1.
    """
    batch, _ = preprocess(images, resize=True)
    found = rpn.detect(batch, backbone(batch.tensors), top=top)
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    return [
        (resize_boxes(boxes, before, after), scores)
        for boxes, scores, before, after in zip(found.boxes, found.scores, batch.image_sizes, sizes, strict=True)
    ]


class Proposer(TrainableModel):
    """A region proposal network that is trained alone; parameters are named as in a two-stage detector.

    Args:
        preprocess: pictures -> batch.
        backbone: batch (B, 3, H, W) -> {name: map}.
        rpn: maps -> proposals.
    """

    def __init__(self, *, preprocess: ImageBatcher, backbone: nn.Module, rpn: ProposalNetwork) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.rpn = rpn

    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        *,
        record: Record | None = None,
        update_state: bool | None = None,
    ) -> dict[str, Tensor]:
        """``loss_objectness`` and ``loss_rpn_box_reg``; arguments as for a detector."""
        update = self.training if update_state is None else update_state
        batch, scaled = self.preprocess(images, targets, resize=self.preprocess.resize_in_losses)
        maps = self.backbone(batch.tensors)
        if record is not None:
            record.keep("maps", maps)
            record.keep("image_sizes", batch.image_sizes)
            record.keep("batch_size", (batch.tensors.shape[-2], batch.tensors.shape[-1]))
        generators = image_generators(scaled, batch.tensors.device)
        return self.rpn.losses(batch, maps, scaled, generators=generators, update_state=update)[1]

    def predictions(self, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """:meth:`propose`."""
        return self.propose(images)

    @torch.no_grad()
    def propose(self, images: Sequence[Tensor], *, top: TopN | None = None) -> list[tuple[Tensor, Tensor]]:
        """See :func:`propose`."""
        return propose(images, preprocess=self.preprocess, backbone=self.backbone, rpn=self.rpn, top=top)

    def class_heads(self) -> list[ClassHead]:
        """None: it knows no classes."""
        return []


class ProposalDetector(Proposer, Detector):
    """A region proposal network as a detector of its own: its proposals are detections of one class, number 0.

    Args:
        preprocess, backbone, rpn: as for :class:`Proposer`. How many proposals a picture has is what ``rpn`` gives when
            detecting; of :attr:`inference` only ``detections_per_image`` can make them fewer.
    """

    def __init__(self, *, preprocess: ImageBatcher, backbone: nn.Module, rpn: ProposalNetwork) -> None:
        super().__init__(preprocess=preprocess, backbone=backbone, rpn=rpn)
        self.inference = Inference(score_threshold=0.0, detections_per_image=rpn.top_in_detect.after)

    def predictions(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:  # type: ignore[override]
        """:meth:`detect`."""
        return self.detect(images)

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """See :meth:`Detector.detect`; all labels are 0."""
        most = self.inference.detections_per_image
        found = [(boxes[:most], scores[:most]) for boxes, scores in self.propose(images)]
        return [
            {"boxes": boxes, "scores": scores, "labels": torch.zeros_like(scores, dtype=torch.int64)}
            for boxes, scores in found
        ]
