"""Feature replay (seam 5): extra rows of weak classes for the last layers of the region head."""

from longtail.losses.mean_score import MeanScore
from longtail.replay.base import FeatureReplay, RegionRows, ReplayRows
from longtail.replay.exchanged_moments import ExchangedMoments
from longtail.replay.feature_memory import FeatureMemory
from longtail.replay.interpolated_features import InterpolatedFeatures
from longtail.replay.jittered_boxes import jitter_boxes
from longtail.replay.object_memory import ObjectMemory, targeted_classes
from longtail.replay.running_moments import RunningMoments
from longtail.replay.transferred_features import TransferredFeatures
from longtail.replay.virtual_features import VirtualFeatures

__all__ = [
    "ExchangedMoments",
    "FeatureMemory",
    "FeatureReplay",
    "InterpolatedFeatures",
    "MeanScore",
    "ObjectMemory",
    "RegionRows",
    "ReplayRows",
    "RunningMoments",
    "TransferredFeatures",
    "VirtualFeatures",
    "jitter_boxes",
    "targeted_classes",
]
