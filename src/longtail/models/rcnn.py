"""Faster and Mask R-CNN, assembled from parts that plug into the seams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from longtail.losses.auxiliary import Record
from longtail.losses.base import BoxLoss, ClassificationLoss
from longtail.losses.boxes import SmoothL1Loss
from longtail.losses.softmax import SoftmaxCrossEntropy
from longtail.models.base import ClassHead, HeadRecord
from longtail.models.classifiers import Classifier, LinearClassifier
from longtail.models.mask_head import MaskBranch
from longtail.models.mask_predictors import NormalisedMaskPredictor, OrdinaryMaskPredictor
from longtail.models.matching import Matcher
from longtail.models.object_scores import pairs_of_scores
from longtail.models.postprocess import Inference
from longtail.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, ImageBatcher
from longtail.models.proposals import TOP_IN_DETECT, TOP_IN_LOSSES, ProposalFilter, ProposalNetwork, TopN, box_dtype
from longtail.models.proposer import CachedProposals
from longtail.models.region_head import BoxStage
from longtail.models.two_stage import Pyramid, RegionPredictions, TwoStageDetector, height_width
from longtail.replay.base import FeatureReplay
from longtail.sampling.random_regions import RandomRegions
from longtail.sampling.regions import RegionSampler

ClassifierFactory = Callable[[int, int], Classifier]
BoxWeights = tuple[float, float, float, float]


class RCNN(TwoStageDetector):
    """Faster R-CNN, or Mask R-CNN if it has a mask branch. Losses: ``loss_classifier``, ``loss_box_reg``, ``loss_mask``
    (if there is a mask branch), ``loss_objectness``, ``loss_rpn_box_reg``, and ``loss_replay``, ``loss_replay_box`` if
    replayed rows have a mean of their own.

    Args:
        box: proposals -> classes and boxes.
        mask: boxes -> masks, or None.
        preprocess, backbone, rpn, inference: see :class:`~longtail.models.two_stage.TwoStageDetector`.
    """

    def __init__(
        self,
        *,
        preprocess: ImageBatcher,
        backbone: nn.Module,
        rpn: ProposalNetwork | CachedProposals,
        box: BoxStage,
        mask: MaskBranch | None = None,
        inference: Inference | None = None,
    ) -> None:
        super().__init__(preprocess=preprocess, backbone=backbone, rpn=rpn, inference=inference)
        self.box = box
        self.mask = mask

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
        stage = self.box.losses(
            pyramid.maps,
            pyramid.size,
            proposals,
            targets,
            generators=generators,
            step_generator=step_generator,
            record=record,
            update_state=update_state,
        )
        if self.mask is None or self.box.calibrated is not None:
            return stage.losses
        return stage.losses | self.mask.losses(pyramid.maps, pyramid.size, stage.regions, targets)

    def head_records(self) -> list[HeadRecord]:
        """The region head's."""
        return [HeadRecord("region_logits", "region_labels")]

    def class_heads(self) -> list[ClassHead]:
        """The region head."""
        return [self.box]

    @torch.no_grad()
    def score_objects(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """See :meth:`Detector.score_objects`: the objects' own boxes are classified as regions."""
        batch, scaled = self.preprocess(images, targets, resize=True)
        assert scaled is not None
        pyramid = Pyramid(self.backbone(batch.tensors), height_width(batch.tensors), batch.image_sizes)
        boxes = [target["boxes"].to(box_dtype(pyramid.maps)) for target in scaled]
        scores, _ = self.box.predict(pyramid.maps, pyramid.size, boxes)
        labels = torch.cat([target["labels"] for target in scaled])
        return pairs_of_scores(scores[:, : self.box.num_classes], labels, [len(own) for own in boxes])

    def region_predictions(self, pyramid: Pyramid, proposals: Sequence[Tensor]) -> RegionPredictions:
        """See :meth:`TwoStageDetector.region_predictions`."""
        scores, deltas = self.box.predict(pyramid.maps, pyramid.size, proposals)
        return RegionPredictions(scores, deltas, list(proposals), self.box.box_coder)

    def masks(self, pyramid: Pyramid, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor] | None:
        """See :meth:`TwoStageDetector.masks`."""
        return None if self.mask is None else self.mask.predict(pyramid.maps, pyramid.size, boxes, labels)


def proposal_network(
    backbone: nn.Module,
    *,
    sampler: RegionSampler | None = None,
    matcher: Matcher | None = None,
    box_loss: BoxLoss | None = None,
    proposal_filter: ProposalFilter | None = None,
    top_in_losses: TopN = TOP_IN_LOSSES,
    top_in_detect: TopN = TOP_IN_DETECT,
    anchor_sizes: Sequence[Sequence[float]] | None = None,
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    objectness_weight: float = 1.0,
    box_weight: float = 1.0,
) -> ProposalNetwork:
    """A region proposal network for the maps of ``backbone``, with torchvision's defaults.

    Args:
        backbone: has ``out_channels`` and, unless ``anchor_sizes`` are given or it has five maps from stride 4 on,
            ``strides``.
        sampler: None = 256 anchors per image, at random, at most half of them positive.
        matcher: None = IoU 0.7 and 0.3 with low-quality matches.
        box_loss: None = smooth L1 with beta 1/9.
        anchor_sizes: square roots of the anchors' areas in pixels on every map; None = 8 times the stride.
        anchor_ratios: heights divided by widths.
        proposal_filter, top_in_losses, top_in_detect, objectness_weight, box_weight: see
            :class:`~longtail.models.proposals.ProposalNetwork`.
    """
    strides: Sequence[int] = getattr(backbone, "strides", (4, 8, 16, 32, 64))
    sizes = tuple((8 * stride,) for stride in strides) if anchor_sizes is None else tuple(map(tuple, anchor_sizes))
    anchors = AnchorGenerator(sizes, (tuple(anchor_ratios),) * len(sizes))
    return ProposalNetwork(
        RPNHead(backbone.out_channels, anchors.num_anchors_per_location()[0]),
        anchors,
        matcher=Matcher(0.7, 0.3, low_quality=True) if matcher is None else matcher,
        sampler=RandomRegions(256, 0.5) if sampler is None else sampler,
        box_loss=SmoothL1Loss(beta=1 / 9) if box_loss is None else box_loss,
        proposal_filter=proposal_filter,
        top_in_losses=top_in_losses,
        top_in_detect=top_in_detect,
        objectness_weight=objectness_weight,
        box_weight=box_weight,
    )


def faster_rcnn(
    backbone: nn.Module,
    *,
    num_classes: int,
    classification_loss: ClassificationLoss | None = None,
    classifier: ClassifierFactory = LinearClassifier,
    box_loss: BoxLoss | None = None,
    region_sampler: RegionSampler | None = None,
    replay: Sequence[FeatureReplay] = (),
    matcher: Matcher | None = None,
    proposal: ProposalNetwork | CachedProposals | None = None,
    box_head: nn.Module | None = None,
    embedding_size: int = 1024,
    box_pool: MultiScaleRoIAlign | None = None,
    class_agnostic_box: bool = False,
    classification_weight: float = 1.0,
    box_weight: float = 1.0,
    preprocess: ImageBatcher | None = None,
    inference: Inference | None = None,
) -> RCNN:
    """Faster R-CNN on a feature pyramid. What is not given is as in torchvision, except ``inference``.

    Args:
        backbone: batch (B, 3, H, W) -> {name: map}, with the attribute ``out_channels``; ``strides``, ``mean`` and
            ``std`` are used where it has them.
        num_classes: C, foreground classes.
        classification_loss: None = softmax cross-entropy.
        classifier: (in_features, num_logits) -> classifier; its initial bias is the loss's ``bias_prior``.
        box_loss: None = smooth L1 with beta 1/9.
        region_sampler: None = 512 regions per image, at random, at most a quarter of them positive.
        replay: parts that add rows.
        matcher: of the box stage; None = IoU 0.5.
        proposal: None = :func:`proposal_network` of the backbone;
            :class:`~longtail.models.proposer.CachedProposals` = proposals are given with the pictures.
        box_head: pooled features -> (N, ``embedding_size``); None = two linear layers.
        embedding_size: D, input of the classifier.
        box_pool: None = RoIAlign 7 x 7 with sampling ratio 2 on all maps but the additional coarsest one.
        class_agnostic_box: one box per region instead of one per class.
        classification_weight, box_weight: factors of the losses.
        preprocess: None = the backbone's normalisation, short side 800, long side at most 1333 pixels.
        inference: None = LVIS's settings.
    """
    box = box_stage(
        backbone,
        num_classes=num_classes,
        classification_loss=classification_loss,
        classifier=classifier,
        box_loss=box_loss,
        region_sampler=region_sampler,
        replay=replay,
        matcher=matcher,
        box_head=box_head,
        embedding_size=embedding_size,
        box_pool=box_pool,
        class_agnostic_box=class_agnostic_box,
        classification_weight=classification_weight,
        box_weight=box_weight,
    )
    return RCNN(
        preprocess=image_batcher(backbone) if preprocess is None else preprocess,
        backbone=backbone,
        rpn=proposal_network(backbone) if proposal is None else proposal,
        box=box,
        inference=inference,
    )


def mask_rcnn(
    backbone: nn.Module,
    *,
    num_classes: int,
    classification_loss: ClassificationLoss | None = None,
    classifier: ClassifierFactory = LinearClassifier,
    box_loss: BoxLoss | None = None,
    region_sampler: RegionSampler | None = None,
    replay: Sequence[FeatureReplay] = (),
    matcher: Matcher | None = None,
    proposal: ProposalNetwork | CachedProposals | None = None,
    box_head: nn.Module | None = None,
    embedding_size: int = 1024,
    box_pool: MultiScaleRoIAlign | None = None,
    class_agnostic_box: bool = False,
    classification_weight: float = 1.0,
    box_weight: float = 1.0,
    preprocess: ImageBatcher | None = None,
    inference: Inference | None = None,
    mask_predictor: Literal["ordinary", "normalised"] = "ordinary",
    mask_layers: Sequence[int] = (256, 256, 256, 256),
    mask_hidden: int = 256,
    mask_pool: MultiScaleRoIAlign | None = None,
    class_agnostic_mask: bool = False,
    mask_weight: float = 1.0,
) -> RCNN:
    """Mask R-CNN on a feature pyramid. What is not given is as in torchvision, except ``inference``.

    Args:
        mask_predictor: ``"ordinary"``, or ``"normalised"`` (Seesaw, LOCE).
        mask_layers: channels of the 3 x 3 convolutions of the mask head, at least one.
        mask_hidden: channels after the transposed convolution that doubles the map.
        mask_pool: None = RoIAlign 14 x 14 with sampling ratio 2.
        class_agnostic_mask: one mask per box instead of one per class.
        mask_weight: factor of the loss.
        backbone, ...: all others as for :func:`faster_rcnn`.
    """
    detector = faster_rcnn(
        backbone,
        num_classes=num_classes,
        classification_loss=classification_loss,
        classifier=classifier,
        box_loss=box_loss,
        region_sampler=region_sampler,
        replay=replay,
        matcher=matcher,
        proposal=proposal,
        box_head=box_head,
        embedding_size=embedding_size,
        box_pool=box_pool,
        class_agnostic_box=class_agnostic_box,
        classification_weight=classification_weight,
        box_weight=box_weight,
        preprocess=preprocess,
        inference=inference,
    )
    detector.mask = mask_branch(
        backbone,
        num_classes=num_classes,
        predictor=mask_predictor,
        layers=mask_layers,
        hidden=mask_hidden,
        pool=mask_pool,
        class_agnostic=class_agnostic_mask,
        weight=mask_weight,
    )
    return detector


def box_stage(
    backbone: nn.Module,
    *,
    num_classes: int,
    classification_loss: ClassificationLoss | None,
    classifier: ClassifierFactory,
    box_loss: BoxLoss | None,
    region_sampler: RegionSampler | None,
    replay: Sequence[FeatureReplay],
    matcher: Matcher | None,
    box_head: nn.Module | None,
    embedding_size: int,
    box_pool: MultiScaleRoIAlign | None,
    class_agnostic_box: bool,
    classification_weight: float,
    box_weight: float,
    box_weights: BoxWeights = (10.0, 10.0, 5.0, 5.0),
) -> BoxStage:
    """One region head; arguments as for :func:`faster_rcnn`, and ``box_weights``, factors of the encoded dx, dy, dw,
    dh."""
    loss = SoftmaxCrossEntropy(num_classes) if classification_loss is None else classification_loss
    pool = region_pool(backbone, 7) if box_pool is None else box_pool
    width = backbone.out_channels * pool.output_size[0] * pool.output_size[1]
    layer = classifier(embedding_size, loss.num_logits)
    if loss.bias_prior is not None:
        layer.initialise(loss.bias_prior)
    return BoxStage(
        num_classes=num_classes,
        pool=pool,
        head=TwoMLPHead(width, embedding_size) if box_head is None else box_head,
        classifier=layer,
        regressor=nn.Linear(embedding_size, 4 if class_agnostic_box else 4 * num_classes),
        classification_loss=loss,
        box_loss=SmoothL1Loss(beta=1 / 9) if box_loss is None else box_loss,
        matcher=Matcher(0.5, 0.5) if matcher is None else matcher,
        sampler=RandomRegions(512, 0.25) if region_sampler is None else region_sampler,
        replay=replay,
        class_agnostic=class_agnostic_box,
        box_weights=box_weights,
        classification_weight=classification_weight,
        box_weight=box_weight,
    )


def mask_branch(
    backbone: nn.Module,
    *,
    num_classes: int,
    predictor: Literal["ordinary", "normalised"],
    layers: Sequence[int],
    hidden: int,
    pool: MultiScaleRoIAlign | None,
    class_agnostic: bool,
    weight: float,
) -> MaskBranch:
    """One mask branch; arguments as those of :func:`mask_rcnn` that begin with ``mask_``."""
    if predictor not in ("ordinary", "normalised"):
        raise ValueError(f"mask_predictor must be 'ordinary' or 'normalised', got {predictor!r}")
    layer = OrdinaryMaskPredictor if predictor == "ordinary" else NormalisedMaskPredictor
    return MaskBranch(
        pool=region_pool(backbone, 14) if pool is None else pool,
        head=MaskRCNNHeads(backbone.out_channels, tuple(layers), 1),
        predictor=layer(layers[-1], hidden, 1 if class_agnostic else num_classes),
        class_agnostic=class_agnostic,
        weight=weight,
    )


def image_batcher(backbone: nn.Module) -> ImageBatcher:
    """The backbone's normalisation, short side 800, long side at most 1333 pixels."""
    return ImageBatcher(getattr(backbone, "mean", IMAGENET_MEAN), getattr(backbone, "std", IMAGENET_STD))


def region_pool(backbone: nn.Module, size: int) -> MultiScaleRoIAlign:
    """RoIAlign on the maps of the pyramid proper, which have numbers for names; an additional coarsest one ("pool",
    "p6") is for anchors only."""
    count = len(getattr(backbone, "strides", (4, 8, 16, 32)))
    return MultiScaleRoIAlign([str(level) for level in range(count)], size, 2)
