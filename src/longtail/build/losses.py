"""From the schema's losses to modules: one table per family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from longtail.data import ClassStatistics
from longtail.losses import (
    ACSLoss,
    AuxiliaryLoss,
    BalancedL1Loss,
    BalancedSoftmaxLoss,
    BoxLoss,
    BucketedReweightingLoss,
    ClassBalancedLoss,
    ClassificationDistillation,
    ClassificationLoss,
    DropLoss,
    EqualizationLoss,
    EqualizationLossV2,
    EqualizedFocalLoss,
    EquilibriumLoss,
    FederatedLoss,
    FocalLoss,
    GHMClassification,
    GHMRegression,
    GIoULoss,
    GroupSoftmaxLoss,
    L1Loss,
    LDAMLoss,
    LGRCrossEntropy,
    LGRL1Loss,
    LogitAdjustedLoss,
    MaskedFeatureDistillation,
    MeanScore,
    ObjectnessSoftmax,
    RegionFeatureDistillation,
    SeesawLoss,
    SigmoidCrossEntropy,
    SmoothL1Loss,
    SoftmaxCrossEntropy,
)
from longtail.schema import losses as specs
from longtail.schema import stepwise


def classification_loss(
    spec: specs.ClassificationLossSpec, statistics: ClassStatistics, mean_score: MeanScore | None = None
) -> ClassificationLoss:
    """The classification loss a stage asks for; counts come from the training annotations, mean scores from the stage's
    own ``mean_score``, None = new ones."""
    classes = statistics.num_classes
    instances = torch.as_tensor(statistics.instance_counts)
    frequency = torch.as_tensor(statistics.image_frequency)
    match spec:
        case specs.Softmax():
            return SoftmaxCrossEntropy(num_classes=classes)
        case specs.Objectness():
            return ObjectnessSoftmax(num_classes=classes)
        case specs.Sigmoid():
            return SigmoidCrossEntropy(num_classes=classes, background_logit=spec.background_logit, prior=spec.prior)
        case specs.Focal():
            return FocalLoss(num_classes=classes, form=spec.form, gamma=spec.gamma, alpha=spec.alpha, prior=spec.prior)
        case specs.BalancedSoftmax():
            return BalancedSoftmaxLoss(
                instances, frequency, form=spec.form, background=spec.background, prior=spec.prior
            )
        case specs.ClassBalanced():
            return ClassBalancedLoss(instances, beta=spec.beta, form=spec.form, background=spec.background)
        case specs.EqualizedFocal():
            return EqualizedFocalLoss(
                classes, gamma=spec.gamma, scale=spec.scale, alpha=spec.alpha, prior=spec.prior, sync=spec.sync
            )
        case specs.GHMC():
            return GHMClassification(classes, bins=spec.bins, momentum=spec.momentum, prior=spec.prior, sync=spec.sync)
        case specs.GroupSoftmax():
            return GroupSoftmaxLoss(instances, edges=spec.edges, others_ratio=spec.others_ratio)
        case specs.LDAM():
            return LDAMLoss(instances, max_margin=spec.max_margin, scale=spec.scale, beta=spec.beta)
        case specs.LogitAdjusted():
            return LogitAdjustedLoss(instances, tau=spec.tau)
        case specs.ACSL():
            counts = statistics.image_counts if statistics.count == "images" else statistics.instance_counts
            return ACSLoss(
                torch.as_tensor(counts), edges=statistics.edges, threshold=spec.threshold,
                common_share=spec.common_share, rare_share=spec.rare_share, prior=spec.prior,
            )  # fmt: skip
        case specs.Drop():
            return DropLoss(frequency, threshold=spec.threshold, prior=spec.prior)
        case specs.Equalization():
            return EqualizationLoss(frequency, threshold=spec.threshold, form=spec.form, prior=spec.prior)
        case specs.EqualizationV2():
            return EqualizationLossV2(
                classes, gamma=spec.gamma, mu=spec.mu, alpha=spec.alpha, prior=spec.prior, sync=spec.sync
            )
        case specs.Equilibrium():
            return EquilibriumLoss(instances if spec.guide == "instances" else mean_score or MeanScore(classes))
        case specs.Federated():
            images = torch.as_tensor(statistics.image_counts)
            return FederatedLoss(images, subset=spec.subset, power=spec.power, prior=spec.prior)
        case specs.Seesaw():
            return SeesawLoss(classes, p=spec.p, q=spec.q, eps=spec.eps, sync=spec.sync)
        case specs.LGR():
            return LGRCrossEntropy(
                classes,
                alpha=spec.alpha,
                gamma=spec.gamma,
                form=spec.form,
                norm=spec.norm,
                background_logit=spec.background_logit,
                prior=spec.prior,
            )
        case specs.Bucketed():
            counts = statistics.image_counts if spec.count == "images" else statistics.instance_counts
            return BucketedReweightingLoss(
                classes,
                torch.as_tensor(counts),
                num_buckets=spec.num_buckets,
                a=spec.a,
                tau=spec.tau,
                on_background=spec.on_background,
                background_logit=spec.background_logit,
                prior=spec.prior,
                lgr=spec.lgr,
                lgr_alpha=spec.lgr_alpha,
                lgr_gamma=spec.lgr_gamma,
            )


def box_loss(spec: specs.BoxLossSpec) -> BoxLoss:
    """The box loss."""
    match spec:
        case specs.SmoothL1():
            return SmoothL1Loss(beta=spec.beta)
        case specs.L1():
            return L1Loss()
        case specs.GIoU():
            return GIoULoss()
        case specs.GHMR():
            return GHMRegression(mu=spec.mu, bins=spec.bins, momentum=spec.momentum, sync=spec.sync)
        case specs.BalancedL1():
            return BalancedL1Loss(alpha=spec.alpha, gamma=spec.gamma, beta=spec.beta, beta_form=spec.beta_form)
        case specs.LGRL1():
            return LGRL1Loss(alpha=spec.alpha, gamma=spec.gamma, beta=spec.beta)


def auxiliary_losses(
    specs: Sequence[stepwise.AuxiliaryLossSpec], statistics: ClassStatistics, *, rows: Literal["query", "region"]
) -> list[AuxiliaryLoss]:
    """Losses between student and teacher; ``rows`` says what the model classifies."""
    return [auxiliary_loss(spec, statistics, rows=rows) for spec in specs]


def auxiliary_loss(
    spec: stepwise.AuxiliaryLossSpec, statistics: ClassStatistics, *, rows: Literal["query", "region"]
) -> AuxiliaryLoss:
    """One of them."""
    head = torch.as_tensor(statistics.image_counts) >= spec.head_min_images
    match spec:
        case stepwise.MaskedFeatures():
            return MaskedFeatureDistillation(
                head, loss_weight=spec.loss_weight, mask_space=spec.mask_space, mask_round=spec.mask_round
            )
        case stepwise.RegionFeatures():
            return RegionFeatureDistillation(head, loss_weight=spec.loss_weight)
        case stepwise.ClassificationDistillationSpec():
            return ClassificationDistillation(
                head,
                loss_weight=spec.loss_weight,
                rows=rows,
                shared=spec.shared,
                align=spec.align,
                classes=spec.classes,
                layers=spec.layers,
                temperature=spec.temperature,
            )
