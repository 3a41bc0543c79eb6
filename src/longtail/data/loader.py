"""Batches as a function of position: the same pictures, draws and order with any number of workers and processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from longtail.data.dataset import Draw, Target, draw_seed

Batch = tuple[list[Tensor], list[Target]]


class EpochLists(Protocol):
    """What the loader needs of an image sampler."""

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Rows of the pictures of this epoch, over all processes."""


class PositionBatches(Sampler[list[Draw]]):
    """Cuts the endless stream of epochs into batches and deals them to the processes.

    The stream is ``epoch(0), epoch(1), ...`` one after the other. The global batch k holds its elements
    ``[k * B, (k + 1) * B)``, B = ``batch_size * world_size``, of which process r gets every ``world_size``-th from
    the r-th on. Every element carries the seed of its draws, which depends on (seed, epoch, position) alone.

    Args:
        sampler: lists of pictures by epoch.
        seed: of all draws.
        batch_size: pictures per process and batch.
        num_batches: batches in all, those before ``start_batch`` included.
        start_batch: batches that are over already (a resumed run).
        rank, world_size: this process, and how many there are.
    """

    def __init__(
        self,
        sampler: EpochLists,
        *,
        seed: int,
        batch_size: int,
        num_batches: int,
        start_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or not 0 <= start_batch <= num_batches:
            raise ValueError(
                f"batch_size {batch_size}, rank {rank} of {world_size} or start_batch {start_batch} of {num_batches} "
                "is out of range"
            )
        self.sampler = sampler
        self.seed = seed
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.start_batch = start_batch
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.num_batches - self.start_batch

    def __iter__(self) -> Iterator[list[Draw]]:
        whole = self.batch_size * self.world_size
        skip = self.start_batch * whole
        epoch, rows = 0, self._rows(0)
        while skip >= len(rows):
            skip -= len(rows)
            epoch += 1
            rows = self._rows(epoch)
        for _ in range(len(self)):
            batch: list[Draw] = []
            for place in range(whole):
                if skip == len(rows):
                    epoch, skip = epoch + 1, 0
                    rows = self._rows(epoch)
                if place % self.world_size == self.rank:
                    batch.append(Draw(int(rows[skip]), draw_seed(self.seed, epoch, skip)))
                skip += 1
            yield batch

    def _rows(self, epoch: int) -> NDArray[np.int64]:
        rows = self.sampler.epoch(epoch)
        if not len(rows):
            raise ValueError(f"the image sampler gives no picture in epoch {epoch}")
        return rows


def collate(items: Sequence[tuple[Tensor, Target]]) -> Batch:
    """Pictures and targets as two lists; pictures differ in size."""
    return [image for image, _ in items], [target for _, target in items]


def make_loader(
    dataset: Dataset[tuple[Tensor, Target]], batches: PositionBatches, *, workers: int, pin_memory: bool = False
) -> DataLoader[tuple[Tensor, Target]]:
    """A loader of the given batches; ``workers`` = 0 loads in this process."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # the loader draws a base seed; not from the global generator
    )


def evaluation_loader(
    dataset: Dataset[tuple[Tensor, Target]], *, batch_size: int, workers: int, rank: int = 0, world_size: int = 1
) -> DataLoader[tuple[Tensor, Target]]:
    """Every picture once and in order; process r gets every ``world_size``-th from the r-th on."""
    own = list(range(rank, len(dataset), world_size))  # type: ignore[arg-type]
    return DataLoader(
        dataset,
        batch_sampler=[own[start : start + batch_size] for start in range(0, len(own), batch_size)],
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
