"""GHM-C and GHM-R against loops in float64, over several steps; gradients with the weights held fixed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import GHMClassification, GHMRegression, SigmoidCrossEntropy


class Histogram:
    """The published running counts, one value at a time."""

    def __init__(self, bins, momentum):
        self.bins, self.momentum, self.counts = bins, momentum, [0.0] * bins

    def step(self, values):
        """``1 / (count * bins that are not empty)`` of every value."""
        index = [min(int(g * self.bins), self.bins - 1) for g in values]
        for b in set(index):
            self.counts[b] = self.momentum * self.counts[b] + (1 - self.momentum) * index.count(b)
        return [1 / (self.counts[b] * len(set(index))) for b in index]


def problem(seed, classes, rows):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, classes + 1, (rows,), generator=generator)
    weight = torch.randint(0, 2, (rows,), generator=generator).double()
    return logits, labels, weight, torch.rand(rows, classes, generator=generator) < 0.7


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([1, 10, 30]), st.sampled_from([0.0, 0.75]))
def test_classification_agrees_with_loops(seed, classes, bins, momentum):
    """Divided by its own normaliser, the loss is the sum of cells / (count * bins), and ``total`` cancels."""
    loss, histogram = GHMClassification(classes, bins=bins, momentum=momentum), Histogram(bins, momentum)
    for step in range(3):
        logits, labels, weight, mask = problem(seed + step, classes, 7)
        losses, sizes = [], []
        for i, y in enumerate(labels.tolist()):
            for c in range(classes):
                s = 1 / (1 + math.exp(-logits[i, c].item()))
                if weight[i] > 0 and (c == y or mask[i, c]):
                    losses.append(-math.log(s) if c == y else -math.log(1 - s))
                    sizes.append(1 - s if c == y else s)
        shares = histogram.step(sizes)
        found = loss(logits, labels, weight=weight, class_mask=mask, update_state=True)
        assert found.item() == pytest.approx(math.fsum(a * b for a, b in zip(losses, shares, strict=True)))
        assert loss.density.counts.tolist() == pytest.approx(histogram.counts)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.sampled_from([1, 10]), st.sampled_from([0.0, 0.7]))
def test_regression_agrees_with_loops(seed, boxes, bins, momentum):
    loss, histogram = GHMRegression(bins=bins, momentum=momentum), Histogram(bins, momentum)
    for step in range(3):
        generator = torch.Generator().manual_seed(seed + step)
        predicted, target = torch.randn(2, boxes, 4, generator=generator, dtype=torch.float64) * 0.05
        weight = torch.randint(0, 2, (boxes,), generator=generator).double()
        losses, sizes = [], []
        for i in range(boxes):
            for d in (predicted[i] - target[i]).tolist() if weight[i] > 0 else ():
                size = math.sqrt(d * d + 0.02**2)
                losses.append(size - 0.02)
                sizes.append(abs(d) / size)
        shares = histogram.step(sizes)
        counted = int(weight.sum())
        found = loss(predicted, target, weight, 16)
        expected = counted / 16 * math.fsum(a * b for a, b in zip(losses, shares, strict=True))
        assert found.item() == pytest.approx(expected, abs=1e-12)
        assert loss.density.counts.tolist() == pytest.approx(histogram.counts)


def test_every_bin_contributes_its_mean():
    """Ninety-nine easy cells and one hard one: half of the loss is the hard one's."""
    logits = torch.full((100, 1), -3.0, dtype=torch.float64)
    logits[0] = 3.0
    value = GHMClassification(1)(logits, torch.full((100,), 1), update_state=False)
    easy, hard = math.log(1 + math.exp(-3)), math.log(1 + math.exp(3))
    assert value.item() == pytest.approx((easy + hard) / 2)


def test_one_bin_is_plain_cross_entropy_averaged_over_cells():
    logits, labels, _, _ = problem(0, 5, 12)
    expected = SigmoidCrossEntropy(5)(logits, labels, normaliser=60)
    torch.testing.assert_close(GHMClassification(5, bins=1)(logits, labels), expected)


def test_gradient_holds_the_weights_fixed():
    logits, labels, _, _ = problem(1, 3, 10)
    logits.requires_grad_()
    GHMClassification(3)(logits, labels, update_state=False).backward()
    signed = logits.detach().sigmoid() - (labels.unsqueeze(1) == torch.arange(3)).double()
    shares = torch.tensor(Histogram(10, 0.0).step(signed.abs().flatten().tolist()), dtype=torch.float64)
    torch.testing.assert_close(logits.grad, signed * shares.reshape(10, 3))

    predicted = (torch.randn(6, 4, dtype=torch.float64) * 0.05).requires_grad_()
    GHMRegression()(predicted, torch.zeros(6, 4, dtype=torch.float64)).backward()
    slope = (predicted / (predicted.square() + 0.02**2).sqrt()).detach()
    shares = torch.tensor(Histogram(10, 0.0).step(slope.abs().flatten().tolist()), dtype=torch.float64)
    torch.testing.assert_close(predicted.grad, slope * shares.reshape(6, 4))


def test_empty_bins_keep_their_counts():
    loss = GHMClassification(1, bins=2, momentum=0.5)
    background = torch.tensor([1, 1])
    loss(torch.tensor([[5.0], [5.0]]), background, update_state=True)
    assert loss.density.counts.tolist() == [0.0, 1.0]
    loss(torch.tensor([[-5.0], [-5.0]]), background, update_state=True)
    assert loss.density.counts.tolist() == [1.0, 1.0]


def test_rows_are_weighed_after_they_are_counted():
    logits, labels, _, _ = problem(2, 3, 6)
    weight = torch.tensor([1.0, 2.0, 0.0, 0.5, 1.0, 0.0], dtype=torch.float64)
    kept = weight > 0
    rows = GHMClassification(3).row_losses(logits[kept], labels[kept])
    expected = (rows * weight[kept]).sum() / 12
    torch.testing.assert_close(GHMClassification(3)(logits, labels, weight=weight), expected)


def test_box_state_changes_only_when_told():
    loss = GHMRegression(momentum=0.5)
    boxes = torch.randn(3, 4), torch.randn(3, 4)
    loss(*boxes, update_state=False)
    loss.row_losses(*boxes)
    assert not loss.density.counts.any()
    loss.eval()(*boxes)
    assert not loss.density.counts.any()
    loss.train()(*boxes)
    assert loss.density.counts.any()


@pytest.mark.parametrize("wrong", [{"bins": 0}, {"momentum": 1.0}, {"momentum": -0.1}])
def test_refuses_nonsense(wrong):
    for part in (lambda **options: GHMClassification(3, **options), GHMRegression):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            part(**wrong)
    with pytest.raises(ValueError, match="mu"):
        GHMRegression(mu=0)
