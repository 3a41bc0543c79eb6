"""Focal loss, both forms, against loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss

from longtail.losses import FocalLoss, SigmoidCrossEntropy, SoftmaxCrossEntropy

quick = settings(max_examples=25, deadline=None)
gammas = st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0])


def sigmoid_oracle(logits, labels, gamma, alpha, mask=None):
    """``alpha_t (1 - p_t)^gamma (-log p_t)`` summed over the classes that take part."""
    rows = []
    for i, y in enumerate(labels):
        value = 0.0
        for c, z in enumerate(logits[i]):
            p = 1 / (1 + math.exp(-z))
            if c == y:
                value += alpha * (1 - p) ** gamma * -math.log(p)
            elif mask is None or mask[i][c]:
                value += (1 - alpha) * p**gamma * -math.log(1 - p)
        rows.append(value)
    return rows


def softmax_oracle(logits, labels, gamma, mask=None):
    """``(1 - P_y)^gamma (-log P_y)`` with P over the label, the background and the unmasked classes."""
    rows = []
    for i, y in enumerate(labels):
        z = logits[i]
        stays = [j for j in range(len(z)) if j in (y, len(z) - 1) or mask is None or mask[i][j]]
        total = math.fsum(math.exp(z[j]) for j in stays)
        others = math.fsum(math.exp(z[j]) for j in stays if j != y) / total
        rows.append(others**gamma * -math.log(math.exp(z[y]) / total) if others > 0 else 0.0)
    return rows


@quick
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 9), gammas, st.floats(0, 1), st.booleans())
def test_sigmoid_form_agrees_with_loops(seed, num_classes, rows, gamma, alpha, masked):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, num_classes, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, num_classes + 1, (rows,), generator=generator)
    mask = torch.rand(rows, num_classes, generator=generator) < 0.5 if masked else None
    loss = FocalLoss(num_classes, gamma=gamma, alpha=alpha)
    expected = sigmoid_oracle(logits.tolist(), labels.tolist(), gamma, alpha, None if mask is None else mask.tolist())
    got = loss.row_losses(logits, labels, class_mask=mask)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    positives = max(sum(y < num_classes for y in labels.tolist()), 1)
    assert loss(logits, labels, class_mask=mask).item() == pytest.approx(math.fsum(expected) / positives)


@quick
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 9), gammas, st.booleans())
def test_softmax_form_agrees_with_loops(seed, num_classes, rows, gamma, masked):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, num_classes + 1, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, num_classes + 1, (rows,), generator=generator)
    mask = torch.rand(rows, num_classes, generator=generator) < 0.5 if masked else None
    loss = FocalLoss(num_classes, form="softmax", gamma=gamma)
    expected = softmax_oracle(logits.tolist(), labels.tolist(), gamma, None if mask is None else mask.tolist())
    got = loss.row_losses(logits, labels, class_mask=mask)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    assert loss(logits, labels, class_mask=mask).item() == pytest.approx(math.fsum(expected) / rows)


def test_sigmoid_form_is_torchvisions():
    logits, labels = torch.randn(20, 5, dtype=torch.float64), torch.randint(0, 6, (20,))
    target = torch.nn.functional.one_hot(labels, 6)[:, :5].double()
    expected = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2, reduction="sum")
    torch.testing.assert_close(FocalLoss(5)(logits, labels, normaliser=1), expected)


@pytest.mark.parametrize("form", ["sigmoid", "softmax"])
def test_gamma_zero_is_cross_entropy(form):
    focal = FocalLoss(5, form=form, gamma=0, alpha=0.5)
    plain, factor = (SigmoidCrossEntropy(5), 0.5) if form == "sigmoid" else (SoftmaxCrossEntropy(5), 1)
    logits, labels = torch.randn(12, focal.num_logits), torch.randint(0, 6, (12,))
    torch.testing.assert_close(focal.per_sample(logits, labels), plain.per_sample(logits, labels) * factor)


@pytest.mark.parametrize("form", ["sigmoid", "softmax"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 8.0])
def test_gradient_is_right_and_never_infinite(form, gamma):
    loss = FocalLoss(4, form=form, gamma=gamma)
    logits = (torch.randn(6, loss.num_logits, dtype=torch.float64) * 4).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 4, 4])
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), (logits,))
    for size in (30.0, 100.0, 1e4):
        for sign in (1, -1):
            far = torch.full((6, loss.num_logits), -sign * size)
            far[torch.arange(6), labels.clamp(max=loss.num_logits - 1)] = sign * size
            far.requires_grad_()
            value = loss(far, labels)
            value.backward()
            assert value.isfinite()
            assert far.grad.isfinite().all()


def test_precise_for_confident_rows():
    """Where p rounds to 1 in float32, the loss of the sigmoid form is still that of float64."""
    loss = FocalLoss(1, gamma=1.0)
    logits, label = torch.full((1, 1), 18.0), torch.tensor([0])
    torch.testing.assert_close(loss(logits, label).double(), loss(logits.double(), label), rtol=1e-5, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_softmax_form_with_every_other_class_masked(gamma):
    logits = torch.randn(2, 4, requires_grad=True)
    loss = FocalLoss(3, form="softmax", gamma=gamma)
    value = loss(logits, torch.tensor([3, 3]), class_mask=torch.zeros(2, 3, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert logits.grad.isfinite().all()


def test_normalisers():
    labels = torch.tensor([0, 2, 2, 1, 2])
    weight = torch.tensor([0.0, 1.0, 1.0, 2.0, 1.0])
    assert FocalLoss(2).normaliser(labels, None) == 2
    assert FocalLoss(2).normaliser(labels, weight) == 1
    assert FocalLoss(2).normaliser(torch.full((4,), 2), None) == 1
    assert FocalLoss(2, form="softmax").normaliser(labels, None) == 5
    assert FocalLoss(2, form="softmax").normaliser(labels, weight) == 4


def test_what_each_form_needs():
    sigmoid, softmax = FocalLoss(7), FocalLoss(7, form="softmax")
    assert (sigmoid.num_logits, softmax.num_logits) == (7, 8)
    assert sigmoid.bias_prior == pytest.approx(-4.595, abs=1e-3)
    assert softmax.bias_prior is None
    assert sigmoid.heads == {"roi", "dense", "query"}
    assert softmax.heads == {"roi"}
    assert FocalLoss(7).heads == {"roi", "dense", "query"}  # the class itself is untouched


@pytest.mark.parametrize("wrong", [{"form": "tanh"}, {"gamma": -1.0}, {"alpha": 1.5}, {"alpha": -1.0}, {"prior": 0.0}])
def test_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FocalLoss(3, **wrong)
