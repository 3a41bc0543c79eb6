"""Rounds that measure the classification loss of every class on pictures that are not trained on (FASA, 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from longtail.data import ClassStatistics
from longtail.data.dataset import Target
from longtail.data.loader import PositionBatches, make_loader
from longtail.losses.auxiliary import Record
from longtail.losses.state import sum_over_ranks
from longtail.models.base import ClassHead, HeadRecord
from longtail.replay import VirtualFeatures
from longtail.sampling import ImageSampler
from longtail.schema.passes import ClassLosses
from longtail.training.class_log import ClassRow
from longtail.training.progress import Progress

if TYPE_CHECKING:
    from longtail.training.stage import Stage

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}


@dataclass(frozen=True)
class LossPictures:
    """What a round looks at: a data set, its images in the order of a round, and the classes."""

    dataset: Dataset[tuple[Tensor, Target]]
    sampler: ImageSampler
    statistics: ClassStatistics


@dataclass(frozen=True)
class Round:
    """What a round found: values for the curves, and a row per class."""

    values: dict[str, float]
    rows: list[ClassRow]


def class_loss_round(
    work: ClassLosses, stage: Stage, *, fabric: Fabric, seed: int, number: int, workers: int, progress: Progress
) -> Round:
    """Measures the losses of the classes and tells the replay parts that adapt to them.

    The detector runs its training path in evaluation mode, without gradients and without touching any state; the
    pictures and the regions drawn on them are the same in every round, unless they are augmented. The global random
    state is the same afterwards as before. Where the last batch is not full, the pictures begin again.

    Args:
        work: which pictures.
        stage: the stage.
        seed: of all draws.
        number: of the round, for augmentation.
        fabric, workers, progress: as for :func:`longtail.training.loop.train_stage`.
    """
    pictures = stage.loss_pictures[work]
    available = len(pictures.sampler.epoch(0))
    wanted = min(work.images or available, available)
    per_rank = max(1, stage.schedule.batch_size // stage.schedule.accumulate // fabric.world_size)
    count = -(-wanted // (per_rank * fabric.world_size))
    batches = PositionBatches(
        pictures.sampler,
        seed=seed + (number if work.augment else 0),
        batch_size=per_rank,
        num_batches=count,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    heads, names = stage.model.class_heads(), stage.model.head_records()
    sums = torch.zeros(len(heads), 2, pictures.statistics.num_classes + 1, dtype=torch.float64, device=fabric.device)
    progress.start("class losses", count * per_rank)
    stage.model.eval()
    with torch.no_grad(), torch.random.fork_rng(), fabric.autocast():
        torch.manual_seed(seed)
        for loaded in make_loader(pictures.dataset, batches, workers=workers):
            images, targets = fabric.to_device(loaded)
            record = Record(name for head in names for name in (head.logits, head.labels))
            stage.model(images, targets, record=record, update_state=False)
            add_losses(sums, heads, names, record)
            progress.advance(per_rank)
    progress.finish()
    loss_sum, rows = combined(sum_over_ranks(sums), [head.weight for head in names])
    parts = adapt_all(stage.model, len(heads), loss_sum, rows)
    return described(pictures.statistics, loss_sum, rows, parts)


def add_losses(sums: Tensor, heads: Sequence[ClassHead], names: Sequence[HeadRecord], record: Record) -> None:
    """Adds the loss and the number of one batch's rows to ``sums`` (H, 2, C + 1), head by head and class by class, the
    background last."""
    for own, head, name in zip(sums, heads, names, strict=True):
        labels = record[name.labels]
        losses = head.classification_loss.per_sample(record[name.logits], labels).to(sums.dtype)
        own[0].index_add_(0, labels, losses)
        own[1].index_add_(0, labels, torch.ones_like(losses))


def combined(sums: Tensor, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Sum of the losses and number of rows (C + 1,) of every class.

    With several heads the mean loss of a class is the sum of the heads' means, each times its weight relative to the
    first head's; the number of rows is the first head's. A head that has no rows of a class adds nothing.

    Args:
        sums: (H, 2, C + 1).
        weights: H factors, > 0.
    """
    if len(weights) == 1:
        return sums[0, 0], sums[0, 1]
    share = sums.new_tensor(weights) / weights[0]
    mean = (share[:, None] * sums[:, 0] / sums[:, 1].clamp(min=1)).sum(dim=0)
    return mean * sums[0, 1], sums[0, 1]


def adapt_all(model: nn.Module, heads: int, loss_sum: Tensor, rows: Tensor) -> list[VirtualFeatures]:
    """Tells every part that draws virtual features. The first head's parts decide, the others take their probabilities
    over; returns the first head's."""
    parts = [part for part in model.modules() if isinstance(part, VirtualFeatures)]
    per_head = len(parts) // max(heads, 1)
    for place, part in enumerate(parts):
        if place < per_head:
            part.adapt(loss_sum, rows)
        else:
            part.follow(parts[place % per_head])
    return parts[:per_head]


def described(statistics: ClassStatistics, loss_sum: Tensor, count: Tensor, parts: Sequence[VirtualFeatures]) -> Round:
    """A round's values: mean loss of the classes of every group that have rows, of the background, and by part the rows
    expected per step and the mean probability of every group (figure 3)."""
    number = count.cpu().numpy()
    loss = loss_sum.cpu().numpy() / np.maximum(number, 1)
    own, background = slice(0, statistics.num_classes), statistics.num_classes
    values = {} if number[background] == 0 else {"class_loss/background": float(loss[background])}
    for letter, name in GROUPS.items():
        member = (statistics.group == letter) & (number[own] > 0)
        if member.any():
            values[f"class_loss/{name}"] = float(loss[own][member].mean())
    chances = [part.prob.cpu().numpy() for part in parts]
    for place, chance in enumerate(chances):
        prefix = "virtual" if place == 0 else f"virtual{place}"
        values[f"{prefix}/expected_rows"] = float(chance.sum())
        values |= group_means(statistics, chance, prefix)
    rows = [
        ClassRow(
            name=statistics.names[each],
            group=str(statistics.group[each]),
            rows=int(number[each]),
            loss=float(loss[each]) if number[each] else None,
            probability=float(chances[0][each]) if chances else None,
        )
        for each in range(statistics.num_classes)
    ]
    return Round(values, rows)


def group_means(statistics: ClassStatistics, values: np.ndarray, prefix: str) -> Mapping[str, float]:
    """Mean of ``values`` (C,) over the classes of every group that has some."""
    return {
        f"{prefix}/{name}": float(values[statistics.group == letter].mean())
        for letter, name in GROUPS.items()
        if (statistics.group == letter).any()
    }
