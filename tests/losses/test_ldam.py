"""LDAM against loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import LDAMLoss, SoftmaxCrossEntropy


def oracle(logits, labels, counts, margin, scale, beta):
    """Mean of weighted cross-entropies on ``scale * (z - m_y e_y)``."""
    rarest = max(max(n, 1) ** -0.25 for n in counts)
    margins = [margin * max(n, 1) ** -0.25 / rarest for n in counts] + [0.0]
    inverse = [(1 - beta) / (1 - beta ** max(n, 1)) for n in counts]
    weights = [w * len(counts) / math.fsum(inverse) for w in inverse] + [1.0]
    values = []
    for z, y in zip(logits, labels, strict=True):
        moved = [scale * (v - (margins[y] if c == y else 0.0)) for c, v in enumerate(z)]
        top = max(moved)
        values.append(weights[y] * (top + math.log(math.fsum(math.exp(v - top) for v in moved)) - moved[y]))
    return math.fsum(values) / len(values)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 5000), min_size=1, max_size=6),
    st.floats(0, 1),
    st.floats(1, 60),
    st.sampled_from([0.0, 0.99, 0.9999]),
)
def test_agrees_with_loops(seed, counts, margin, scale, beta):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.rand(7, len(counts) + 1, generator=generator, dtype=torch.float64) * 2 - 1
    labels = torch.randint(0, len(counts) + 1, (7,), generator=generator)
    loss = LDAMLoss(torch.tensor(counts), max_margin=margin, scale=scale, beta=beta)
    expected = oracle(logits.tolist(), labels.tolist(), counts, margin, scale, beta)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_margins_by_hand():
    """Sixteen times the instances, half the margin; the background has none."""
    torch.testing.assert_close(LDAMLoss(torch.tensor([16, 1])).margin, torch.tensor([0.25, 0.5, 0.0]))


def test_without_margin_it_is_scaled_cross_entropy():
    logits, labels = torch.rand(8, 4), torch.arange(8) % 4
    expected = SoftmaxCrossEntropy(3)(30 * logits, labels)
    torch.testing.assert_close(LDAMLoss(torch.tensor([1, 20, 300]), max_margin=0.0)(logits, labels), expected)


def test_re_weighting_changes_foreground_rows_only():
    counts = torch.tensor([1, 20, 300])
    logits, labels = torch.rand(4, 4), torch.arange(4)
    plain = LDAMLoss(counts).per_sample(logits, labels)
    deferred = LDAMLoss(counts, beta=0.9999).per_sample(logits, labels)
    assert deferred[0] > plain[0]
    assert deferred[2] < plain[2]
    assert deferred[3] == plain[3]


def test_scores_have_the_scale_but_no_margin():
    logits = torch.rand(5, 4)
    torch.testing.assert_close(LDAMLoss(torch.tensor([1, 20, 300])).scores(logits), (30 * logits).softmax(dim=1))


def test_refuses_nonsense():
    with pytest.raises(ValueError, match="max_margin"):
        LDAMLoss(torch.tensor([1]), max_margin=-1.0)
    with pytest.raises(ValueError, match="beta"):
        LDAMLoss(torch.tensor([1]), beta=1.0)
