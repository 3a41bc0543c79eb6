"""Logit adjustment against loops in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import LogitAdjustedLoss


def oracle(logits, labels, counts, tau, mask=None):
    """Mean of the cross-entropies on ``z + tau * (log n - mean log n)``, background as it is."""
    logs = [math.log(max(n, 1)) for n in counts]
    middle = math.fsum(logs) / len(logs)
    values = []
    for i, y in enumerate(labels):
        z = [logits[i][c] + tau * (logs[c] - middle) for c in range(len(counts))] + [logits[i][-1]]
        stays = [c for c in range(len(z)) if c == y or c == len(counts) or mask is None or mask[i][c]]
        values.append(math.log(math.fsum(math.exp(z[c]) for c in stays)) - z[y])
    return math.fsum(values) / len(values)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 5000), min_size=1, max_size=6), st.floats(0, 3), st.booleans())
def test_agrees_with_loops(seed, counts, tau, masked):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, len(counts) + 1, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, len(counts) + 1, (7,), generator=generator)
    mask = torch.rand(7, len(counts), generator=generator) < 0.5 if masked else None
    loss = LogitAdjustedLoss(torch.tensor(counts), tau=tau)
    expected = oracle(logits.tolist(), labels.tolist(), counts, tau, None if mask is None else mask.tolist())
    assert loss(logits, labels, class_mask=mask).item() == pytest.approx(expected, rel=1e-5)


def test_by_hand():
    """Counts 1 and 100: offsets -log 10 and log 10, background 0."""
    loss = LogitAdjustedLoss(torch.tensor([1, 100]))
    torch.testing.assert_close(loss.offset, torch.tensor([-math.log(10), math.log(10), 0.0]))
    zero = torch.zeros(3, 3)
    rows = loss.per_sample(zero, torch.tensor([0, 1, 2]))
    total = 0.1 + 10 + 1
    torch.testing.assert_close(rows, torch.tensor([math.log(total / 0.1), math.log(total / 10), math.log(total)]))


def test_tau_zero_and_equal_counts_are_plain_cross_entropy():
    logits, labels = torch.randn(8, 4), torch.tensor([0, 1, 2, 3, 3, 0, 1, 2])
    plain = F.cross_entropy(logits, labels)
    torch.testing.assert_close(LogitAdjustedLoss(torch.tensor([1, 7, 900]), tau=0.0)(logits, labels), plain)
    torch.testing.assert_close(LogitAdjustedLoss(torch.tensor([50, 50, 50]))(logits, labels), plain)


def test_more_instances_push_harder_as_a_negative():
    logits, labels = torch.zeros(4, 4, requires_grad=True), torch.full((4,), 3)
    gradients = []
    for count in (1, 10, 1000):
        logits.grad = None
        LogitAdjustedLoss(torch.tensor([count, 10, 10]))(logits, labels).backward()
        gradients.append(logits.grad[:, 0].sum().item())
    assert 0 < gradients[0] < gradients[1] < gradients[2]


def test_scores_know_nothing_of_the_prior():
    logits = torch.randn(5, 4)
    torch.testing.assert_close(LogitAdjustedLoss(torch.tensor([1, 7, 900])).scores(logits), logits.softmax(dim=1))


def test_refuses_nonsense():
    with pytest.raises(ValueError, match="tau"):
        LogitAdjustedLoss(torch.tensor([1, 2]), tau=-0.1)
    with pytest.raises(ValueError, match="instance_counts"):
        LogitAdjustedLoss(torch.tensor([1, -2]))
