"""Class-balanced loss against loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import ClassBalancedLoss, FocalLoss, SigmoidCrossEntropy, SoftmaxCrossEntropy
from longtail.losses.class_balanced import effective_number_weights

PLAIN = {"softmax": SoftmaxCrossEntropy, "sigmoid": SigmoidCrossEntropy, "focal": FocalLoss}
counts_of_classes = st.lists(st.integers(0, 100_000), min_size=1, max_size=7)


def weights(counts, beta, background):
    """(1 - beta) / (1 - beta^n) over their sum, times C; then the background's."""
    own = [(1 - beta) / (1 - beta ** max(n, 1)) for n in counts]
    factor = len(own) / math.fsum(own)
    if background == "one":
        return [w * factor for w in own] + [1.0]
    return [w * factor for w in own] + [(1 - beta) / (1 - beta ** max(3 * sum(counts), 1)) * factor]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    counts_of_classes,
    st.sampled_from([0.0, 0.9, 0.999, 0.9999]),
    st.sampled_from(["softmax", "sigmoid", "focal"]),
    st.sampled_from(["one", "pseudo_count"]),
)
def test_is_the_plain_loss_times_the_weight_of_the_label(seed, counts, beta, form, background):
    loss = ClassBalancedLoss(torch.tensor(counts), beta=beta, form=form, background=background)
    plain = PLAIN[form](len(counts))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, plain.num_logits, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, len(counts) + 1, (9,), generator=generator)
    own = weights(counts, beta, background)
    rows = [own[y] * row for y, row in zip(labels.tolist(), plain.per_sample(logits, labels).tolist(), strict=True)]
    foreground = sum(y < len(counts) for y in labels.tolist())
    divisor = max(foreground, 1) if form == "focal" else 9
    assert loss(logits, labels).item() == pytest.approx(math.fsum(rows) / divisor, rel=1e-5)
    assert (loss.num_logits, loss.bias_prior, loss.heads) == (plain.num_logits, plain.bias_prior, plain.heads)
    torch.testing.assert_close(loss.scores(logits), plain.scores(logits))


def test_weights_by_hand():
    """beta 0.5, counts 1 and 2: 1 and 0.5 / 0.75 = 2/3, rescaled to sum 2: 1.2 and 0.8."""
    torch.testing.assert_close(effective_number_weights(torch.tensor([1, 2]), 0.5), torch.tensor([1.2, 0.8]).double())


@settings(max_examples=30, deadline=None)
@given(counts_of_classes, st.sampled_from([0.0, 0.9, 0.99, 0.999, 0.9999]))
def test_weights_sum_to_the_number_of_classes_and_fall_with_the_count(counts, beta):
    found = effective_number_weights(torch.tensor(counts), beta)
    assert found.sum().item() == pytest.approx(len(counts))
    by_count = found[torch.tensor(counts).argsort()]
    assert (by_count[1:] <= by_count[:-1] + 1e-12).all()


def test_limits_of_beta():
    counts = torch.tensor([1, 10, 1000])
    torch.testing.assert_close(effective_number_weights(counts, 0.0), torch.ones(3).double())
    inverse = 1 / counts.double()
    torch.testing.assert_close(
        effective_number_weights(counts, 1 - 1e-9), 3 * inverse / inverse.sum(), rtol=1e-4, atol=0
    )


def test_is_not_divided_by_the_sum_of_the_weights():
    loss = ClassBalancedLoss(torch.tensor([1, 1000]), beta=0.999)
    labels = torch.tensor([1, 1, 1, 1])
    expected = effective_number_weights(torch.tensor([1, 1000]), 0.999)[1] * math.log(3)
    assert loss(torch.zeros(4, 3), labels).item() == pytest.approx(expected.item())


def test_refuses_nonsense():
    with pytest.raises(ValueError, match="beta"):
        ClassBalancedLoss(torch.tensor([1]), beta=1.0)
    with pytest.raises(ValueError, match="instance_counts"):
        ClassBalancedLoss(torch.tensor([-1]))
    with pytest.raises(ValueError, match="form"):
        ClassBalancedLoss(torch.tensor([1]), form="hinge")
    with pytest.raises(ValueError, match="background"):
        ClassBalancedLoss(torch.tensor([1]), background="two")
