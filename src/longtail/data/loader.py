"""Batches as a function of position: the same pictures, draws and order with any number of workers and processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from itertools import count
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from longtail.data.dataset import Draw, Target, draw_seed
from longtail.schema.errors import DataError

Batch = tuple[list[Tensor], list[Target]]


class EpochLists(Protocol):
    """What the loader needs of an image sampler."""

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Rows of the pictures of this epoch, over all processes."""

    def labels(self, epoch: int) -> NDArray[np.int64] | None:
        """The class each of them was drawn for, or None."""


class PositionBatches(Sampler[list[Draw]]):
    """Cuts the endless stream of epochs into batches and deals them to the processes.

    The stream is ``epoch(0), epoch(1), ...`` one after the other. The global batch k holds its elements
    ``[k * B, (k + 1) * B)``, B = ``batch_size * world_size``, of which process r gets every ``world_size``-th from
    the r-th on. Every element carries the seed of its draws, which depends on (seed, epoch, position) alone.

    Args:
        sampler: lists of pictures by epoch.
        seed: of all draws.
        batch_size: pictures per process and batch.
        num_batches: batches in all, those before ``start_batch`` included; None = without end.
        start_batch: batches that are over already (a resumed run).
        rank, world_size: this process, and how many there are.
    """

    def __init__(
        self,
        sampler: EpochLists,
        *,
        seed: int,
        batch_size: int,
        num_batches: int | None = None,
        start_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        past_end = num_batches is not None and start_batch > num_batches
        if batch_size < 1 or not 0 <= rank < world_size or start_batch < 0 or past_end:
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
        if self.num_batches is None:
            raise TypeError("batches without end have no number")
        return self.num_batches - self.start_batch

    def __iter__(self) -> Iterator[list[Draw]]:
        whole = self.batch_size * self.world_size
        skip = self.start_batch * whole
        epoch, rows = 0, self._rows(0)
        while skip >= len(rows):
            skip -= len(rows)
            epoch += 1
            rows = self._rows(epoch)
        labels = self.sampler.labels(epoch)
        for _ in count() if self.num_batches is None else range(len(self)):
            batch: list[Draw] = []
            for place in range(whole):
                if skip == len(rows):
                    epoch, skip = epoch + 1, 0
                    rows, labels = self._rows(epoch), self.sampler.labels(epoch)
                if place % self.world_size == self.rank:
                    label = None if labels is None else int(labels[skip])
                    batch.append(Draw(int(rows[skip]), draw_seed(self.seed, epoch, skip), label))
                skip += 1
            yield batch

    def _rows(self, epoch: int) -> NDArray[np.int64]:
        rows = self.sampler.epoch(epoch)
        if not len(rows):
            raise ValueError(f"the image sampler gives no picture in epoch {epoch}")
        return rows


class _Handed(Dataset[tuple[Tensor, Target] | DataError]):
    """Hands a picture that cannot be used on as a value: raised in a worker, the error would arrive with the worker's
    traceback for its text."""

    def __init__(self, dataset: Dataset[tuple[Tensor, Target]]) -> None:
        self.dataset = dataset

    def __getitem__(self, request: Draw | int) -> tuple[Tensor, Target] | DataError:
        try:
            return self.dataset[request]
        except DataError as error:
            return error


class PictureLoader(DataLoader[Any]):
    """Batches of pictures and targets, as two lists; pictures differ in size.

    Raises:
        DataError: (while iterating) a picture cannot be used; the same with workers and without.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield batch


def collate(items: Sequence[tuple[Tensor, Target] | DataError]) -> Batch | DataError:
    """Pictures and targets as two lists, or the first error."""
    images: list[Tensor] = []
    targets: list[Target] = []
    for item in items:
        if isinstance(item, DataError):
            return item
        images.append(item[0])
        targets.append(item[1])
    return images, targets


def make_loader(
    dataset: Dataset[tuple[Tensor, Target]], batches: PositionBatches, *, workers: int, pin_memory: bool = False
) -> PictureLoader:
    """A loader of the given batches; ``workers`` = 0 loads in this process."""
    return PictureLoader(
        _Handed(dataset),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # the loader draws a base seed; not from the global generator
    )


def evaluation_loader(
    dataset: Dataset[tuple[Tensor, Target]], *, batch_size: int, workers: int, rank: int = 0, world_size: int = 1
) -> PictureLoader:
    """Every picture once and in order; of the batches, process r gets every ``world_size``-th from the r-th on, so that
    a picture has the same neighbours, and the same padding, with any number of processes."""
    rows = list(range(len(dataset)))  # type: ignore[arg-type]
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return PictureLoader(
        _Handed(dataset),
        batch_sampler=batches[rank::world_size],
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
    )


def _start_worker(worker: int) -> None:
    """One thread, and no end by a signal that was meant for the whole process group: the main process decides when to
    end, after the step in progress. A second SIGTERM (PyTorch's own, to a worker that does not answer) is obeyed."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _second_time_ends)


def _second_time_ends(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
