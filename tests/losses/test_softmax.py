"""Softmax cross-entropy against loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import SoftmaxCrossEntropy

quick = settings(max_examples=25, deadline=None)


def oracle(logits, labels, mask=None):
    """``-log(e^z_y / sum_j e^z_j)`` of every row, j over the label, the background and the unmasked classes."""
    rows = []
    for i, y in enumerate(labels):
        z = logits[i]
        background = len(z) - 1
        stays = [j for j in range(len(z)) if j in (y, background) or mask is None or mask[i][j]]
        rows.append(math.log(math.fsum(math.exp(z[j]) for j in stays)) - z[y])
    return rows


@quick
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_agrees_with_loops(seed, num_classes, rows, masked):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, num_classes + 1, generator=generator, dtype=torch.float64) * 4
    labels = torch.randint(0, num_classes + 1, (rows,), generator=generator)
    mask = torch.rand(rows, num_classes, generator=generator) < 0.5 if masked else None
    loss = SoftmaxCrossEntropy(num_classes)
    expected = oracle(logits.tolist(), labels.tolist(), None if mask is None else mask.tolist())
    got = loss.row_losses(logits, labels, class_mask=mask)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    weight = torch.rand(rows, generator=generator, dtype=torch.float64).round(decimals=1)
    weighed = math.fsum(w * e for w, e in zip(weight.tolist(), expected, strict=True))
    count = max(sum(w > 0 for w in weight.tolist()), 1)
    assert loss(logits, labels, weight=weight, class_mask=mask).item() == pytest.approx(weighed / count, abs=1e-9)


def test_is_torch_cross_entropy_without_mask():
    logits, labels = torch.randn(20, 6), torch.randint(0, 6, (20,))
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(SoftmaxCrossEntropy(5)(logits, labels), expected)


def test_known_value():
    logits = torch.tensor([[math.log(2.0), math.log(5.0), math.log(1.0)]])
    loss = SoftmaxCrossEntropy(2)
    assert loss(logits, torch.tensor([0])).item() == pytest.approx(math.log(4))
    without_second = torch.tensor([[True, False]])
    assert loss(logits, torch.tensor([0]), class_mask=without_second).item() == pytest.approx(math.log(1.5))
    torch.testing.assert_close(loss.scores(logits), torch.tensor([[0.25, 0.625, 0.125]]))


def test_background_row_with_every_class_masked_is_free():
    logits = torch.randn(1, 4, requires_grad=True)
    value = SoftmaxCrossEntropy(3)(logits, torch.tensor([3]), class_mask=torch.zeros(1, 3, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()


def test_needs_one_output_per_class_and_background():
    loss = SoftmaxCrossEntropy(7)
    assert loss.num_logits == 8
    assert loss.bias_prior is None
    assert loss.heads == {"roi"}
