"""From a recipe to the model of one of its stages."""

from __future__ import annotations

import torch

from longtail.build.cascade import build_cascade
from longtail.build.classify import build_classifier
from longtail.build.deformable_detr import build_deformable_detr
from longtail.build.dense import build_retinanet
from longtail.build.detector import build_rcnn
from longtail.build.proposer import build_proposal_detector, build_proposer
from longtail.data import ClassStatistics
from longtail.models import RCNN, BoxStage, CalibratedHead, adjust_logits, tau_normalise
from longtail.models.adjustment import leave_logits
from longtail.models.base import TrainableModel
from longtail.schema import Recipe, StageSpec, UsageError, dense
from longtail.schema import classifiers as classifier_specs
from longtail.schema import detector as specs
from longtail.schema.image_classifier import ImageClassifier


def build_model(
    recipe: Recipe, stage: StageSpec, statistics: ClassStatistics, *, pretrained: bool, trust: bool = False
) -> TrainableModel:
    """The model of one stage of a recipe, with fresh weights.

    Args:
        recipe: resolved.
        stage: one of its stages; its losses, samplers, replay and classifier go into the model.
        statistics: of the training annotations; counts for losses and replay.
        pretrained: whether the backbone's pretrained weights are loaded (not when other weights follow).
        trust: whether their file may hold Python objects, which can run code when it is opened.

    Raises:
        UsageError: parts that do not go together, with what would.
        LongtailError: pretrained weights that cannot be had.
    """
    if stage.proposals != "network" and not isinstance(recipe.model, specs.TwoStagePart):
        raise UsageError(
            f"stage {stage.name!r} says proposals={stage.proposals}, but {recipe.model.type} looks at no proposals; "
            "use a two-stage detector, such as model=faster_rcnn"
        )
    if stage.calibration is not None and recipe.model.type not in ("faster_rcnn", "mask_rcnn"):
        raise UsageError(
            f"stage {stage.name!r}: a calibrated head stands beside the one region head of faster_rcnn and mask_rcnn, "
            f"not in {recipe.model.type}; take one of them or leave the stage's calibration out"
        )
    match recipe.model:
        case specs.RCNN() | specs.CascadeRCNN() as spec if stage.proposals == "only":
            return build_proposer(spec, recipe.images, statistics, pretrained=pretrained, trust=trust)
        case specs.RCNN() as spec:
            model = build_rcnn(spec, recipe.images, stage, statistics, pretrained=pretrained, trust=trust)
            adjust(model, spec.inference.adjust, statistics)
            if stage.calibration is not None:
                model.box.calibrated = calibrated_head(stage.calibration, model.box, statistics)
            return model
        case ImageClassifier() as spec:
            pictures = build_classifier(spec, stage, statistics, pretrained=pretrained, trust=trust)
            adjust(pictures, spec.inference.adjust, statistics)
            return pictures
        case specs.CascadeRCNN() as spec:
            cascade = build_cascade(spec, recipe.images, stage, statistics, pretrained=pretrained, trust=trust)
            adjust(cascade, spec.inference.adjust, statistics)
            return cascade
        case dense.RetinaNet() as spec:
            one_stage = build_retinanet(spec, recipe.images, stage, statistics, pretrained=pretrained, trust=trust)
            adjust(one_stage, spec.inference.adjust, statistics)
            return one_stage
        case dense.RegionProposalNetwork() as spec:
            return build_proposal_detector(spec, recipe.images, stage, statistics, pretrained=pretrained, trust=trust)
        case specs.DeformableDETR() as spec:
            queries = build_deformable_detr(spec, recipe.images, stage, statistics, pretrained=pretrained, trust=trust)
            adjust(queries, spec.inference.adjust, statistics)
            return queries


def calibrated_head(spec: classifier_specs.Calibrated, box: BoxStage, statistics: ClassStatistics) -> CalibratedHead:
    """The second head of a region head; as it is built, both have the same fresh weights unless it starts anew."""
    tail = torch.as_tensor(statistics.instance_counts) < spec.tail_below
    prior = box.classification_loss.bias_prior
    return CalibratedHead.beside(box.head, box.classifier, tail, start=spec.start, bias_prior=prior)


def start_calibration(model: TrainableModel, stage: StageSpec) -> str | None:
    """Gives the calibrated head the weights that the original head has now, if the stage says so; says what it did."""
    if not isinstance(model, RCNN) or model.box.calibrated is None or stage.calibration is None:
        return None
    tail = model.box.calibrated.tail
    text = f"the calibrated head scores {int(tail.sum())} of {len(tail)} classes (fewer than "
    text += f"{stage.calibration.tail_below} training objects)"
    if stage.calibration.start == "new":
        return f"{text} and starts anew"
    model.box.calibrated.copy_from(model.box.head, model.box.classifier)
    return f"{text} and starts as a copy of the original"


def adjust(
    model: TrainableModel, spec: specs.TauNormalise | specs.AdjustLogits | None, statistics: ClassStatistics
) -> None:
    """Sets what happens to the class logits when detecting; again whenever the weights have changed.

    Raises:
        UsageError: the model has another loss or classifier than the tool needs.
    """
    match spec:
        case None:
            leave_logits(model)
        case specs.TauNormalise():
            tau_normalise(model, tau=spec.tau, keep_bias=spec.keep_bias, keep_background=spec.keep_background)
        case specs.AdjustLogits():
            counts = torch.as_tensor(statistics.instance_counts)
            adjust_logits(model, counts, tau=spec.tau, keep_background=spec.keep_background)
