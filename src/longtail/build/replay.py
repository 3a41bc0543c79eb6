"""From the schema's replay parts to modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longtail.data import ClassStatistics
from longtail.replay import (
    ExchangedMoments,
    FeatureReplay,
    InterpolatedFeatures,
    ObjectMemory,
    TransferredFeatures,
    targeted_classes,
)
from longtail.schema import UsageError, parts
from longtail.schema.explain import nearest


def replay_parts(
    specs: Sequence[parts.ReplaySpec], statistics: ClassStatistics, *, feature_size: int
) -> list[FeatureReplay]:
    """Replay parts of a stage, in order.

    Args:
        specs: of the stage.
        statistics: of the training annotations.
        feature_size: D, width of the features in front of the classifier.

    Raises:
        UsageError: a targeted class that the data does not have.
    """
    return [replay_part(spec, statistics, feature_size=feature_size) for spec in specs]


def replay_part(spec: parts.ReplaySpec, statistics: ClassStatistics, *, feature_size: int) -> FeatureReplay:
    """One replay part."""
    classes = statistics.num_classes
    match spec:
        case parts.ObjectMemory():
            return ObjectMemory(
                classes,
                targeted(spec, statistics),
                count=spec.count,
                capacity=spec.capacity,
                draw=spec.draw,
                source=spec.source,
                storage=spec.storage,
                lazy=spec.lazy,
            )
        case parts.InterpolatedFeatures():
            return InterpolatedFeatures(
                classes,
                targeted(spec, statistics),
                count=spec.count,
                neighbours=spec.neighbours,
                capacity=spec.capacity,
                storage=spec.storage,
                lazy=spec.lazy,
            )
        case parts.ExchangedMoments():
            return ExchangedMoments(classes, probability=spec.probability, mixing=spec.mixing, norm=spec.norm)
        case parts.TransferredFeatures():
            return TransferredFeatures(
                classes,
                feature_size,
                targeted(spec, statistics),
                count=spec.count,
                components=spec.components,
                momentum=spec.momentum,
                covariance_momentum=spec.covariance_momentum,
            )


def targeted(spec: parts.Targeted, statistics: ClassStatistics) -> Tensor:
    """(C,) bool, the classes that a part acts on: the named ones, or those with few training images, but some.

    Raises:
        UsageError: a named class that the data does not have; names the nearest.
    """
    images = torch.as_tensor(statistics.image_counts)
    if not spec.classes:
        return (images > 0) & targeted_classes(images, spec.max_images)
    unknown = [name for name in spec.classes if name not in statistics.names]
    if unknown:
        raise UsageError(f"replay: there is no class {unknown[0]!r}; {nearest(unknown[0], statistics.names)}")
    wanted = set(spec.classes)
    return torch.tensor([name in wanted for name in statistics.names])


def describe_replay(specs: Sequence[parts.ReplaySpec], statistics: ClassStatistics) -> list[str]:
    """What the replay parts act on, printed before training."""
    lines = []
    for spec in specs:
        if not isinstance(spec, parts.Targeted):
            continue
        chosen = targeted(spec, statistics).numpy()
        group = statistics.group[chosen].tolist()
        kind = "named" if spec.classes else f"at most {spec.max_images} images"
        groups = f"{group.count('r')} rare, {group.count('c')} common, {group.count('f')} frequent"
        lines.append(f"replay: {spec.type} acts on {len(group)} of {statistics.num_classes} classes ({kind}): {groups}")
    return lines
