"""Which pictures and which regions are learnt from."""

from longtail.sampling.balanced_positives import ClassBalancedPositives, InstanceBalancedPositives
from longtail.sampling.bi_level import BiLevelSampler
from longtail.sampling.class_aware import ClassAwareSampler
from longtail.sampling.exemplars import exemplar_ranks, select_exemplars, smooth_tail_split
from longtail.sampling.group_repeat_factor import GroupRepeatFactorSampler
from longtail.sampling.hard_examples import OnlineHardExamples
from longtail.sampling.images import ImageSampler, UniformSampler
from longtail.sampling.iou_balanced import IoUBalancedNegatives
from longtail.sampling.random_regions import RandomRegions
from longtail.sampling.regions import RegionSampler
from longtail.sampling.repeat_factor import RepeatFactors, RepeatFactorSampler, repeat_factors
from longtail.sampling.sources import SourceSampler

__all__ = [
    "BiLevelSampler",
    "ClassAwareSampler",
    "ClassBalancedPositives",
    "GroupRepeatFactorSampler",
    "ImageSampler",
    "InstanceBalancedPositives",
    "IoUBalancedNegatives",
    "OnlineHardExamples",
    "RandomRegions",
    "RegionSampler",
    "RepeatFactorSampler",
    "RepeatFactors",
    "SourceSampler",
    "UniformSampler",
    "exemplar_ranks",
    "repeat_factors",
    "select_exemplars",
    "smooth_tail_split",
]
