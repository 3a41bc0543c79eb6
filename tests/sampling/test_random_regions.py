"""What holds for every region sampler: numbers, membership, the same draws again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.sampling import IoUBalancedNegatives, RandomRegions, RegionSampler

NONE = torch.zeros(0, dtype=torch.int64)


def make(kind: str, count: int, fraction: float) -> RegionSampler:
    return RandomRegions(count, fraction) if kind == "random" else IoUBalancedNegatives(count, fraction)


@given(
    kind=st.sampled_from(["random", "iou"]),
    matched=st.lists(st.integers(-2, 3), max_size=80),
    count=st.integers(1, 40),
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
    seed=st.integers(0, 5),
)
@settings(max_examples=120, deadline=None)
def test_numbers_and_membership(kind: str, matched: list[int], count: int, fraction: float, seed: int) -> None:
    sampler = make(kind, count, fraction)
    match = torch.tensor(matched, dtype=torch.int64)
    iou = torch.rand(len(matched), generator=torch.Generator().manual_seed(seed)) * 0.5
    generator = torch.Generator().manual_seed(seed)
    positive, negative = sampler(iou, match, torch.zeros(4, dtype=torch.int64), generator)
    candidates = [i for i, m in enumerate(matched) if m >= 0]
    assert len(positive) == min(len(candidates), int(count * fraction))
    assert len(negative) == min(matched.count(-1), count - len(positive))
    for chosen, allowed in ((positive, candidates), (negative, [i for i, m in enumerate(matched) if m == -1])):
        values = chosen.tolist()
        assert values == sorted(set(values))
        assert set(values) <= set(allowed)
    again = sampler(iou, match, torch.zeros(4, dtype=torch.int64), torch.Generator().manual_seed(seed))
    assert torch.equal(again[0], positive)
    assert torch.equal(again[1], negative)


@pytest.mark.parametrize("kind", ["random", "iou"])
def test_different_seeds_draw_differently_and_without_a_generator_it_works(kind: str) -> None:
    sampler = make(kind, 16, 0.25)
    iou, match = torch.rand(200) * 0.5, torch.full((200,), -1)
    one = sampler(iou, match, NONE, torch.Generator().manual_seed(0))[1]
    other = sampler(iou, match, NONE, torch.Generator().manual_seed(1))[1]
    assert not torch.equal(one, other)
    assert len(sampler(iou, match, NONE, None)[1]) == 16


@pytest.mark.parametrize(("count", "fraction"), [(0, 0.5), (4, 0.0), (4, 1.5)])
def test_mistakes_are_refused(count: int, fraction: float) -> None:
    with pytest.raises(ValueError, match="count"):
        RandomRegions(count, fraction)
    with pytest.raises(ValueError, match="num_bins"):
        IoUBalancedNegatives(4, 0.5, num_bins=0)
