"""Region samplers: counts, distinctness, quotas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.sampling import IoUBalancedNegatives, RandomRegions, RegionSampler
from longtail.sampling.iou_balanced import fill_evenly

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


def test_full_bins_give_equal_numbers() -> None:
    """Libra specification, section 12: 128 from each of three bins for a demand of 384."""
    iou = torch.linspace(0, 0.5 - 1e-4, 3000)
    _, negative = IoUBalancedNegatives(384, 0.25)(iou, torch.full((3000,), -1), NONE, None)
    assert torch.bincount((iou[negative] / 0.5 * 3).long(), minlength=3).tolist() == [128, 128, 128]


def test_a_poor_bin_gives_all_and_the_others_share_the_rest() -> None:
    iou = torch.cat((torch.full((500,), 0.05), torch.full((500,), 0.2), torch.full((7,), 0.45)))
    _, negative = IoUBalancedNegatives(100, 0.25)(iou, torch.full((1007,), -1), NONE, None)
    counts = [int((iou[negative] == value).sum()) for value in (0.05, 0.2, 0.45)]
    assert counts[2] == 7
    assert sum(counts) == 100
    assert abs(counts[0] - counts[1]) <= 1


@given(capacity=st.lists(st.integers(0, 30), min_size=1, max_size=6), demand=st.integers(0, 120))
@settings(max_examples=150, deadline=None)
def test_even_filling_is_even(capacity: list[int], demand: int) -> None:
    taken = fill_evenly(capacity, demand)
    assert sum(taken) == min(demand, sum(capacity))
    assert all(0 <= given_ <= size for given_, size in zip(taken, capacity, strict=True))
    unfilled = [t for t, size in zip(taken, capacity, strict=True) if t < size]
    if unfilled:  # nobody who could give more gives less than another by more than one
        assert max(taken) - min(unfilled) <= 1


def test_within_a_bin_every_candidate_is_equally_likely() -> None:
    iou = torch.cat((torch.full((10,), 0.1), torch.full((10,), 0.3), torch.full((10,), 0.4)))
    hits = torch.zeros(30)
    sampler = IoUBalancedNegatives(6, 0.25)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3000):
        hits[sampler(iou, torch.full((30,), -1), NONE, generator)[1]] += 1
    expected = 3000 * 2 / 10
    assert ((hits - expected).abs() < 5 * (expected * 0.8) ** 0.5).all()


@pytest.mark.parametrize(("count", "fraction"), [(0, 0.5), (4, 0.0), (4, 1.5)])
def test_mistakes_are_refused(count: int, fraction: float) -> None:
    with pytest.raises(ValueError, match="count"):
        RandomRegions(count, fraction)
    with pytest.raises(ValueError, match="num_bins"):
        IoUBalancedNegatives(4, 0.5, num_bins=0)
