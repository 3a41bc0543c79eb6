"""From the schema's samplers to objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longtail.data import AnnotationTable
from longtail.sampling import (
    BiLevelSampler,
    ClassAwareSampler,
    ClassBalancedPositives,
    GroupRepeatFactorSampler,
    ImageSampler,
    InstanceBalancedPositives,
    IoUBalancedNegatives,
    OnlineHardExamples,
    RandomRegions,
    RegionSampler,
    RepeatFactorSampler,
    UniformSampler,
)
from longtail.sampling.sources import SourceSampler, WeightedSource
from longtail.schema import UsageError
from longtail.schema import samplers as sampler_specs
from longtail.schema.stage import StageSpec


def image_sampler(
    spec: sampler_specs.SamplerSpec, table: AnnotationTable, *, seed: int, image_counts: NDArray[np.int64] | None = None
) -> ImageSampler:
    """The image sampler of a stage, over the pictures of ``table``; ``image_counts`` (C,) are those of the whole
    training set, where these are only a part of it."""
    match spec:
        case sampler_specs.Uniform():
            return UniformSampler(table.num_images, seed=seed)
        case sampler_specs.RepeatFactor():
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
        case sampler_specs.ClassAware():
            return ClassAwareSampler(table.image_start, table.label, table.num_classes, seed=seed)
        case sampler_specs.BiLevel():
            return BiLevelSampler(table.image_start, table.label, table.num_classes, seed=seed)
        case sampler_specs.HeadRepeatFactor() | sampler_specs.TailRepeatFactor():
            return GroupRepeatFactorSampler(
                table.image_start,
                table.label,
                table.num_classes,
                image_counts=table.statistics().image_counts if image_counts is None else image_counts,
                seed=seed,
                edges=spec.edges,
                thresholds=spec.thresholds,
                exponents=spec.exponents,
                epoch_length=spec.epoch_length,
            )


def stage_sampler(
    stage: StageSpec, table: AnnotationTable, *, seed: int, image_counts: NDArray[np.int64] | None = None
) -> ImageSampler:
    """The image sampler of a stage: over the whole table, or, with ``source_weights``, one for every source, each of
    which sees the images of its source alone.

    Args:
        stage: its sampler.
        table: the pictures it trains on.
        seed: source of all draws.
        image_counts: (C,) as for :func:`image_sampler`.

    Raises:
        UsageError: another number of weights than sources, or a source without images or (class-aware) objects.
    """
    if not stage.source_weights:
        return image_sampler(stage.sampler, table, seed=seed, image_counts=image_counts)
    names = [source.name for source in table.sources] or [table.source]
    if len(stage.source_weights) != len(names):
        raise UsageError(
            f"stage {stage.name!r}: {len(stage.source_weights)} source_weights for {len(names)} annotation sources "
            f"({', '.join(names)}); give one weight for each"
        )
    own = np.zeros(table.num_images, np.int32) if table.source_of_image is None else table.source_of_image
    sources = []
    for number, (name, weight) in enumerate(zip(names, stage.source_weights, strict=True)):
        rows = np.flatnonzero(own == number).astype(np.int64)
        part = table.select(rows)
        if not len(rows) or (not len(part.label) and stage.sampler.type == "class_aware"):
            raise UsageError(f"stage {stage.name!r}: {name} has no images to draw from; leave it away")
        inner_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        sampler = image_sampler(stage.sampler, part, seed=inner_seed, image_counts=image_counts)
        sources.append(WeightedSource(name, rows, sampler, weight))
    return SourceSampler(sources, seed=seed)


def region_sampler(spec: sampler_specs.RegionSamplerSpec, *, negative_iou: float) -> RegionSampler:
    """The region sampler; ``negative_iou`` is the matcher's threshold below which a candidate is negative.

    Raises:
        UsageError: a floor set that reaches up to that threshold.
    """
    if isinstance(spec, sampler_specs.HardExamples):
        return OnlineHardExamples(spec.count, spec.positive_fraction)
    negatives = negative_sampler(spec, negative_iou=negative_iou)
    match spec.positives:
        case "random":
            return negatives
        case "per_object":
            return InstanceBalancedPositives(spec.count, spec.positive_fraction, negatives=negatives)
        case "per_class":
            return ClassBalancedPositives(spec.count, spec.positive_fraction, negatives=negatives)


def negative_sampler(spec: sampler_specs.Random | sampler_specs.IoUBalanced, *, negative_iou: float) -> RandomRegions:
    """The sampler with positives at random."""
    match spec:
        case sampler_specs.Random():
            return RandomRegions(spec.count, spec.positive_fraction, negatives_per_positive=spec.negatives_per_positive)
        case sampler_specs.IoUBalanced():
            if spec.floor_iou >= negative_iou:
                raise UsageError(
                    f"region_sampler.floor_iou is {spec.floor_iou}, but candidates are negative below {negative_iou}; "
                    "give a smaller one"
                )
            return IoUBalancedNegatives(
                spec.count,
                spec.positive_fraction,
                num_bins=spec.num_bins,
                negative_iou=negative_iou,
                interval=spec.interval,
                zero_iou=spec.zero_iou,
                fill=spec.fill,
                floor_iou=spec.floor_iou,
                floor_fraction=spec.floor_fraction,
                negatives_per_positive=spec.negatives_per_positive,
            )
