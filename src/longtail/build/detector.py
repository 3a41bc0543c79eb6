"""From the schema's model and stage to Faster or Mask R-CNN."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

from longtail.build.features import backbone
from longtail.build.losses import box_loss, classification_loss
from longtail.build.replay import check_stages, mean_score, replay_parts
from longtail.build.samplers import region_sampler
from longtail.data import ClassStatistics
from longtail.losses import ClassificationLoss, EquilibriumLoss, LDAMLoss, SoftmaxCrossEntropy
from longtail.models import (
    CosineClassifier,
    DeconfoundedClassifier,
    LearnableWeightScaling,
    LinearClassifier,
    NormedLinear,
    ResamplingNMS,
    faster_rcnn,
    mask_rcnn,
)
from longtail.models.backbones import PyramidBackbone
from longtail.models.box_heads import conv_head
from longtail.models.matching import Matcher
from longtail.models.postprocess import Inference
from longtail.models.preprocess import ImageBatcher
from longtail.models.proposals import LevelNMS, ProposalFilter, ProposalNetwork, TopN
from longtail.models.proposer import CachedProposals
from longtail.models.rcnn import RCNN, ClassifierFactory, proposal_network
from longtail.schema import StageSpec, UsageError
from longtail.schema import classifiers as classifier_specs
from longtail.schema import detector as specs
from longtail.schema.recipe import Images


def build_rcnn(
    model: specs.RCNN,
    images: Images,
    stage: StageSpec,
    statistics: ClassStatistics,
    *,
    pretrained: bool,
    trust: bool = False,
) -> RCNN:
    """Faster or Mask R-CNN for one stage of a recipe, with fresh weights.

    Args:
        model, images: of the resolved recipe.
        stage: one of its stages; its losses, samplers, replay and classifier go into the detector.
        statistics: of the training annotations; counts for losses and replay.
        pretrained: whether the backbone's pretrained weights are loaded (not when other weights follow).
        trust: whether their file may hold Python objects, which can run code when it is opened.

    Raises:
        UsageError: parts that do not go together, with what would.
        LongtailError: pretrained weights that cannot be had.
    """
    check_stages(stage, 1)
    pyramid = backbone(model.backbone, model.neck, pretrained=pretrained, trust=trust)
    own_head = head(model.regions, pyramid)
    arguments = two_stage_arguments(model, pyramid, images, stage, statistics) | {
        "region_sampler": region_sampler(stage.region_sampler, negative_iou=model.regions.matcher.low),
        "matcher": matcher(model.regions.matcher),
        "class_agnostic_box": model.regions.class_agnostic,
        "box_head": None if own_head is None else own_head(),
    }
    if model.has_masks:
        return mask_rcnn(pyramid, **arguments, **mask_arguments(model, pyramid, stage))
    return faster_rcnn(pyramid, **arguments)


def two_stage_arguments(
    model: specs.RCNN | specs.CascadeRCNN,
    pyramid: PyramidBackbone,
    images: Images,
    stage: StageSpec,
    statistics: ClassStatistics,
) -> dict[str, Any]:
    """Arguments that the factories of all two-stage detectors take.

    Raises:
        UsageError: parts that do not go together, with what would.
    """
    scores = mean_score(stage, statistics)
    loss = classification_loss(stage.classification_loss, statistics, scores)
    if scores is not None and not isinstance(loss, SoftmaxCrossEntropy | EquilibriumLoss):
        scores.scores = loss.scores
    chosen = stage_classifier(model, stage, loss)
    return {
        "num_classes": statistics.num_classes,
        "classification_loss": loss,
        "classification_weight": stage.classification_loss.loss_weight,
        "classifier": classifier(chosen),
        "box_loss": box_loss(stage.box_loss),
        "box_weight": stage.box_weight,
        "replay": replay_parts(
            stage.replay, statistics, scores, feature_size=model.regions.channels, schedule=stage.schedule
        ),
        "proposal": CachedProposals()
        if stage.proposals == "cached"
        else proposals(model.proposals, pyramid, statistics),
        "embedding_size": model.regions.channels,
        "box_pool": region_pool(pyramid, model.regions.pool_size, model.regions),
        "preprocess": batcher(model, pyramid, images),
        "inference": inference(model.inference),
    }


def inference(spec: specs.Inference) -> Inference:
    """What becomes a detection."""
    return Inference(
        score_threshold=spec.score_threshold,
        nms_threshold=spec.nms_threshold,
        detections_per_image=spec.detections_per_image,
        pre_nms_cap=spec.pre_nms_cap,
    )


def batcher(model: specs.ModelPart, pyramid: PyramidBackbone, images: Images) -> ImageBatcher:
    """From pictures to a batch."""
    return ImageBatcher(
        pyramid.mean,
        pyramid.std,
        short_side=images.test_short_side,
        long_side=images.test_long_side,
        channels_last=model.channels_last,
    )


def mask_arguments(model: specs.RCNN | specs.CascadeRCNN, pyramid: PyramidBackbone, stage: StageSpec) -> dict[str, Any]:
    """Arguments of the mask branch."""
    return {
        "mask_predictor": model.masks.predictor,
        "mask_layers": model.masks.channels,
        "mask_hidden": model.masks.channels[-1],
        "mask_pool": region_pool(pyramid, model.masks.pool_size, model.regions),
        "class_agnostic_mask": model.masks.class_agnostic,
        "mask_weight": stage.mask_weight,
    }


def stage_classifier(
    model: specs.ModelPart, stage: StageSpec, loss: ClassificationLoss
) -> classifier_specs.ClassifierSpec:
    """The classifier of a stage.

    Raises:
        UsageError: it does not work with the stage's loss.
    """
    chosen = stage.classifier or model.classifier
    if chosen.type not in loss.classifiers:
        raise UsageError(
            f"stage {stage.name!r}: the loss {stage.classification_loss.type!r} does not work with the classifier "
            f"{chosen.type!r}; it works with: {', '.join(sorted(loss.classifiers))}"
        )
    if isinstance(loss, LDAMLoss) and chosen != classifier_specs.Cosine(scale=1, learn_norm=False):
        raise UsageError(
            f"stage {stage.name!r}: the loss 'ldam' takes plain cosines and scales them itself; set the classifier to "
            "{type: cosine, scale: 1, learn_norm: false}"
        )
    return chosen


def matcher(spec: specs.MatcherSpec) -> Matcher:
    """Candidates with objects."""
    return Matcher(
        spec.high,
        spec.low,
        low_quality=spec.low_quality,
        min_low_quality=spec.min_low_quality,
        centre_in_gt=spec.centre_in_gt,
    )


def proposals(spec: specs.Proposals, pyramid: PyramidBackbone, statistics: ClassStatistics) -> ProposalNetwork:
    """The region proposal network.

    Raises:
        UsageError: not one anchor size per level.
    """
    levels = len(pyramid.strides)
    if len(spec.anchor_sizes) != levels:
        raise UsageError(
            f"model.proposals.anchor_sizes has {len(spec.anchor_sizes)} sizes, but the backbone gives {levels} levels "
            f"of strides {list(pyramid.strides)}; give one size per level"
        )
    return proposal_network(
        pyramid,
        sampler=region_sampler(spec.region_sampler, negative_iou=spec.matcher.low),
        matcher=matcher(spec.matcher),
        box_loss=box_loss(spec.box_loss),
        proposal_filter=proposal_filter(spec, statistics),
        top_in_losses=TopN(spec.before_nms[0], spec.after_nms[0]),
        top_in_detect=TopN(spec.before_nms[1], spec.after_nms[1]),
        anchor_sizes=[(size,) for size in spec.anchor_sizes],
        anchor_ratios=spec.aspect_ratios,
    )


def proposal_filter(spec: specs.Proposals, statistics: ClassStatistics) -> ProposalFilter:
    """Which candidates become proposals."""
    if spec.filter is None:
        return LevelNMS(spec.nms_threshold)
    by_group = {"r": spec.filter.rare, "c": spec.filter.common, "f": spec.filter.frequent, "-": spec.filter.frequent}
    thresholds = torch.tensor([by_group[group] for group in statistics.group.tolist()], dtype=torch.float64)
    return ResamplingNMS(thresholds, background_threshold=spec.nms_threshold, match_iou=spec.filter.match_iou)


def region_pool(pyramid: PyramidBackbone, size: int, spec: specs.RegionsPart) -> MultiScaleRoIAlign:
    """RoIAlign on all levels of the pyramid proper; an additional coarsest one is for anchors only. Boxes are not moved
    by half a pixel (``aligned``), which torchvision's pooling over levels does not offer."""
    names = [str(level) for level in range(len(pyramid.strides))]
    return MultiScaleRoIAlign(names, size, spec.sampling_ratio, canonical_scale=spec.canonical_scale)


