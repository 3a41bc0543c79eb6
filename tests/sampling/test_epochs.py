"""Simulated epochs against loops that replay every step."""

from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.sampling.epochs import Memory, objects_per_class, pairs_of, replayed_per_class

quick = settings(max_examples=60, deadline=None)
IMAGES, C = 5, 4
pictures = st.lists(st.lists(st.integers(0, C - 1), max_size=4), min_size=IMAGES, max_size=IMAGES)
streams = st.lists(st.integers(0, IMAGES - 1), max_size=25)


def pairs(content):
    picture = np.array([i for i, labels in enumerate(content) for _ in labels], dtype=np.int32)
    label = np.array([c for labels in content for c in labels], dtype=np.int32)
    return pairs_of(picture, label, IMAGES, C)


def steps(content, stream, processes, size):
    """(process, labels in its batch) of every step, in order."""
    for process in range(processes):
        own = stream[process::processes]
        for begin in range(0, len(own), size):
            yield process, [c for i in own[begin : begin + size] for c in content[i]]


@quick
@given(
    pictures, streams, st.sets(st.integers(0, C - 1)), st.integers(0, 5), st.integers(1, 6), st.integers(1, 3),
    st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2)]), st.booleans(),
)  # fmt: skip
def test_agrees_with_loops(content, stream, targeted, count, capacity, positives, split, current):
    processes, size = split
    memory = Memory(np.isin(np.arange(C), list(targeted)), count, capacity, positives, current)
    rows, visits = replayed_per_class(
        pairs(content), np.array(stream, dtype=np.int64), memory, batch_size=processes * size, processes=processes
    )
    wanted, seen, bank = [0] * C, [0] * C, defaultdict(int)
    for process, labels in steps(content, stream, processes, size):
        for c in set(labels) & targeted if count else ():
            wanted[c] += count if current else min(count, bank[process, c])
            seen[c] += 1
            bank[process, c] = min(capacity, bank[process, c] + positives * labels.count(c))
    assert rows.tolist() == wanted
    assert visits.tolist() == seen


@quick
@given(pictures, streams)
def test_objects_of_a_stream(content, stream):
    found = objects_per_class(pairs(content), np.array(stream, dtype=np.int64))
    assert found.tolist() == [sum(content[i].count(c) for i in stream) for c in range(C)]


def test_a_class_seen_once_per_epoch():
    """RIO's worst case: one update per epoch, and nothing replayed in the first."""
    data = pairs([[0], [1], [1], [1], [1]])
    memory = Memory(np.array([True, False, False, False]), 20, 60)
    stream = np.tile(np.arange(5), 3)
    rows, visits = replayed_per_class(data, stream, memory, batch_size=1)
    assert rows.tolist() == [40, 0, 0, 0]
    assert visits.tolist() == [3, 0, 0, 0]
