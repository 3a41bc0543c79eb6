"""EQLv2 against loops in float64, over several steps, and its state against gradients by autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import EqualizationLossV2


class Oracle:
    """The formulas, one cell at a time."""

    def __init__(self, classes, gamma, mu, alpha):
        self.classes, self.gamma, self.mu, self.alpha = classes, gamma, mu, alpha
        self.positive, self.negative, self.ratio = [0.0] * classes, [0.0] * classes, [100.0] * classes

    def cell_weight(self, c, is_label):
        if c == self.classes:
            return 1.0
        m = 1 / (1 + math.exp(-self.gamma * (self.ratio[c] - self.mu)))
        return 1 + self.alpha * (1 - m) if is_label else m

    def step(self, logits, labels, row_weight, mask, update):
        rows, gradients = [], []
        for i, y in enumerate(labels):
            value = 0.0
            for c, z in enumerate(logits[i]):
                if c < self.classes and c != y and not mask[i][c]:
                    continue
                s, w = 1 / (1 + math.exp(-z)), self.cell_weight(c, c == y)
                value += w * (-math.log(s) if c == y else -math.log(1 - s))
                gradients.append((c, c == y, (1 - s if c == y else s) * w * row_weight[i]))
            rows.append(value)
        for c, is_label, size in gradients if update else ():
            if c < self.classes:
                (self.positive if is_label else self.negative)[c] += size
        if update:
            self.ratio = [
                p / (n + 1e-10) if p + n else 100.0 for p, n in zip(self.positive, self.negative, strict=True)
            ]
        return rows


def problem(seed, classes, rows):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes + 1, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, classes + 1, (rows,), generator=generator)
    weight = torch.randint(0, 3, (rows,), generator=generator).double() / 2
    return logits, labels, weight, torch.rand(rows, classes, generator=generator) < 0.7


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(1, 15), st.floats(0, 2), st.floats(0, 5))
def test_four_steps_agree_with_loops(seed, classes, gamma, mu, alpha):
    loss = EqualizationLossV2(classes, gamma=gamma, mu=mu, alpha=alpha)
    oracle = Oracle(classes, gamma, mu, alpha)
    for step in range(4):
        logits, labels, weight, mask = problem(seed + step, classes, 6)
        update = step != 2
        expected = oracle.step(logits.tolist(), labels.tolist(), weight.tolist(), mask.tolist(), update)
        total = math.fsum(r * w for r, w in zip(expected, weight.tolist(), strict=True)) / max((weight > 0).sum(), 1)
        found = loss(logits, labels, weight=weight, class_mask=mask, update_state=update)
        assert found.item() == pytest.approx(float(total))
        torch.testing.assert_close(loss.gradients.positive, torch.tensor(oracle.positive, dtype=torch.float64))
        torch.testing.assert_close(loss.gradients.negative, torch.tensor(oracle.negative, dtype=torch.float64))
        torch.testing.assert_close(loss.gradients(), torch.tensor(oracle.ratio, dtype=torch.float64))


@pytest.mark.parametrize("normaliser", [None, 1.0, 512.0])
def test_state_is_the_gradient_by_autograd_before_the_normaliser(normaliser):
    loss = EqualizationLossV2(4)
    loss(*problem(1, 4, 20)[:2], update_state=True)  # weights that differ between classes
    before = loss.gradients.positive.clone(), loss.gradients.negative.clone()
    logits, labels, weight, mask = problem(2, 4, 20)
    logits.requires_grad_()
    value = loss(logits, labels, weight=weight, class_mask=mask, normaliser=normaliser, update_state=True)
    value.backward()
    divisor = loss.normaliser(labels, weight) if normaliser is None else normaliser
    size = logits.grad.abs()[:, :4] * divisor
    is_label = labels.unsqueeze(1) == torch.arange(4)
    torch.testing.assert_close(loss.gradients.positive - before[0], (size * is_label).sum(dim=0))
    torch.testing.assert_close(loss.gradients.negative - before[1], (size * ~is_label).sum(dim=0))


def test_by_hand():
    """At the start m(100) = 1: plain cross-entropy. One step at logit 0 with one object and one background row then
    gives the ratio 0.5 / 0.5 = 1 to class 0, and 0 / 1 to class 1."""
    loss = EqualizationLossV2(2)
    logits, labels = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 2])
    assert loss(logits, labels, update_state=True).item() == pytest.approx(3 * math.log(2))
    assert loss.gradients().tolist() == pytest.approx([1.0, 0.0])
    m = [1 / (1 + math.exp(-12 * (g - 0.8))) for g in (1.0, 0.0)]
    assert m[1] == pytest.approx(6.8e-5, rel=0.01), "a class never seen is hardly suppressed"
    first = (1 + 4 * (1 - m[0])) + m[1] + 1  # the label, the other class, not background
    second = m[0] + m[1] + 1
    assert loss(logits, labels, update_state=False).item() == pytest.approx((first + second) * math.log(2) / 2)


def test_ignored_rows_leave_no_trace_in_the_state():
    loss, clean = EqualizationLossV2(3), EqualizationLossV2(3)
    logits, labels, _, _ = problem(3, 3, 6)
    weight = torch.tensor([1.0, 0.0, 1.0, 2.0, 0.0, 1.0])
    spoilt = logits.masked_fill((weight == 0).unsqueeze(1), float("nan"))
    loss(spoilt, labels, weight=weight, update_state=True)
    kept = weight > 0
    clean(logits[kept], labels[kept], weight=weight[kept], update_state=True)
    torch.testing.assert_close(loss.state_dict(), clean.state_dict())


def test_a_batch_without_rows_is_no_evidence():
    loss = EqualizationLossV2(3)
    loss(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), update_state=True)
    assert loss.gradients().tolist() == [100.0] * 3


def test_scores():
    logits = torch.tensor([[0.0, 100.0, 0.0], [0.0, 100.0, -100.0]])
    torch.testing.assert_close(EqualizationLossV2(2).scores(logits), torch.tensor([[0.25, 0.5, 0.5], [0.5, 1.0, 0.0]]))


def test_sums_stay_exact_for_long_runs():
    """In float32, additions below 2^-24 of the sum would be lost."""
    loss = EqualizationLossV2(1)
    loss.gradients.positive.fill_(2.0**26)
    loss(torch.zeros(1, 2), torch.tensor([0]), update_state=True)
    assert loss.gradients.positive.item() == 2.0**26 + 0.5


@pytest.mark.parametrize("wrong", [{"gamma": 0.0}, {"alpha": -1.0}, {"prior": 1.0}])
def test_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EqualizationLossV2(3, **wrong)


def test_the_share_of_classes_whose_negatives_weigh_less_than_half():
    loss = EqualizationLossV2(4)
    assert loss.running_shares()["spared_classes"].item() == 0.0  # every ratio starts at 100
    loss.gradients.positive.copy_(torch.tensor([0.0, 0.7, 0.9, 0.0]))
    loss.gradients.negative.copy_(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert loss.running_shares()["spared_classes"].item() == 0.5
    weights = torch.sigmoid(loss.gamma * (loss.gradients() - loss.mu))
    assert (weights < 0.5).tolist() == [True, True, False, False]
