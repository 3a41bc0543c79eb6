"""DropLoss: what is kept and how often, against the draw it is made from."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import DropLoss, EqualizationLoss

FREQUENCY = torch.tensor([0.0, 0.001, 0.3, 0.4])  # classes 0 and 1 are tail


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def oracle(logits, labels, tail, weight, mask, draw):
    """Row losses, with a background cell of a tail class dropped where ``draw`` is not below the share of tail rows."""
    classes = len(tail)
    objects = [y for y, w in zip(labels, weight, strict=True) if y < classes and w > 0]
    share = sum(tail[y] for y in objects) / len(objects) if objects else 1.0
    rows = []
    for i, y in enumerate(labels):
        value = 0.0
        for c, z in enumerate(logits[i]):
            p = 1 / (1 + math.exp(-z))
            if c == y:
                value += -math.log(p)
            elif (mask is None or mask[i][c]) and (not tail[c] or (y == classes and draw[i][c] < share)):
                value += -math.log(1 - p)
        rows.append(value)
    return rows


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from(["some", "none", "all"]))
def test_agrees_with_loops(seed, masked, objects):
    generator = seeded(seed)
    logits = torch.randn(9, 4, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, 4, (9,), generator=generator)
    if objects != "all":
        labels[(slice(1, None, 2) if objects == "some" else slice(None))] = 4
    weight = torch.randint(0, 2, (9,), generator=generator).double()
    mask = torch.rand(9, 4, generator=generator) < 0.5 if masked else None
    loss = DropLoss(FREQUENCY)
    found = loss(logits, labels, weight=weight, class_mask=mask, generator=seeded(seed))
    draw = torch.rand(9, 4, generator=seeded(seed)).tolist()
    tail = [True, True, False, False]
    lists = logits.tolist(), labels.tolist(), tail, weight.tolist(), None if mask is None else mask.tolist()
    rows = oracle(*lists, draw)
    total = math.fsum(r * w for r, w in zip(rows, weight.tolist(), strict=True))
    assert found.item() == pytest.approx(total / max(int(weight.sum()), 1))


def test_without_a_generator_it_is_eql():
    logits, labels = torch.randn(12, 4), torch.randint(0, 5, (12,))
    torch.testing.assert_close(DropLoss(FREQUENCY)(logits, labels), EqualizationLoss(FREQUENCY)(logits, labels))


def test_background_spares_tail_classes_by_the_share_of_tail_objects():
    """Three of four objects are of tail classes, so a quarter of the tail cells of background rows is dropped."""
    labels = torch.cat([torch.tensor([0, 1, 1, 2]), torch.full((20_000,), 4)])
    logits = torch.zeros(len(labels), 4, requires_grad=True)
    DropLoss(FREQUENCY)(logits, labels, normaliser=1, generator=seeded(0)).backward()
    kept = (logits.grad[4:] != 0).double().mean(dim=0)
    assert kept[:2].tolist() == pytest.approx([0.75, 0.75], abs=0.02)
    assert kept[2:].tolist() == [1, 1]


def test_without_objects_nothing_is_dropped_and_without_tail_objects_all():
    logits = torch.zeros(50, 4, requires_grad=True)
    DropLoss(FREQUENCY)(logits, torch.full((50,), 4), generator=seeded(0)).backward()
    assert (logits.grad != 0).all()
    labels = torch.full((50,), 4)
    labels[0] = 3
    logits = torch.zeros(50, 4, requires_grad=True)
    DropLoss(FREQUENCY)(logits, labels, generator=seeded(0)).backward()
    assert (logits.grad[1:, :2] == 0).all()
    assert (logits.grad[1:, 2:] != 0).all()


def test_needs():
    loss = DropLoss(FREQUENCY)
    assert loss.num_logits == 4
    assert loss.bias_prior == pytest.approx(-math.log(999))
    with pytest.raises(ValueError, match="threshold"):
        DropLoss(FREQUENCY, threshold=-1)
