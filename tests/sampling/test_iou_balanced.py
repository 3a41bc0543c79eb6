"""IoU-balanced negatives: quotas, water-filling, uniform within a bin."""

import pytest
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


OPTIONS = st.fixed_dictionaries(
    {
        "interval": st.sampled_from(["neg_range", "max_iou"]),
        "zero_iou": st.sampled_from(["include", "last_resort"]),
        "fill": st.sampled_from(["even", "uniform"]),
        "floor_iou": st.sampled_from([0.0, 0.125]),
        "floor_fraction": st.sampled_from([0.0, 0.25]),
        "num_bins": st.integers(1, 4),
    }
)


def quotas(negative: list[float], top: float, wanted: int, options: dict) -> tuple[list[int], int, int]:
    """Section 2.3, steps 2 to 6: least number of every bin, of the floor set, and candidates of the floor set."""
    bins, floor_iou = options["num_bins"], options["floor_iou"]
    if floor_iou > 0:
        floor = [u for u in negative if u < floor_iou]
        rest = [u for u in negative if u >= floor_iou]
    elif options["zero_iou"] == "last_resort":
        floor, rest = [u for u in negative if u == 0], [u for u in negative if u > 0]
    else:
        floor, rest = [], negative
    width = (top - floor_iou) / bins
    sizes = [0] * bins
    for u in rest:
        k = 0
        while k < bins - 1 and u >= floor_iou + (k + 1) * width:
            k += 1
        sizes[k] += 1
    of_rest = int(wanted * (1 - options["floor_fraction"]))
    of_floor = min(len(floor), wanted - min(of_rest, len(rest)))
    if options["fill"] == "even":
        return water_filling(sizes, wanted - of_floor), of_floor, sum(sizes)
    each = int(of_rest / bins)
    return [min(size, each) for size in sizes], of_floor, sum(sizes)


@given(
    levels=st.lists(st.integers(0, 31), min_size=1, max_size=120),
    positives=st.integers(0, 3),
    count=st.integers(1, 60),
    options=OPTIONS,
    seed=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_every_option_gives_what_the_loops_ask(
    levels: list[int], positives: int, count: int, options: dict, seed: int
) -> None:
    negative_iou = 0.5
    iou = torch.tensor([level / 64 for level in levels] + [1.0] * positives, dtype=torch.float64)
    match = torch.tensor([-1] * len(levels) + [0] * positives)
    sampler = IoUBalancedNegatives(count, 0.5, **options)
    positive, negative = sampler(iou, match, torch.tensor([0]), torch.Generator().manual_seed(seed))
    wanted = count - positive.shape[0]
    assert negative.tolist() == sorted(set(negative.tolist()))
    assert negative.shape[0] == min(wanted, len(levels))
    assert (match[negative] == -1).all()
    if len(levels) <= wanted:
        return
    top = float(iou.max()) if options["interval"] == "max_iou" else negative_iou
    least, of_floor, _ = quotas([level / 64 for level in levels], max(top, 1e-9), wanted, options)
    taken = iou[negative]
    if options["floor_iou"] > 0:
        floor = taken < options["floor_iou"]
    else:
        floor = (taken == 0) if options["zero_iou"] == "last_resort" else torch.zeros_like(taken, dtype=torch.bool)
    assert int(floor.sum()) == of_floor
    found = [0] * options["num_bins"]
    width = (top - options["floor_iou"]) / options["num_bins"]
    for u in taken[~floor].tolist():
        k = 0
        while k < options["num_bins"] - 1 and u >= options["floor_iou"] + (k + 1) * width:
            k += 1
        found[k] += 1
    slack = 1 if options["fill"] == "even" else 0  # who gets the odd one depends on the round
    assert all(f >= q - slack for f, q in zip(found, least, strict=True)), (found, least)


def test_the_released_sampler_avoids_candidates_that_touch_nothing() -> None:
    iou = torch.cat((torch.zeros(500), torch.linspace(0.01, 0.49, 400), torch.ones(4)))
    match = torch.cat((torch.full((900,), -1), torch.zeros(4, dtype=torch.int64)))
    generator = torch.Generator().manual_seed(0)
    later = IoUBalancedNegatives.released(388, 0.25)
    first = IoUBalancedNegatives.released(388, 0.25, first_call=True)
    _, negative = later(iou, match, torch.tensor([0]), generator)
    assert (iou[negative] > 0).all()
    assert negative.shape[0] == 384
    _, negative = first(iou, match, torch.tensor([0]), generator)
    assert 150 < int((iou[negative] == 0).sum()) < 300
    _, negative = later(iou, torch.where(iou > 0.3, 0, match), torch.tensor([0]), generator)
    assert int((iou[negative] == 0).sum()) > 0, "as a last resort they are taken"


def test_released_quotas_are_those_of_bins_up_to_one() -> None:
    """Section 2.3: a third from [0, 1/3), a third from [1/3, 1/2), the rest uniform; K = 2 is random sampling."""
    iou = torch.cat((torch.full((1000,), 0.1), torch.full((150,), 0.4), torch.ones(1)))
    match = torch.cat((torch.full((1150,), -1), torch.zeros(1, dtype=torch.int64)))
    generator = torch.Generator().manual_seed(0)
    high = []
    for _ in range(300):
        _, negative = IoUBalancedNegatives.released(301, 0.25)(iou, match, torch.tensor([0]), generator)
        high.append(int((iou[negative] == 0.4).sum()))
    assert min(high) >= 100
    # 100 of each bin, then 100 of the 950 that are left, of which 50 are high
    assert abs(sum(high) / 300 - (100 + 100 * 50 / 950)) < 0.7
    high = []
    for _ in range(300):
        _, negative = IoUBalancedNegatives.released(301, 0.25, num_bins=2)(iou, match, torch.tensor([0]), generator)
        high.append(int((iou[negative] == 0.4).sum()))
    # the first bin gives its 150 uniformly, the rest is uniform too
    assert abs(sum(high) / 300 - 300 * 150 / 1150) < 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_bins": 0}, "num_bins"),
        ({"negative_iou": 0}, "negative_iou"),
        ({"interval": "all"}, "neg_range"),
        ({"zero_iou": "never"}, "last_resort"),
        ({"fill": "odd"}, "uniform"),
        ({"floor_iou": 0.5}, "floor_iou"),
        ({"floor_fraction": 1.5}, "floor_fraction"),
    ],
)
def test_nonsense_is_refused(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        IoUBalancedNegatives(8, 0.5, **options)
