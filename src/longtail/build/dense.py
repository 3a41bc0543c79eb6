"""From the schema's model and stage to RetinaNet."""

from __future__ import annotations

from longtail.build.detector import batcher, inference, matcher
from longtail.build.features import backbone
from longtail.build.losses import box_loss, classification_loss
from longtail.data import ClassStatistics
from longtail.losses import ClassificationLoss
from longtail.models.atss import ATSSMatcher
from longtail.models.backbones import ExtraLevel
from longtail.models.matching import Matcher
from longtail.models.retinanet import RetinaNet, octaves, retinanet
from longtail.schema import StageSpec, UsageError, dense
from longtail.schema import classifiers as classifier_specs
from longtail.schema import samplers as sampler_specs
from longtail.schema.recipe import Images

EXTRA_LEVELS: dict[str, ExtraLevel] = {"none": None, "p5": "p6p7", "c5": "c6c7"}
DENSE_NAMES = ("focal", "sigmoid", "efl", "ghm_c", "eql (form: sigmoid)", "federated", "class_balanced (form: focal)")


def build_retinanet(
    model: dense.RetinaNet,
    images: Images,
    stage: StageSpec,
    statistics: ClassStatistics,
    *,
    pretrained: bool,
    trust: bool = False,
) -> RetinaNet:
    """RetinaNet for one stage of a recipe, with fresh weights; arguments as for
    :func:`~longtail.build.detector.build_rcnn`.

    Raises:
        UsageError: parts that do not go together, with what would.
        LongtailError: pretrained weights that cannot be had.
    """
    loss = classification_loss(stage.classification_loss, statistics)
    refuse_foreign_parts(model, stage, loss)
    spec = model.dense
    pyramid = backbone(
        model.backbone,
        model.neck,
        pretrained=pretrained,
        trust=trust,
        finest_stage=spec.finest_stage,
        extra_level=EXTRA_LEVELS[spec.extra_levels],
    )
    levels = len(pyramid.strides)
    if len(spec.anchor_sizes) != levels:
        raise UsageError(
            f"model.dense.anchor_sizes has {len(spec.anchor_sizes)} sizes, but there are {levels} levels of strides "
            f"{list(pyramid.strides)}; give one size per level"
        )
    return retinanet(
        pyramid,
        num_classes=statistics.num_classes,
        classification_loss=loss,
        box_loss=box_loss(stage.box_loss),
        matcher=assigner(spec.assign),
        anchor_sizes=octaves(spec.anchor_sizes, spec.scales),
        anchor_ratios=spec.aspect_ratios,
        layers=spec.layers,
        norm=spec.norm,
        quality=spec.quality,
        box_weights=spec.box_weights,
        classification_weight=stage.classification_loss.loss_weight,
        box_weight=stage.box_weight,
        quality_weight=spec.quality_weight,
        preprocess=batcher(model, pyramid, images),
        inference=inference(model.inference),
        top_per_level=spec.top_per_level,
    )


def assigner(spec: dense.AssignSpec) -> Matcher | ATSSMatcher:
    """Anchors with objects."""
    match spec:
        case dense.IoUAssign():
            return matcher(spec)
        case dense.ATSS():
            return ATSSMatcher(spec.top)


def refuse_foreign_parts(model: dense.RetinaNet, stage: StageSpec, loss: ClassificationLoss) -> None:
    """Refuses what a detector without regions has no place for.

    Raises:
        UsageError: with what works instead.
    """
    if "dense" not in loss.heads:
        works = ", ".join(DENSE_NAMES)
        raise UsageError(
            f"stage {stage.name!r}: the loss {stage.classification_loss.type!r} is not for the anchors of a "
            f"retinanet, which works with: {works}"
        )
    chosen = stage.classifier or model.classifier
    if not isinstance(chosen, classifier_specs.Linear):
        raise UsageError(
            f"stage {stage.name!r}: a retinanet classifies by a convolution, which is linear; the classifier "
            f"{chosen.type!r} takes features of regions; set it to linear, or use a two-stage detector"
        )
    if not isinstance(stage.region_sampler, sampler_specs.Random):
        raise UsageError(
            f"stage {stage.name!r}: a retinanet learns from all anchors, so the region sampler "
            f"{stage.region_sampler.type!r} has nothing to choose; leave it at random, or use a two-stage detector"
        )
    if stage.replay:
        raise UsageError(
            f"stage {stage.name!r}: feature replay adds regions, and a retinanet has none; use a two-stage detector"
        )
