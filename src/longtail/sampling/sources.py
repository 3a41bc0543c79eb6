"""Images of several sources in a fixed ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longtail.sampling.images import ImageSampler

EPOCHS_APART = 2**32
"""An epoch takes from the inner samplers' epochs ``epoch * 2**32``, ``epoch * 2**32 + 1`` and so on."""


@dataclass(frozen=True, eq=False)
class WeightedSource:
    """One source.

    Attributes:
        name: for people.
        rows: (n,) its images in the whole table.
        sampler: over these n images alone.
        weight: share of the images drawn, relative to the other sources, > 0.
    """

    name: str
    rows: NDArray[np.int64]
    sampler: ImageSampler
    weight: float


class SourceSampler(ImageSampler):
    """Draws from every source with its own sampler, in a fixed ratio.

    An epoch is as long as the sources' own epochs together. Source s gives a share ``w_s / sum(w)`` of it; its images
    come in the order of its own sampler's lists, as many lists one after the other as are needed, the last one cut off.
    The sources take turns such that among the first n images of an epoch there are ``n * share`` of each, off by less
    than one. In any stretch of n images two sources thus have ``n * share`` rounded up or down; with more sources, a
    source is off by less than two.

    Every epoch starts afresh, so it depends on (seed, epoch) alone. The ratio is that of whole batches: where a batch
    is shared between processes, a single process's images may be of one source alone.

    Args:
        sources: at least one; together they hold every image once.
        seed: kept for the record; the draws are those of the inner samplers.

    Raises:
        ValueError: no source, or a weight that is not above 0.
    """

    def __init__(self, sources: Sequence[WeightedSource], *, seed: int) -> None:
        super().__init__(sum(len(source.rows) for source in sources), seed=seed)
        weights = np.array([source.weight for source in sources], dtype=np.float64)
        if not (np.isfinite(weights) & (weights > 0)).all():
            raise ValueError(f"weights of sources must be above 0, got {weights.tolist()}")
        self.sources = tuple(sources)
        self.shares = weights / weights.sum()

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Rows of the whole table, the sources mixed."""
        first = [source.sampler.epoch(epoch * EPOCHS_APART) for source in self.sources]
        turns = take_turns(self.shares, sum(len(rows) for rows in first))
        mixed = np.empty(len(turns), dtype=np.int64)
        for number, source in enumerate(self.sources):
            places = np.flatnonzero(turns == number)
            lists, length = [first[number]], len(first[number])
            while length < len(places):
                lists.append(source.sampler.epoch(epoch * EPOCHS_APART + len(lists)))
                length += len(lists[-1])
            mixed[places] = source.rows[np.concatenate(lists)[: len(places)]]
        return mixed

    def describe(self) -> str:
        """One line: the share of every source, against its share of the images, and its sampler."""
        parts = [
            f"{source.name} {share:.1%} (holds {len(source.rows) / self.num_images:.1%}): {source.sampler.describe()}"
            for source, share in zip(self.sources, self.shares.tolist(), strict=True)
        ]
        return f"{len(self.sources)} sources in a fixed ratio; " + "; ".join(parts)


def take_turns(shares: NDArray[np.float64], length: int) -> NDArray[np.int64]:
    """(length,) whose turn it is, such that after n turns everybody has had ``n * share`` of them, off by less
    than one.

    Tijdeman's rule for the chairman assignment problem (Discrete Mathematics 32, 1980): of those whose deficit allows a
    turn, the one whose turn is due first.

    Args:
        shares: (S,) above 0, sum 1.
        length: number of turns, at least 0.
    """
    if len(shares) == 1:
        return np.zeros(length, dtype=np.int64)
    slack = 1 / (2 * len(shares) - 2)
    share = shares.tolist()
    had = [0] * len(share)
    turns = np.empty(length, dtype=np.int64)
    for turn in range(1, length + 1):
        deficits = [each * turn - count for each, count in zip(share, had, strict=True)]
        due = [
            ((1 - slack - deficit) / share[number], number)
            for number, deficit in enumerate(deficits)
            if deficit >= slack - 1e-9
        ]
        number = min(due)[1] if due else int(np.argmax(deficits))
        had[number] += 1
        turns[turn - 1] = number
    return turns
