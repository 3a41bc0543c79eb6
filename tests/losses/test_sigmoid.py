"""Sigmoid cross-entropy against loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import SigmoidCrossEntropy

quick = settings(max_examples=25, deadline=None)


def sigmoid(x):
    """Logistic function."""
    return 1 / (1 + math.exp(-x))


def oracle(logits, labels, num_classes, mask=None):
    """Binary cross-entropy summed over the outputs that take part."""
    rows = []
    for i, y in enumerate(labels):
        value = 0.0
        for j, z in enumerate(logits[i]):
            if j == y:
                value -= math.log(sigmoid(z))
            elif j == num_classes or mask is None or mask[i][j]:
                value -= math.log(1 - sigmoid(z))
        rows.append(value)
    return rows


@quick
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 9), st.booleans(), st.booleans())
def test_agrees_with_loops(seed, num_classes, rows, background_logit, masked):
    loss = SigmoidCrossEntropy(num_classes, background_logit=background_logit)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, loss.num_logits, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, num_classes + 1, (rows,), generator=generator)
    mask = torch.rand(rows, num_classes, generator=generator) < 0.5 if masked else None
    expected = oracle(logits.tolist(), labels.tolist(), num_classes, None if mask is None else mask.tolist())
    got = loss.row_losses(logits, labels, class_mask=mask)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    assert loss(logits, labels, class_mask=mask).item() == pytest.approx(math.fsum(expected) / rows)
    assert loss(logits, labels, class_mask=mask, normaliser=3).item() == pytest.approx(math.fsum(expected) / 3)


def test_outputs():
    assert SigmoidCrossEntropy(7).num_logits == 7
    assert SigmoidCrossEntropy(7, background_logit=True).num_logits == 8
    assert SigmoidCrossEntropy(7).heads == {"roi", "dense", "query"}


def test_scores_without_background_output():
    scores = SigmoidCrossEntropy(2).scores(torch.tensor([[0.0, math.log(3.0)]]))
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.75, 0.0]]))


def test_scores_with_background_output():
    scores = SigmoidCrossEntropy(2, background_logit=True).scores(torch.tensor([[0.0, math.log(3.0), 0.0]]))
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.75, 0.5]]))


def test_background_is_a_negative_of_every_class_and_its_own_positive():
    logits = torch.zeros(1, 3)
    background = torch.tensor([2])
    assert SigmoidCrossEntropy(2)(logits[:, :2], background).item() == pytest.approx(2 * math.log(2))
    with_output = SigmoidCrossEntropy(2, background_logit=True)
    assert with_output(torch.tensor([[-20.0, -20.0, 20.0]]), background).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("prior", "bias"), [(0.001, -6.907), (0.01, -4.595), (0.5, 0.0)])
def test_prior(prior, bias):
    assert SigmoidCrossEntropy(3, prior=prior).bias_prior == pytest.approx(bias, abs=1e-3)
    assert sigmoid(SigmoidCrossEntropy(3, prior=prior).bias_prior) == pytest.approx(prior)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, 2.0])
def test_prior_must_be_a_probability(prior):
    with pytest.raises(ValueError, match="prior"):
        SigmoidCrossEntropy(3, prior=prior)
