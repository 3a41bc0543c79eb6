"""Positives balanced over objects and classes: water-filling as in sections 2.5 and 2.6 of the specification."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.sampling import ClassBalancedPositives, InstanceBalancedPositives, IoUBalancedNegatives, RandomRegions


def level(capacity, demand):
    """The q with sum min(c, q) <= n < sum min(c, q + 1)."""
    q = 0
    while sum(min(c, q + 1) for c in capacity) <= demand:
        q += 1
    return q


def check_filled(capacity, taken, demand):
    """``demand`` items, min(c, q) of each group and one more of some that have more."""
    assert sum(taken) == min(demand, sum(capacity))
    if sum(capacity) <= demand:
        assert taken == capacity
        return
    q = level(capacity, demand)
    for c, t in zip(capacity, taken, strict=True):
        assert min(c, q) <= t <= min(c, q + 1)


def candidates(capacity, negatives, seed):
    """Match of every candidate, shuffled: ``capacity[g]`` with object g."""
    match = [g for g, c in enumerate(capacity) for _ in range(c)] + [-1] * negatives + [-2] * 3
    match = torch.tensor(match, dtype=torch.int64)
    return match[torch.randperm(len(match), generator=torch.Generator().manual_seed(seed))]


SETS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=8)


@given(objects=SETS, wanted=st.integers(1, 40), seed=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_objects_share_the_positives_evenly(objects, wanted, seed):
    capacity, labels = [c for c, _ in objects], torch.tensor([label for _, label in objects])
    match = candidates(capacity, 20, seed)
    sampler = InstanceBalancedPositives(2 * wanted, 0.5)
    positive, negative = sampler(torch.zeros(len(match)), match, labels, torch.Generator().manual_seed(seed))
    assert (match[positive] >= 0).all()
    assert (match[negative] == -1).all()
    assert positive.tolist() == sorted(set(positive.tolist()))
    taken = torch.bincount(match[positive], minlength=len(capacity)).tolist()
    check_filled(capacity, taken, wanted)
    assert negative.shape[0] == min(20, 2 * wanted - positive.shape[0])


@given(objects=SETS, wanted=st.integers(1, 40), seed=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_classes_share_first_and_then_their_objects(objects, wanted, seed):
    capacity, labels = [c for c, _ in objects], [7 * label for _, label in objects]
    match = candidates(capacity, 20, seed)
    sampler = ClassBalancedPositives(2 * wanted, 0.5)
    generator = torch.Generator().manual_seed(seed)
    positive, _ = sampler(torch.zeros(len(match)), match, torch.tensor(labels), generator)
    assert positive.tolist() == sorted(set(positive.tolist()))
    taken = torch.bincount(match[positive], minlength=len(capacity)).tolist()
    classes = sorted(set(labels))

    def per_class(numbers):
        return [sum(n for n, label in zip(numbers, labels, strict=True) if label == c) for c in classes]

    check_filled(per_class(capacity), per_class(taken), wanted)
    for c, demand in zip(classes, per_class(taken), strict=True):
        own = [k for k, label in enumerate(labels) if label == c]
        check_filled([capacity[k] for k in own], [taken[k] for k in own], demand)


@pytest.mark.parametrize("kind", [InstanceBalancedPositives, ClassBalancedPositives])
def test_draws_are_fair(kind):
    """Of objects with more to give, each gets the odd one equally often; within an object every candidate is equal."""
    match = torch.tensor([0] * 6 + [1] * 6 + [2] * 6)
    hits = torch.zeros(18)
    generator = torch.Generator().manual_seed(0)
    sampler = kind(14, 0.5)
    for _ in range(2000):
        positive, _ = sampler(torch.zeros(18), match, torch.zeros(3, dtype=torch.int64), generator)
        assert sorted(torch.bincount(match[positive]).tolist()) == [2, 2, 3]
        hits[positive] += 1
    expected = 2000 * 7 / 18
    assert ((hits - expected).abs() < 5 * (expected * (1 - 7 / 18)) ** 0.5).all()


def test_a_rare_class_keeps_its_only_candidate():
    match = torch.tensor([0] * 50 + [1] * 50 + [2])
    labels = torch.tensor([4, 4, 9])
    for seed in range(20):
        positive, _ = ClassBalancedPositives(8, 0.25)(
            torch.zeros(101), match, labels, torch.Generator().manual_seed(seed)
        )
        assert 100 in positive.tolist()


def test_negatives_come_from_the_other_sampler_and_its_bound():
    iou = torch.linspace(0, 0.49, 300)
    match = torch.full((300,), -1)
    match[:10] = 0
    negatives = IoUBalancedNegatives(30, 0.5, num_bins=3, negatives_per_positive=2)
    sampler = InstanceBalancedPositives(12, 0.25, negatives=negatives)
    positive, negative = sampler(iou, match, torch.tensor([1]), None)
    assert (positive.shape[0], negative.shape[0]) == (3, 6)
    assert torch.bincount((iou[negative] / 0.5 * 3).long()).tolist() == [2, 2, 2]


@pytest.mark.parametrize(("positives", "negatives"), [(0, 5), (1, 5), (2, 10), (30, 34)])
def test_at_most_so_many_negatives_per_positive(positives, negatives):
    match = torch.tensor([0] * positives + [-1] * 200)
    found = RandomRegions(64, 0.5, negatives_per_positive=5)(torch.zeros(len(match)), match, torch.tensor([0]), None)
    assert [len(part) for part in found] == [positives, negatives]


@pytest.mark.parametrize("kind", [InstanceBalancedPositives, ClassBalancedPositives])
def test_images_without_objects_or_candidates(kind):
    none = torch.zeros(0, dtype=torch.int64)
    positive, negative = kind(8, 0.5)(torch.zeros(5), torch.full((5,), -1), none, None)
    assert (positive.shape[0], negative.tolist()) == (0, [0, 1, 2, 3, 4])
    positive, negative = kind(8, 0.5)(torch.zeros(0), none, none, None)
    assert (positive.shape[0], negative.shape[0]) == (0, 0)


def test_a_bound_of_nothing_is_refused():
    with pytest.raises(ValueError, match="negatives_per_positive"):
        RandomRegions(8, 0.5, negatives_per_positive=0)
