"""Cascade R-CNN: region heads one after the other, each on the boxes of the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from longtail.losses.auxiliary import Record
from longtail.losses.base import BoxLoss, ClassificationLoss
from longtail.losses.cells import full_precision
from longtail.models.base import ClassHead, HeadRecord
from longtail.models.classifiers import LinearClassifier
from longtail.models.mask_head import MaskBranch
from longtail.models.matching import Matcher
from longtail.models.postprocess import Inference
from longtail.models.preprocess import ImageBatcher
from longtail.models.proposals import ProposalNetwork
from longtail.models.proposer import CachedProposals
from longtail.models.rcnn import (
    BoxWeights,
    ClassifierFactory,
    box_stage,
    image_batcher,
    mask_branch,
    proposal_network,
    region_pool,
)
from longtail.models.region_head import BoxStage, StageResult
from longtail.models.two_stage import Pyramid, RegionPredictions, Size, TwoStageDetector
from longtail.replay.base import FeatureReplay, number_parts
from longtail.sampling.regions import RegionSampler

#: what a box stage keeps of its regions for auxiliary losses
REGION_RECORDS = ("region_features", "region_logits", "region_labels")


@dataclass(frozen=True)
class CascadeStage:
    """One stage: ``iou`` from which a candidate is positive (below it is negative), ``loss_weight`` of all losses of
    the stage, ``box_weights``, factors of the encoded dx, dy, dw, dh."""

    iou: float
    loss_weight: float
    box_weights: BoxWeights


PUBLISHED_STAGES = (
    CascadeStage(iou=0.5, loss_weight=1.0, box_weights=(10.0, 10.0, 5.0, 5.0)),
    CascadeStage(iou=0.6, loss_weight=0.5, box_weights=(20.0, 20.0, 10.0, 10.0)),
    CascadeStage(iou=0.7, loss_weight=0.25, box_weights=(30.0, 30.0, 15.0, 15.0)),
)


class CascadeRCNN(TwoStageDetector):
    """Cascade R-CNN (Cai & Vasconcelos, CVPR 2018), with masks if it has mask branches.

    In training every stage samples its own regions: from the proposals, or from what the stage before has made of its
    own regions, and from the objects' boxes, which are added to every stage's candidates and never handed on. Boxes
    are moved without gradient, clipped to the picture, and dropped if they lose their area.

    When detecting, the stages look at the same regions one after the other; the score of a region is the mean of all
    stages' scores, its box that of the last stage, its mask the mean of all branches' probabilities.

    Losses are those of :class:`~longtail.models.rcnn.RCNN`; those of regions and masks end in the stage's number,
    ``loss_classifier_0``, and so do ``"region_features_0"``, ``"region_logits_0"`` and ``"region_labels_0"`` in a
    record, which has the last stage's under the plain name, too.

    Args:
        box: the stages; their boxes are class-agnostic.
        mask: a mask branch for every stage, or none.
        preprocess, backbone, rpn, inference: see :class:`~longtail.models.two_stage.TwoStageDetector`.
    """

    def __init__(
        self,
        *,
        preprocess: ImageBatcher,
        backbone: nn.Module,
        rpn: ProposalNetwork | CachedProposals,
        box: Sequence[BoxStage],
        mask: Sequence[MaskBranch] = (),
        inference: Inference | None = None,
    ) -> None:
        super().__init__(preprocess=preprocess, backbone=backbone, rpn=rpn, inference=inference)
        if not box or len(mask) not in (0, len(box)) or not all(stage.class_agnostic for stage in box):
            raise ValueError(
                f"a cascade has at least one stage, class-agnostic boxes and a mask branch per stage or none, got "
                f"{len(box)} stages and {len(mask)} mask branches"
            )
        self.box = nn.ModuleList(box)
        number_parts(part for stage in box for part in stage.replay)
        self.mask = nn.ModuleList(mask)

    @property
    def stages(self) -> list[BoxStage]:
        """The region heads, in order."""
        return list(self.box)  # type: ignore[arg-type]

    @property
    def branches(self) -> list[MaskBranch]:
        """The mask branches, in order."""
        return list(self.mask)  # type: ignore[arg-type]

    def class_heads(self) -> list[ClassHead]:
        """The region heads, in order."""
        return list(self.stages)

    def head_records(self) -> list[HeadRecord]:
        """Those of the region heads, in order."""
        return [
            HeadRecord(f"region_logits_{number}", f"region_labels_{number}", stage.classification_weight)
            for number, stage in enumerate(self.stages)
        ]

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
        """See :meth:`TwoStageDetector.region_losses`."""
        losses: dict[str, Tensor] = {}
        boxes = list(proposals)
        for number, stage in enumerate(self.stages):
            kept = None if record is None else Record(REGION_RECORDS)
            result = stage.losses(
                pyramid.maps,
                pyramid.size,
                boxes,
                targets,
                generators=generators,
                step_generator=step_generator,
                record=kept,
                update_state=update_state,
            )
            found = result.losses
            if self.branches:
                found |= self.branches[number].losses(pyramid.maps, pyramid.size, result.regions, targets)
            losses |= {f"{name}_{number}": value for name, value in found.items()}
            if record is not None and kept is not None:
                for name, value in kept.values.items():
                    record.keep(f"{name}_{number}", value)
                    record.keep(name, value)
            if number + 1 < len(self.stages):
                boxes = regions_of_next_stage(stage, result, pyramid.image_sizes)
        return losses

    def region_predictions(self, pyramid: Pyramid, proposals: Sequence[Tensor]) -> RegionPredictions:
        """See :meth:`TwoStageDetector.region_predictions`."""
        boxes, all_scores = list(proposals), []
        for number, stage in enumerate(self.stages):
            scores, deltas = stage.predict(pyramid.maps, pyramid.size, boxes)
            all_scores.append(scores)
            if number + 1 < len(self.stages):
                boxes = moved_boxes(stage, deltas, boxes, pyramid.image_sizes)
        return RegionPredictions(torch.stack(all_scores).mean(dim=0), deltas, boxes, stage.box_coder)

    def masks(self, pyramid: Pyramid, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor] | None:
        """See :meth:`TwoStageDetector.masks`."""
        if not self.branches:
            return None
        by_stage = [branch.predict(pyramid.maps, pyramid.size, boxes, labels) for branch in self.branches]
        return [torch.stack(own).mean(dim=0) for own in zip(*by_stage, strict=True)]


@torch.no_grad()
def regions_of_next_stage(stage: BoxStage, result: StageResult, image_sizes: Sequence[Size]) -> list[Tensor]:
    """The regions a stage learnt from, moved by it, without the objects' own boxes and without those that lost their
    area; one entry per picture."""
    deltas = full_precision(stage.regressor(result.features))
    moved = moved_boxes(stage, deltas, result.regions.proposals, image_sizes)
    return [
        boxes[~is_object & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)]
        for boxes, is_object in zip(moved, result.regions.is_object, strict=True)
    ]


def moved_boxes(stage: BoxStage, deltas: Tensor, boxes: Sequence[Tensor], image_sizes: Sequence[Size]) -> list[Tensor]:
    """Boxes (n, 4) of every picture moved by ``deltas`` (N, 4) of all and clipped to the picture."""
    parts = zip(torch.split(deltas, [len(own) for own in boxes]), boxes, image_sizes, strict=True)
    return [clip_boxes_to_image(stage.box_coder.decode_single(own, before), size) for own, before, size in parts]


def cascade_rcnn(
    backbone: nn.Module,
    *,
    num_classes: int,
    stages: Sequence[CascadeStage] = PUBLISHED_STAGES,
    classification_loss: ClassificationLoss | None = None,
    classifier: ClassifierFactory = LinearClassifier,
    box_loss: BoxLoss | None = None,
    region_samplers: Sequence[RegionSampler] | None = None,
    replay: Sequence[FeatureReplay] = (),
    matchers: Sequence[Matcher] | None = None,
    proposal: ProposalNetwork | CachedProposals | None = None,
    box_head: Callable[[], nn.Module] | None = None,
    embedding_size: int = 1024,
    box_pool: MultiScaleRoIAlign | None = None,
    classification_weight: float = 1.0,
    box_weight: float = 1.0,
    preprocess: ImageBatcher | None = None,
    inference: Inference | None = None,
    with_masks: bool = False,
    mask_predictor: Literal["ordinary", "normalised"] = "ordinary",
    mask_layers: Sequence[int] = (256, 256, 256, 256),
    mask_hidden: int = 256,
    mask_pool: MultiScaleRoIAlign | None = None,
    class_agnostic_mask: bool = False,
    mask_weight: float = 1.0,
) -> CascadeRCNN:
    """Cascade R-CNN on a feature pyramid, with a mask branch per stage if asked for.

    Args:
        stages: IoU, loss weight and box encoding of every stage; published three.
        classification_loss, box_loss, replay: every stage gets a copy with state of its own.
        region_samplers, matchers: one per stage; None = :func:`~longtail.models.faster_rcnn`'s sampler, and the stages'
            IoUs.
        box_head: makes the head of one stage; None = two linear layers.
        with_masks: Cascade Mask R-CNN; the arguments that begin with ``mask_`` count only then.
        backbone, ...: all others as for :func:`~longtail.models.faster_rcnn` and :func:`~longtail.models.mask_rcnn`.

    Raises:
        ValueError: another number of samplers or matchers than stages.
    """
    for name, given in (("region_samplers", region_samplers), ("matchers", matchers)):
        if given is not None and len(given) != len(stages):
            raise ValueError(f"{name} has {len(given)} entries for {len(stages)} stages; give one per stage")
    pool = region_pool(backbone, 7) if box_pool is None else box_pool
    # loss and replay together: what they share, such as the mean scores, stays shared within a stage
    own = [deepcopy((classification_loss, list(replay))) for _ in stages]
    box = [
        box_stage(
            backbone,
            num_classes=num_classes,
            classification_loss=own[number][0],
            classifier=classifier,
            box_loss=deepcopy(box_loss),
            region_sampler=None if region_samplers is None else region_samplers[number],
            replay=own[number][1],
            matcher=Matcher(stage.iou, stage.iou) if matchers is None else matchers[number],
            box_head=None if box_head is None else box_head(),
            embedding_size=embedding_size,
            box_pool=pool,
            class_agnostic_box=True,
            classification_weight=classification_weight * stage.loss_weight,
            box_weight=box_weight * stage.loss_weight,
            box_weights=stage.box_weights,
        )
        for number, stage in enumerate(stages)
    ]
    masks = [
        mask_branch(
            backbone,
            num_classes=num_classes,
            predictor=mask_predictor,
            layers=mask_layers,
            hidden=mask_hidden,
            pool=mask_pool,
            class_agnostic=class_agnostic_mask,
            weight=mask_weight * stage.loss_weight,
        )
        for stage in stages
    ]
    return CascadeRCNN(
        preprocess=image_batcher(backbone) if preprocess is None else preprocess,
        backbone=backbone,
        rpn=proposal_network(backbone) if proposal is None else proposal,
        box=box,
        mask=masks if with_masks else (),
        inference=inference,
    )
