"""From the schema's model and stage to Deformable DETR."""

from __future__ import annotations

from longtail.build.detector import classifier, stage_classifier
from longtail.build.features import pyramid_backbone
from longtail.build.losses import classification_loss
from longtail.data import ClassStatistics
from longtail.models import DeformableDETR, ImageBatcher, deformable_detr
from longtail.models.postprocess import Inference
from longtail.schema import StageSpec, UsageError, features
from longtail.schema import detector as specs
from longtail.schema import losses as loss_specs
from longtail.schema import samplers as sampler_specs
from longtail.schema.recipe import Images


def build_deformable_detr(
    model: specs.DeformableDETR,
    images: Images,
    stage: StageSpec,
    statistics: ClassStatistics,
    *,
    pretrained: bool,
    trust: bool = False,
) -> DeformableDETR:
    """Deformable DETR for one stage of a recipe, with fresh weights.

    Args:
        model, images: of the resolved recipe.
        stage: one of its stages; its loss and classifier go into the detector.
        statistics: of the training annotations; counts for the loss.
        pretrained: whether the backbone's pretrained weights are loaded (not when other weights follow).
        trust: whether their file may hold Python objects, which can run code when it is opened.

    Raises:
        UsageError: parts that do not go together, with what would, or a missing package.
        LongtailError: pretrained weights that cannot be had.
    """
    refuse_foreign_parts(stage)
    pyramid = pyramid_backbone(model.backbone, features.FPN(channels=8), pretrained=pretrained, trust=trust)
    loss = classification_loss(stage.classification_loss, statistics)
    return deformable_detr(
        pyramid,
        num_classes=statistics.num_classes,
        classification_loss=loss,
        classifier=classifier(stage_classifier(model, stage, loss)),
        classification_weight=stage.classification_loss.loss_weight,
        proposal_weight=model.proposal_weight,
        l1_weight=model.l1_weight * stage.box_weight,
        giou_weight=model.giou_weight * stage.box_weight,
        repeats=model.repeats,
        finest_stride=model.finest_stride,
        levels=model.levels,
        channels=model.channels,
        hidden=model.hidden,
        heads=model.heads,
        points=model.points,
        encoder_layers=model.encoder_layers,
        decoder_layers=model.decoder_layers,
        dropout=model.dropout,
        start=model.start,
        num_queries=model.num_queries,
        box_refine=model.box_refine,
        two_stage=model.two_stage,
        preprocess=ImageBatcher(
            pyramid.mean,
            pyramid.std,
            short_side=images.test_short_side,
            long_side=images.test_long_side,
            channels_last=model.channels_last,
        ),
        inference=Inference(
            score_threshold=model.inference.score_threshold,
            nms_threshold=model.inference.nms_threshold,
            detections_per_image=model.inference.detections_per_image,
            pre_nms_cap=model.inference.pre_nms_cap,
        ),
    )


def refuse_foreign_parts(stage: StageSpec) -> None:
    """Refuses parts of a stage that work on regions.

    Raises:
        UsageError: names the part and what works.
    """
    if stage.replay:
        names = ", ".join(repr(spec.type) for spec in stage.replay)
        raise UsageError(
            f"stage {stage.name!r} replays features of regions ({names}), but deformable_detr has none: its queries "
            "are matched with the objects of their own picture, so that a stored feature has no place among them; use "
            "replay with faster_rcnn or mask_rcnn, or replay=[] here"
        )
    if not isinstance(stage.region_sampler, sampler_specs.Random):
        raise UsageError(
            f"stage {stage.name!r} chooses regions by {stage.region_sampler.type!r}, but deformable_detr learns from "
            "all of its queries; use that with faster_rcnn or mask_rcnn, or region_sampler=random here"
        )
    if stage.box_loss != loss_specs.SmoothL1():
        raise UsageError(
            f"stage {stage.name!r} sets the box loss {stage.box_loss.type!r}, but deformable_detr learns boxes by L1 "
            "and GIoU together; set model.l1_weight and model.giou_weight instead"
        )
