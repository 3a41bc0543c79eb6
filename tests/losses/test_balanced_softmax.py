"""Balanced Softmax, both forms, against loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import BalancedSoftmaxLoss, LogitAdjustedLoss, SigmoidCrossEntropy

classes = st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 1)), min_size=1, max_size=6)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def sigmoid_oracle(logits, labels, frequency, mask=None):
    """Sum over rows and classes of binary cross-entropies, foreground rows with ``z - log((1 - f) / f)``, over N."""
    values = []
    for i, y in enumerate(labels):
        for c, f in enumerate(frequency):
            if mask is not None and not mask[i][c] and c != y:
                continue
            f = min(max(f, 1e-5), 1 - 1e-5)
            z = logits[i][c] - (math.log((1 - f) / f) if y < len(frequency) else 0.0)
            values.append(-math.log(sigmoid(z)) if c == y else -math.log(sigmoid(-z)))
    return math.fsum(values) / len(labels)


def softmax_oracle(logits, labels, counts, background_count, mask=None):
    """``-log(n_y e^z_y / sum_c n_c e^z_c)``, in which the background has a count too."""
    weight = [max(n, 1) for n in counts] + [background_count]
    values = []
    for i, y in enumerate(labels):
        stays = [c for c in range(len(weight)) if c == y or c == len(counts) or mask is None or mask[i][c]]
        total = math.fsum(weight[c] * math.exp(logits[i][c]) for c in stays)
        values.append(-math.log(weight[y] * math.exp(logits[i][y]) / total))
    return math.fsum(values) / len(values)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), classes, st.sampled_from(["none", "pseudo_count", "sigmoid"]), st.booleans())
def test_agrees_with_loops(seed, given, what, masked):
    counts, frequency = [n for n, _ in given], [f for _, f in given]
    form = "sigmoid" if what == "sigmoid" else "softmax"
    background = "none" if what == "sigmoid" else what
    loss = BalancedSoftmaxLoss(torch.tensor(counts), torch.tensor(frequency), form=form, background=background)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, loss.num_logits, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, len(counts) + 1, (7,), generator=generator)
    mask = torch.rand(7, len(counts), generator=generator) < 0.5 if masked else None
    rows = None if mask is None else mask.tolist()
    if what == "sigmoid":
        expected = sigmoid_oracle(logits.tolist(), labels.tolist(), loss_frequency(frequency), rows)
    else:
        own = [max(n, 1) for n in counts]
        middle = math.exp(math.fsum(math.log(n) for n in own) / len(own))
        count = middle if what == "none" else 3 * sum(own)
        expected = softmax_oracle(logits.tolist(), labels.tolist(), counts, count, rows)
    assert loss(logits, labels, class_mask=mask).item() == pytest.approx(expected, rel=1e-4)


def loss_frequency(frequency):
    """The values a float32 tensor holds."""
    return torch.tensor(frequency).double().tolist()


def test_the_default_is_logit_adjustment_with_tau_one():
    counts, frequency = torch.tensor([3, 0, 4000]), torch.tensor([0.1, 0.2, 0.3])
    logits, labels = torch.randn(9, 4), torch.arange(9) % 4
    both = [loss(logits, labels) for loss in (BalancedSoftmaxLoss(counts, frequency), LogitAdjustedLoss(counts))]
    assert torch.equal(*both)


def test_sigmoid_form_by_hand():
    """A class in a fifth of the images: its logit is lowered by log 4 in foreground rows, not in background rows."""
    loss = BalancedSoftmaxLoss(torch.tensor([5]), torch.tensor([0.2]), form="sigmoid")
    rows = loss.per_sample(torch.zeros(2, 1), torch.tensor([0, 1]))
    torch.testing.assert_close(rows, torch.tensor([math.log(5), math.log(2)]))


def test_background_rows_of_the_sigmoid_form_are_plain():
    loss = BalancedSoftmaxLoss(torch.tensor([5, 9]), torch.tensor([0.2, 0.01]), form="sigmoid")
    logits, labels = torch.randn(6, 2), torch.full((6,), 2)
    torch.testing.assert_close(loss(logits, labels), SigmoidCrossEntropy(2)(logits, labels))


def test_half_of_the_images_is_no_prior():
    loss = BalancedSoftmaxLoss(torch.tensor([5, 9]), torch.tensor([0.5, 0.5]), form="sigmoid")
    logits, labels = torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(loss(logits, labels), SigmoidCrossEntropy(2)(logits, labels))


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_scores_know_nothing_of_the_prior(form):
    loss = BalancedSoftmaxLoss(torch.tensor([5, 900]), torch.tensor([0.1, 0.9]), form=form)
    logits = torch.randn(4, loss.num_logits)
    scores = logits.softmax(dim=1) if form == "softmax" else torch.nn.functional.pad(logits.sigmoid(), (0, 1))
    torch.testing.assert_close(loss.scores(logits), scores)


def test_refuses_nonsense():
    two = torch.tensor([1, 2])
    with pytest.raises(ValueError, match="2 instance counts, but 1"):
        BalancedSoftmaxLoss(two, torch.tensor([0.1]))
    with pytest.raises(ValueError, match="image_frequency"):
        BalancedSoftmaxLoss(two, torch.tensor([0.1, 1.1]))
    with pytest.raises(ValueError, match="form"):
        BalancedSoftmaxLoss(two, torch.tensor([0.1, 0.2]), form="focal")
