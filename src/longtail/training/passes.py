"""Passes over the data without an optimiser step: filling method state, measuring the loss on validation pictures."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import Tensor

from longtail.data.dataset import DetectionDataset
from longtail.data.loader import PositionBatches, make_loader
from longtail.sampling import ImageSampler, UniformSampler
from longtail.sampling.class_images import ClassImages
from longtail.schema import UsageError
from longtail.schema.passes import UpdateState, ValidationLoss
from longtail.training.averages import mean_losses
from longtail.training.progress import Progress
from longtail.training.stage import Stage


def run_pass(
    work: UpdateState | ValidationLoss, stage: Stage, *, fabric: Fabric, seed: int, workers: int, progress: Progress
) -> dict[str, float]:
    """Runs the detector's training path in evaluation mode without gradients and returns the mean losses.

    ``update_state`` lets losses and replay parts change their state; ``validation_loss`` does not, and looks at the
    validation pictures. The global random state is the same afterwards as before.

    Raises:
        UsageError: a validation pass without validation data.
    """
    updates = isinstance(work, UpdateState)
    dataset = stage.dataset if updates else stage.validation
    if dataset is None:
        raise UsageError(f"stage {stage.name!r} measures a validation loss; give validation data (--val)")
    size = len(dataset)  # type: ignore[arg-type]
    sampler: ImageSampler = stage.sampler if updates else UniformSampler(size, seed=seed)
    images = work.images or size
    if isinstance(work, UpdateState) and work.per_class:
        sampler = class_images(stage, work, seed=seed, world_size=fabric.world_size)
        images = len(sampler.epoch(0))
    if not updates:
        images = min(images, size)
    per_rank = max(1, stage.schedule.batch_size // stage.schedule.accumulate // fabric.world_size)
    count = -(-images // (per_rank * fabric.world_size))
    batches = PositionBatches(
        sampler,
        seed=seed,
        batch_size=per_rank,
        num_batches=count,
        start_batch=0,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    sums: dict[str, Tensor] = {}
    label = "update state" if updates else "validation loss"
    progress.start(label, count * per_rank)
    stage.model.eval()
    with torch.no_grad(), torch.random.fork_rng(), fabric.autocast():
        torch.manual_seed(seed)
        for loaded in make_loader(dataset, batches, workers=workers):
            pictures, targets = fabric.to_device(loaded)
            losses = stage.model(pictures, targets, update_state=updates)
            for name, value in losses.items():
                sums[name] = sums[name] + value.float() if name in sums else value.float()
            progress.advance(per_rank)
    progress.finish()
    prefix = "state" if updates else "validation"
    return {f"{prefix}/{name}": value for name, value in mean_losses(sums, count).items()}


def class_images(stage: Stage, work: UpdateState, *, seed: int, world_size: int) -> ClassImages:
    """So many of the stage's training pictures for every class and process; every process makes the same list."""
    dataset = stage.dataset
    assert isinstance(dataset, DetectionDataset)
    table = dataset.table
    return ClassImages(
        table.image_start,
        table.label,
        table.num_classes,
        per_class=work.per_class * world_size,
        choice=work.choice,
        seed=seed,
    )
