"""Distances and groups of classes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.replay import class_groups
from longtail.replay.class_groups import affinity_groups, fisher_distances, fisher_groups, group_classes, without_noise
from longtail.schema import UsageError


def planted(groups: int, each: int, *, size: int = 16, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """Means of classes that lie around a few centres, and the centre of each."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(groups, size, generator=generator) * 10
    owner = torch.arange(groups).repeat_interleave(each)
    return centres[owner] + torch.randn(groups * each, size, generator=generator) * 0.05, owner.tolist()


def same_partition(one, other) -> bool:
    pairs = {(a, b) for a, b in zip(one, other, strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_by_hand() -> None:
    mean = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    var = torch.tensor([[1.0, 1.0], [1.0, 3.0]])
    found = fisher_distances(mean, var, eps=0.0)
    assert found.tolist() == [[0.0, 0.75], [0.75, 0.0]]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 99), st.integers(1, 40))
def test_blocks_are_the_loop(classes, size, seed, block) -> None:
    generator = torch.Generator().manual_seed(seed)
    mean, var = torch.randn(classes, size, generator=generator), torch.rand(classes, size, generator=generator)
    expected = [
        [
            sum((float(mean[i, d]) - float(mean[j, d])) ** 2 / (float(var[i, d]) + float(var[j, d]) + 1e-6)
                for d in range(size)) / size
            for j in range(classes)
        ]
        for i in range(classes)
    ]  # fmt: skip
    whole = class_groups.BLOCK
    class_groups.BLOCK = block
    try:
        found = fisher_distances(mean, var)
    finally:
        class_groups.BLOCK = whole
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_planted_groups_are_found() -> None:
    mean, owner = planted(6, 5)
    var = torch.full_like(mean, 0.05)
    seen = torch.ones(len(mean), dtype=torch.bool)
    for grouping in ("fisher_dbscan", "affinity"):
        assert same_partition(group_classes(mean, var, seen, grouping=grouping).tolist(), owner), grouping
    # the released code's wrong sign mixes them up
    assert not same_partition(group_classes(mean, var, seen, grouping="affinity_official").tolist(), owner)


def test_classes_never_seen_are_in_no_group() -> None:
    mean, owner = planted(2, 6)
    seen = torch.ones(12, dtype=torch.bool)
    seen[[0, 7]] = False
    for grouping in ("fisher_dbscan", "affinity"):
        found = group_classes(mean, torch.full_like(mean, 0.05), seen, grouping=grouping)
        assert found[[0, 7]].tolist() == [-1, -1]
        assert (found[seen.numpy()] >= 0).all()
    assert same_partition(found[seen.numpy()].tolist(), [o for o, s in zip(owner, seen.tolist(), strict=True) if s])
    alone = group_classes(mean, mean, seen, grouping="none")
    assert sorted(alone.tolist()) == [-1, -1, *range(10)]
    official = group_classes(mean, mean, seen, grouping="affinity_official")
    assert (official >= 0).all()


def test_noise() -> None:
    labels = np.array([0, 0, -1, 1, -1])
    distances = np.abs(np.subtract.outer([0.0, 1.0, 4.0, 9.0, 30.0], [0.0, 1.0, 4.0, 9.0, 30.0]))
    assert without_noise(labels, distances, "nearest").tolist() == [0, 0, 0, 1, 1]
    assert without_noise(labels, distances, "single").tolist() == [0, 0, 2, 1, 3]
    nothing = np.full(5, -1)
    assert without_noise(nothing, distances, "nearest").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_classes_are_groups_of_their_own(count: int) -> None:
    assert fisher_groups(np.zeros((count, count))).tolist() == list(range(count))
    assert affinity_groups(torch.zeros(min(count, 1), 2), sign=-1.0).tolist() == list(range(min(count, 1)))


def test_equal_classes_are_one_group() -> None:
    assert len(set(fisher_groups(np.zeros((5, 5))).tolist())) == 1


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UsageError, match=r"longtail\[fasa\]"):
        fisher_groups(np.zeros((5, 5)))
    with pytest.raises(UsageError, match=r"longtail\[fasa\]"):
        affinity_groups(torch.zeros(3, 2), sign=1.0)
