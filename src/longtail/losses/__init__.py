"""Losses: classification (seam 6), boxes (seam 7) and between two networks (seam 9).

Every class works alone in any PyTorch loop: explicit arguments in, a scalar out.
"""

from longtail.losses.auxiliary import AuxiliaryLoss, Record
from longtail.losses.balanced_softmax import BalancedSoftmaxLoss
from longtail.losses.base import BoxLoss, ClassificationLoss
from longtail.losses.boxes import GIoULoss, L1Loss, SmoothL1Loss
from longtail.losses.class_balanced import ClassBalancedLoss
from longtail.losses.focal import FocalLoss
from longtail.losses.group_softmax import GroupSoftmaxLoss
from longtail.losses.ldam import LDAMLoss
from longtail.losses.logit_adjusted import LogitAdjustedLoss
from longtail.losses.masked_feature_distillation import MaskedFeatureDistillation
from longtail.losses.objectness_softmax import ObjectnessSoftmax
from longtail.losses.sigmoid import SigmoidCrossEntropy
from longtail.losses.softmax import SoftmaxCrossEntropy

__all__ = [
    "AuxiliaryLoss",
    "BalancedSoftmaxLoss",
    "BoxLoss",
    "ClassBalancedLoss",
    "ClassificationLoss",
    "FocalLoss",
    "GIoULoss",
    "GroupSoftmaxLoss",
    "L1Loss",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "MaskedFeatureDistillation",
    "ObjectnessSoftmax",
    "Record",
    "SigmoidCrossEntropy",
    "SmoothL1Loss",
    "SoftmaxCrossEntropy",
]
