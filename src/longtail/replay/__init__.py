"""Feature replay (seam 5): extra rows of weak classes for the last layers of the region head."""

from longtail.replay.base import FeatureReplay, RegionRows, ReplayRows
from longtail.replay.object_memory import ObjectMemory, targeted_classes
from longtail.replay.running_moments import RunningMoments
from longtail.replay.virtual_features import VirtualFeatures

__all__ = [
    "FeatureReplay",
    "ObjectMemory",
    "RegionRows",
    "ReplayRows",
    "RunningMoments",
    "VirtualFeatures",
    "targeted_classes",
]
