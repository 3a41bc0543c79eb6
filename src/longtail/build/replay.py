"""From the schema's replay parts to modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longtail.data import ClassStatistics
from longtail.replay import FeatureReplay, ObjectMemory
from longtail.schema import parts


def replay_parts(specs: Sequence[parts.ObjectMemory], statistics: ClassStatistics) -> list[FeatureReplay]:
    """Replay parts of a stage, in order."""
    images = torch.as_tensor(statistics.image_counts)
    return [
        ObjectMemory(
            statistics.num_classes,
            (images > 0) & (images <= spec.max_images),
            count=spec.count,
            source=spec.source,
        )
        for spec in specs
    ]
