"""What samplers and RIO's memory do to the classes in an epoch, counted without training (RIO, figure 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """The distinct (picture, class) pairs of a data set, sorted by picture.

    Attributes:
        picture, label, objects: (P,) picture, class and number of objects.
        num_pictures, num_classes: I and C.
    """

    picture: Ints
    label: Ints
    objects: Ints
    num_pictures: int
    num_classes: int

    def of(self, classes: NDArray[np.bool_]) -> Pairs:
        """Those of the classes for which ``classes`` (C,) is true."""
        rows = classes[self.label]
        return Pairs(self.picture[rows], self.label[rows], self.objects[rows], self.num_pictures, self.num_classes)


def pairs_of(picture: NDArray[np.int32], label: NDArray[np.int32], num_pictures: int, num_classes: int) -> Pairs:
    """The pairs of objects of which each is given by its picture and its class (A,), in any order."""
    key = picture.astype(np.int64) * num_classes + label
    distinct, objects = np.unique(key, return_counts=True)
    return Pairs(distinct // num_classes, distinct % num_classes, objects.astype(np.int64), num_pictures, num_classes)


@dataclass(frozen=True)
class Memory:
    """RIO's memory as far as numbers of rows go.

    Attributes:
        targeted: (C,) bool.
        count, capacity: x rows per visit, v rows per queue.
        positives: positive regions that an object is assumed to have in a step.
        current: whether this step's regions are repeated, without a bank.
    """

    targeted: NDArray[np.bool_]
    count: int
    capacity: int
    positives: int = 20
    current: bool = False


def objects_per_class(pairs: Pairs, stream: Ints) -> Ints:
    """(C,) objects in the pictures of a stream, which may repeat."""
    times = np.bincount(stream, minlength=pairs.num_pictures)
    weights = pairs.objects * times[pairs.picture]
    # whole numbers below 2 ** 53 stay whole
    return np.bincount(pairs.label, weights=weights, minlength=pairs.num_classes).astype(np.int64)


def replayed_per_class(
    pairs: Pairs, stream: Ints, memory: Memory, *, batch_size: int, processes: int = 1
) -> tuple[Ints, Ints]:
    """Rows that the memory adds, and visits: steps in which a class is in the batch of a process.

    Process k of W sees the pictures k, k + W, ... of the stream in batches of ``batch_size / W`` and has a bank of its
    own, empty at the start. A visit adds min(count, stored) rows, then stores ``positives`` rows per object.

    Args:
        pairs: of the data set.
        stream: pictures in the order of training, of one or several epochs.
        memory: the part.
        batch_size: pictures per step over all processes, a multiple of ``processes``.

    Returns:
        Rows (C,) and visits (C,), over all processes; 0 for classes that are not targeted.
    """
    own = pairs.of(memory.targeted)
    start = np.searchsorted(own.picture, np.arange(pairs.num_pictures + 1))
    per_picture = np.diff(start)[stream]
    place = np.repeat(np.arange(len(stream), dtype=np.int64), per_picture)  # of every pair in the stream
    within = np.arange(len(place)) - np.repeat(np.cumsum(per_picture) - per_picture, per_picture)
    row = start[:-1][stream[place]] + within

    process, turn = place % processes, place // processes
    step = turn // (batch_size // processes)
    steps = int(step.max(initial=0)) + 1
    key = (process * pairs.num_classes + own.label[row]) * steps + step  # by bank, class, time
    visit, index = np.unique(key, return_inverse=True)
    objects = np.bincount(index, weights=own.objects[row], minlength=len(visit)).astype(np.int64)
    queue = visit // steps
    label = queue % pairs.num_classes
    if memory.current:
        added = np.full(len(visit), memory.count, dtype=np.int64)
    else:
        arrived = np.cumsum(objects) - objects
        first = np.flatnonzero(np.diff(queue, prepend=-1))
        arrived -= np.repeat(arrived[first], np.diff(np.append(first, len(queue))))
        added = np.minimum(memory.count, np.minimum(memory.capacity, arrived * memory.positives))
    if memory.count == 0:
        label, added = label[:0], added[:0]
    rows = np.bincount(label, weights=added, minlength=pairs.num_classes).astype(np.int64)
    return rows, np.bincount(label, minlength=pairs.num_classes).astype(np.int64)
