"""Losses: classification (seam 6), boxes (seam 7) and between two networks (seam 9).

Every class works alone in any PyTorch loop: explicit arguments in, a scalar out.
"""

from longtail.losses.acsl import ACSLoss
from longtail.losses.auxiliary import AuxiliaryLoss, Record
from longtail.losses.balanced_l1 import BalancedL1Loss, LGRL1Loss
from longtail.losses.balanced_softmax import BalancedSoftmaxLoss
from longtail.losses.base import BatchLoss, BoxLoss, ClassificationLoss
from longtail.losses.boxes import GIoULoss, L1Loss, SmoothL1Loss
from longtail.losses.bucketed_reweighting import BucketedReweightingLoss
from longtail.losses.class_balanced import ClassBalancedLoss
from longtail.losses.classification_distillation import ClassificationDistillation
from longtail.losses.drop_loss import DropLoss
from longtail.losses.equalization import EqualizationLoss
from longtail.losses.equalization_v2 import EqualizationLossV2
from longtail.losses.equalized_focal import EqualizedFocalLoss
from longtail.losses.equilibrium import EquilibriumLoss
from longtail.losses.federated import FederatedLoss
from longtail.losses.focal import FocalLoss
from longtail.losses.gradient_harmonising import GHMClassification, GHMRegression
from longtail.losses.group_softmax import GroupSoftmaxLoss
from longtail.losses.ldam import LDAMLoss
from longtail.losses.lgr_cross_entropy import LGRCrossEntropy
from longtail.losses.logit_adjusted import LogitAdjustedLoss
from longtail.losses.masked_feature_distillation import MaskedFeatureDistillation
from longtail.losses.mean_score import MeanScore
from longtail.losses.objectness_softmax import ObjectnessSoftmax
from longtail.losses.region_feature_distillation import RegionFeatureDistillation
from longtail.losses.seesaw import SeesawLoss
from longtail.losses.sigmoid import SigmoidCrossEntropy
from longtail.losses.softmax import SoftmaxCrossEntropy

__all__ = [
    "ACSLoss",
    "AuxiliaryLoss",
    "BalancedL1Loss",
    "BalancedSoftmaxLoss",
    "BatchLoss",
    "BoxLoss",
    "BucketedReweightingLoss",
    "ClassBalancedLoss",
    "ClassificationDistillation",
    "ClassificationLoss",
    "DropLoss",
    "EqualizationLoss",
    "EqualizationLossV2",
    "EqualizedFocalLoss",
    "EquilibriumLoss",
    "FederatedLoss",
    "FocalLoss",
    "GHMClassification",
    "GHMRegression",
    "GIoULoss",
    "GroupSoftmaxLoss",
    "L1Loss",
    "LDAMLoss",
    "LGRCrossEntropy",
    "LGRL1Loss",
    "LogitAdjustedLoss",
    "MaskedFeatureDistillation",
    "MeanScore",
    "ObjectnessSoftmax",
    "Record",
    "RegionFeatureDistillation",
    "SeesawLoss",
    "SigmoidCrossEntropy",
    "SmoothL1Loss",
    "SoftmaxCrossEntropy",
]
