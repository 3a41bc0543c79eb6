"""Which state of losses and feature replay goes on into the next stage, or into a run that starts from another."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from longtail.data.statistics import ClassStatistics
from longtail.losses.base import ClassificationLoss
from longtail.losses.mean_score import MeanScore
from longtail.replay.base import FeatureReplay
from longtail.schema.stage import StageSpec


def carried_state(
    model: nn.Module, state: dict[str, Tensor], spec: StageSpec, earlier: StageSpec, *, same_data: bool
) -> dict[str, Tensor]:
    """``state`` without what other parts have counted.

    A loss goes on counting where it has the type that it had, a part of feature replay where all its options are what
    they were, both on the same data only. What a part derives from its options and the data is its own in any case.

    Args:
        model: that of the stage that begins.
        state: of the model that it starts from.
        spec: the stage that begins.
        earlier: the stage that ``state`` comes from.
        same_data: whether both count the same objects.
    """
    same_loss = same_data and spec.classification_loss.type == earlier.classification_loss.type
    same_replay = [
        same_data and place < len(earlier.replay) and part == earlier.replay[place]
        for place, part in enumerate(spec.replay)
    ]
    same_replay.append(same_loss)  # mean scores that the recipe does not name, made for the loss
    parts = [(path, module) for path, module in model.named_modules(remove_duplicate=False) if path]
    kept = {  # parts of replay by place, also under the names that others know them by
        id(module): same_replay[min(int(path.rsplit(".", 1)[1]), len(spec.replay))]
        for path, module in parts
        if path.rpartition(".")[0].endswith("replay")
    }
    stale = [
        f"{path}."
        for path, module in parts
        if (isinstance(module, FeatureReplay | MeanScore) and not kept.get(id(module), same_data))
        or (isinstance(module, ClassificationLoss) and not same_loss)
    ]
    return {name: value for name, value in state.items() if not name.startswith(tuple(stale))}


def same_counts(one: ClassStatistics, other: ClassStatistics) -> bool:
    """Whether two sets of training annotations have the same classes, as often."""
    return (
        one.names == other.names
        and one.num_images == other.num_images
        and np.array_equal(one.image_counts, other.image_counts)
        and np.array_equal(one.instance_counts, other.instance_counts)
    )
