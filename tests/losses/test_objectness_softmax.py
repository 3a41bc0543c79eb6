"""Objectness softmax against loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import ObjectnessSoftmax

quick = settings(max_examples=25, deadline=None)


def log_softmax(values, index):
    """``log(e^v_index / sum e^v)``."""
    return values[index] - math.log(math.fsum(math.exp(v) for v in values))


def oracle(logits, labels, num_classes, mask=None):
    """Objectness of every row, plus the class of every foreground row."""
    rows = []
    for i, y in enumerate(labels):
        z = logits[i]
        background = y == num_classes
        value = -log_softmax(z[num_classes:], int(background))
        if not background:
            stays = [j for j in range(num_classes) if j == y or mask is None or mask[i][j]]
            value -= log_softmax([z[j] for j in stays], stays.index(y))
        rows.append(value)
    return rows


@quick
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_agrees_with_loops(seed, num_classes, rows, masked):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, num_classes + 2, generator=generator, dtype=torch.float64) * 4
    labels = torch.randint(0, num_classes + 1, (rows,), generator=generator)
    mask = torch.rand(rows, num_classes, generator=generator) < 0.5 if masked else None
    loss = ObjectnessSoftmax(num_classes)
    expected = oracle(logits.tolist(), labels.tolist(), num_classes, None if mask is None else mask.tolist())
    got = loss.row_losses(logits, labels, class_mask=mask)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    assert loss(logits, labels, class_mask=mask).item() == pytest.approx(math.fsum(expected) / rows)


def test_both_terms_are_divided_by_all_rows():
    """One object among four rows: its class term is divided by 4, not by 1."""
    logits = torch.zeros(4, 5)
    labels = torch.tensor([1, 3, 3, 3])
    expected = math.log(2) + math.log(3) / 4
    assert ObjectnessSoftmax(3)(logits, labels).item() == pytest.approx(expected)
    half_ignored = ObjectnessSoftmax(3)(logits, labels, weight=torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert half_ignored.item() == pytest.approx(math.log(2) + math.log(3) / 2)


def test_background_rows_leave_the_class_logits_alone():
    logits = torch.randn(6, 5, requires_grad=True)
    ObjectnessSoftmax(3)(logits, torch.full((6,), 3)).backward()
    assert (logits.grad[:, :3] == 0).all()
    assert (logits.grad[:, 3:] != 0).all()


def test_scores_are_class_times_objectness():
    logits = torch.tensor([[1.0, -2.0, 0.5, 0.3, -0.4]])
    p = [math.exp(log_softmax([1.0, -2.0, 0.5], c)) for c in range(3)]
    foreground = math.exp(log_softmax([0.3, -0.4], 0))
    scores = ObjectnessSoftmax(3).scores(logits)
    torch.testing.assert_close(scores, torch.tensor([[*(foreground * x for x in p), 1 - foreground]]))
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(1))


def test_has_two_more_outputs_than_classes():
    assert ObjectnessSoftmax(7).num_logits == 9
