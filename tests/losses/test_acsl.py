"""ACSL: which cells count, against loops that are given the drawn rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import ACSLoss, SigmoidCrossEntropy
from longtail.losses.acsl import drawn_rows

COUNTS = torch.tensor([0, 10, 11, 100, 101])  # rare, rare, common, common, frequent


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def draws(labels, weight, seed, shares=(0.1, 0.01)):
    """Common rows, then rare rows, as the loss draws them."""
    generator = seeded(seed)
    background = (labels == 5) & (weight > 0)
    return [set(torch.where(drawn_rows(background, share, generator))[0].tolist()) for share in shares]


def oracle(logits, labels, common_rows, rare_rows, mask):
    rows = []
    for i, y in enumerate(labels):
        value = 0.0
        for c, z in enumerate(logits[i]):
            s = 1 / (1 + math.exp(-z))
            if c == y:
                value += -math.log(s)
                continue
            if y == 5:
                counts = i in rare_rows if c < 2 else i in common_rows if c < 4 else True
            else:
                counts = s >= 0.7
            if counts and (mask is None or c == 5 or mask[i][c]):
                value += -math.log(1 - s)
        rows.append(value)
    return rows


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([40, 250]))
def test_agrees_with_loops(seed, masked, rows):
    generator = seeded(seed)
    logits = torch.randn(rows, 6, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(0, 5, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.7] = 5
    weight = (torch.rand(rows, generator=generator) < 0.9).double()
    mask = torch.rand(rows, 5, generator=generator) < 0.5 if masked else None
    found = ACSLoss(COUNTS)(logits, labels, weight=weight, class_mask=mask, generator=seeded(seed))
    common, rare = draws(labels, weight, seed)
    background = int(((labels == 5) & (weight > 0)).sum())
    assert (len(common), len(rare)) == (int(0.1 * background), int(0.01 * background))
    expected = oracle(logits.tolist(), labels.tolist(), common, rare, None if mask is None else mask.tolist())
    total = math.fsum(r * w for r, w in zip(expected, weight.tolist(), strict=True))
    assert found.item() == pytest.approx(total / int(weight.sum()))


def test_by_hand():
    """An object counts for its class and for what scores 0.7; at 0.8, -log 0.2."""
    high = math.log(0.8 / 0.2)
    logits = torch.zeros(1, 6, dtype=torch.float64)
    logits[0, 3] = high
    assert ACSLoss(COUNTS).row_losses(logits, torch.tensor([0])).item() == pytest.approx(math.log(2) - math.log(0.2))
    logits[0, 5] = high  # the background's output too
    assert ACSLoss(COUNTS).row_losses(logits, torch.tensor([0])).item() == pytest.approx(
        math.log(2) - 2 * math.log(0.2)
    )


@pytest.mark.parametrize(("count", "wanted"), [(99, (9, 0)), (100, (10, 1)), (250, (25, 2)), (9, (0, 0))])
def test_shares_are_rounded_down(count, wanted):
    logits = torch.zeros(count, 6, requires_grad=True)
    ACSLoss(COUNTS)(logits, torch.full((count,), 5), generator=seeded(1)).backward()
    used = (logits.grad != 0).sum(dim=0).tolist()
    assert used == [wanted[1], wanted[1], wanted[0], wanted[0], count, count]


def test_every_background_row_is_drawn_as_often():
    generator, total = seeded(0), torch.zeros(20)
    candidates = torch.arange(20) % 2 == 0
    for _ in range(2000):
        total += drawn_rows(candidates, 0.3, generator)
    assert (total[1::2] == 0).all()
    assert total[::2].sum() == 3 * 2000
    assert total[::2].div(2000).tolist() == pytest.approx([0.3] * 10, abs=0.05)


def test_without_draw_and_threshold_it_is_cross_entropy():
    logits, labels = torch.randn(12, 6), torch.randint(0, 6, (12,))
    plain = SigmoidCrossEntropy(5, background_logit=True)
    torch.testing.assert_close(ACSLoss(COUNTS, threshold=0)(logits, labels), plain(logits, labels))


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1.5}, {"common_share": -0.1}, {"rare_share": 2.0}, {"edges": (5, 1)}, {"prior": 0.0}]
)
def test_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ACSLoss(COUNTS, **wrong)
