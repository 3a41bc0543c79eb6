"""Federated loss: the subset, how often classes are drawn, and the sum over it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import FederatedLoss, SigmoidCrossEntropy


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def subset_of(loss, labels, seed, counted=None):
    everything = torch.ones_like(labels, dtype=torch.bool) if counted is None else counted
    return set(torch.where(loss.draw(labels, everything, seeded(seed)))[0].tolist())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.lists(st.sampled_from([0, 1, 5, 100]), min_size=1, max_size=9), st.integers(1, 10),
    st.integers(0, 8),
)  # fmt: skip
def test_subset_and_sum_agree_with_loops(seed, counts, subset, rows):
    classes = len(counts)
    loss = FederatedLoss(torch.tensor(counts), subset=subset)
    logits = torch.randn(rows, classes + 1, generator=seeded(seed), dtype=torch.float64) * 3
    labels = torch.randint(0, classes + 1, (rows,), generator=seeded(seed))
    weight = torch.randint(0, 2, (rows,), generator=seeded(seed)).double()
    mask = torch.rand(rows, classes, generator=seeded(seed)) < 0.7
    chosen = subset_of(loss, labels, seed, weight > 0)

    present = {y for y, w in zip(labels.tolist(), weight.tolist(), strict=True) if w > 0}
    drawable = {c for c in range(classes) if counts[c] > 0} - present
    assert present - {classes} <= chosen
    drawn = chosen - present
    assert drawn <= drawable
    assert len(drawn) == min(max(subset - len(present), 0), len(drawable)), "the background is one of the present"

    total = 0.0
    for i, y in enumerate(labels.tolist()):
        for c in range(classes):
            p = 1 / (1 + math.exp(-logits[i, c].item()))
            if weight[i] > 0 and c in chosen and (c == y or mask[i, c]):
                total += -math.log(p) if c == y else -math.log(1 - p)
    found = loss(logits, labels, weight=weight, class_mask=mask, generator=seeded(seed))
    assert found.item() == pytest.approx(total / max(int(weight.sum()), 1))


def test_drawn_in_proportion_to_the_root_of_the_images():
    """One of three is drawn at a time: with probabilities 1 / 6, 2 / 6 and 3 / 6."""
    loss = FederatedLoss(torch.tensor([1, 4, 9, 1000]), subset=2)
    labels = torch.tensor([3])
    found = torch.zeros(4)
    generator = seeded(0)
    for _ in range(6000):
        found += loss.draw(labels, torch.ones(1, dtype=torch.bool), generator)
    assert found.div(6000).tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6, 1], abs=0.025)


def test_drawn_without_replacement():
    """Two of three with weights 1, 1, 2: the third is left out only if the first two are drawn, 2 * 1/4 * 1/3."""
    loss = FederatedLoss(torch.tensor([1, 1, 4]), subset=2)
    found = torch.zeros(3)
    generator = seeded(0)
    for _ in range(6000):
        found += loss.draw(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool), generator)
    assert found.sum() == 12_000
    assert found.div(6000).tolist() == pytest.approx([7 / 12, 7 / 12, 5 / 6], abs=0.025)


def test_one_subset_for_all_rows_and_an_unused_output():
    loss = FederatedLoss(torch.full((40,), 7), subset=10)
    logits = torch.randn(30, 41, requires_grad=True)
    labels = torch.randint(0, 3, (30,))
    labels[0] = 40
    loss(logits, labels, generator=seeded(0)).backward()
    used = logits.grad != 0
    assert (used == used[0]).all()
    assert used[0].sum() == 9, "three present, background, six drawn"
    assert not used[0, 40]
    assert (loss.scores(logits)[:, 40] == 0).all()


def test_without_a_generator_it_is_cross_entropy():
    loss = FederatedLoss(torch.arange(5), subset=1)
    logits, labels = torch.randn(12, 6), torch.randint(0, 6, (12,))
    torch.testing.assert_close(loss(logits, labels), SigmoidCrossEntropy(5)(logits[:, :5], labels))


@pytest.mark.parametrize("wrong", [{"subset": 0}, {"power": -1.0}, {"prior": 0.0}])
def test_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FederatedLoss(torch.arange(3), **wrong)
    with pytest.raises(ValueError, match="image_counts"):
        FederatedLoss(torch.tensor([-1]))
