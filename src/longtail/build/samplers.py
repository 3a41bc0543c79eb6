"""From the schema's samplers to objects."""

from __future__ import annotations

from longtail.data import AnnotationTable
from longtail.sampling import (
    ClassAwareSampler,
    ImageSampler,
    IoUBalancedNegatives,
    RandomRegions,
    RegionSampler,
    RepeatFactorSampler,
    UniformSampler,
)
from longtail.schema import parts


def image_sampler(
    spec: parts.Uniform | parts.RepeatFactor | parts.ClassAware, table: AnnotationTable, *, seed: int
) -> ImageSampler:
    """The image sampler of a stage, over the training table."""
    match spec:
        case parts.Uniform():
            return UniformSampler(table.num_images, seed=seed)
        case parts.RepeatFactor():
            return RepeatFactorSampler(
                table.image_start,
                table.label,
                table.num_classes,
                seed=seed,
                threshold=spec.threshold,
                exponent=spec.exponent,
                rounding=spec.rounding,
                count_empty=spec.count_empty,
            )
        case parts.ClassAware():
            return ClassAwareSampler(table.image_start, table.label, table.num_classes, seed=seed)


def region_sampler(spec: parts.Random | parts.IoUBalanced, *, negative_iou: float) -> RegionSampler:
    """The region sampler; ``negative_iou`` is the matcher's threshold below which a candidate is negative."""
    match spec:
        case parts.Random():
            return RandomRegions(spec.count, spec.positive_fraction)
        case parts.IoUBalanced():
            return IoUBalancedNegatives(
                spec.count, spec.positive_fraction, num_bins=spec.num_bins, negative_iou=negative_iou
            )
