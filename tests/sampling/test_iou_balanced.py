"""IoU-balanced negatives: quotas, water-filling, uniform within a bin."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.sampling import IoUBalancedNegatives
from longtail.sampling.iou_balanced import fill_evenly

NONE = torch.zeros(0, dtype=torch.int64)


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


def water_filling(candidates: list[int], demand: int) -> list[int]:
    """Libra specification, section 2.4, word for word."""
    taken = [0] * len(candidates)
    demand = min(demand, sum(candidates))
    while sum(taken) < demand:
        open_bins = [k for k in range(len(candidates)) if taken[k] < candidates[k]]
        missing = demand - sum(taken)
        asked = {k: missing // len(open_bins) for k in open_bins}
        for k in sorted(open_bins, reverse=True)[: missing % len(open_bins)]:
            asked[k] += 1  # the remainder goes to the highest bins
        for k, number in asked.items():
            taken[k] = min(candidates[k], taken[k] + number)
    return taken


@given(
    levels=st.lists(st.integers(0, 31), min_size=1, max_size=150),
    bins=st.integers(1, 5),
    top=st.sampled_from([0.5, 0.3]),
    count=st.integers(1, 60),
    seed=st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_every_bin_gives_what_the_loops_ask(levels: list[int], bins: int, top: float, count: int, seed: int) -> None:
    iou = (torch.tensor(levels, dtype=torch.float64) + 0.5) / 32 * top
    match = torch.full((len(levels),), -1)
    sampler = IoUBalancedNegatives(count, 0.5, num_bins=bins, negative_iou=top)
    _, negative = sampler(iou, match, NONE, torch.Generator().manual_seed(seed))

    def per_bin(values: list[float]) -> list[int]:
        numbers = [0] * bins
        for value in values:
            numbers[next(k for k in range(bins) if value < top * (k + 1) / bins + 1e-12)] += 1
        return numbers

    expected = water_filling(per_bin(iou.tolist()), count)
    found = per_bin(iou[negative].tolist())
    assert sum(found) == min(count, len(levels))
    # a bin that lacks candidates hands its share on; who gets the odd one then depends on the round
    assert all(abs(f - e) <= 1 for f, e in zip(found, expected, strict=True))
    if min(per_bin(iou.tolist())) > count // bins:
        assert found == expected


def test_the_ends_of_the_interval_belong_to_the_outer_bins() -> None:
    iou = torch.tensor([0.0] * 20 + [0.2] * 20 + [0.4] * 10 + [0.5] * 10)
    _, negative = IoUBalancedNegatives(30, 0.25)(iou, torch.full((60,), -1), NONE, None)
    assert torch.bincount(negative // 20, minlength=3).tolist() == [10, 10, 10]