def head(spec: specs.RegionsPart, pyramid: PyramidBackbone) -> Callable[[], nn.Module] | None:
    """Makes the head of one region head; None = the detector's own, two linear layers."""
    match spec.head:
        case specs.MLPHead():
            return None
        case specs.ConvHead() as conv:
            return partial(
                conv_head,
                pyramid.out_channels,
                spec.pool_size,
                spec.channels,
                layers=conv.layers,
                channels=conv.channels,
            )


def classifier(spec: classifier_specs.ClassifierSpec) -> ClassifierFactory:
    """(in_features, num_logits) -> classifier."""
    match spec:
        case classifier_specs.Linear():
            return partial(LinearClassifier, std=spec.std)
        case classifier_specs.Cosine():
            return partial(CosineClassifier, scale=spec.scale, learn_norm=spec.learn_norm)
        case classifier_specs.NormedLinear():
            return partial(NormedLinear, temperature=spec.temperature, power=spec.power)
        case classifier_specs.WeightScaling():
            return LearnableWeightScaling
        case classifier_specs.Deconfounded():
            return partial(
                DeconfoundedClassifier,
                heads=spec.heads,
                temperature=spec.temperature,
                gamma=spec.gamma,
                alpha=spec.alpha,
                momentum=spec.momentum,
            )
