"""EFL against loops in float64, over several steps, and its state against gradients by autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import EqualizedFocalLoss, FocalLoss


def oracle(logits, labels, ratio, gamma, scale, alpha, mask):
    rows = []
    for i, y in enumerate(labels):
        value = 0.0
        for c, z in enumerate(logits[i]):
            if c != y and not mask[i][c]:
                continue
            p = 1 / (1 + math.exp(-z))
            p_t, alpha_t = (p, alpha) if c == y else (1 - p, 1 - alpha)
            gamma_c = gamma + scale * (1 - ratio[c])
            value += alpha_t * (gamma_c / gamma) * (1 - p_t) ** gamma_c * -math.log(p_t)
        rows.append(value)
    return rows


def problem(seed, classes, rows):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, classes + 1, (rows,), generator=generator)
    weight = torch.randint(0, 3, (rows,), generator=generator).double() / 2
    return logits, labels, weight, torch.rand(rows, classes, generator=generator) < 0.7


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 5), st.floats(0.5, 4), st.floats(0, 10), st.floats(0, 1),
    st.sampled_from([None, 7.0]),
)  # fmt: skip
def test_three_steps_agree_with_loops_and_autograd(seed, classes, gamma, scale, alpha, normaliser):
    """Loss from the state so far; then the state grows by exactly what was back-propagated."""
    loss = EqualizedFocalLoss(classes, gamma=gamma, scale=scale, alpha=alpha)
    positive, negative, ratio = torch.zeros(classes).double(), torch.zeros(classes).double(), [1.0] * classes
    for step in range(3):
        logits, labels, weight, mask = problem(seed + step, classes, 6)
        logits.requires_grad_()
        value = loss(logits, labels, weight=weight, class_mask=mask, normaliser=normaliser, update_state=True)
        value.backward()
        rows = oracle(logits.tolist(), labels.tolist(), ratio, gamma, scale, alpha, mask.tolist())
        divisor = normaliser or max(int(((labels < classes) & (weight > 0)).sum()), 1)
        total = math.fsum(r * w for r, w in zip(rows, weight.tolist(), strict=True)) / divisor
        assert value.item() == pytest.approx(total)
        is_label = labels.unsqueeze(1) == torch.arange(classes)
        positive += (logits.grad.abs() * is_label).sum(dim=0)
        negative += (logits.grad.abs() * ~is_label).sum(dim=0)
        torch.testing.assert_close(loss.gradients.positive, positive)
        torch.testing.assert_close(loss.gradients.negative, negative)
        ratio = [
            min(max(p / (n + 1e-10), 0.0), 1.0) if p + n else 1.0
            for p, n in zip(positive.tolist(), negative.tolist(), strict=True)
        ]


def test_first_step_is_the_focal_loss():
    logits, labels, weight, _ = problem(0, 5, 12)
    torch.testing.assert_close(
        EqualizedFocalLoss(5)(logits, labels, weight=weight), FocalLoss(5)(logits, labels, weight=weight)
    )


def test_by_hand():
    """One object of class 0 at logit 0: its cell costs 0.25 * 0.25 * log 2, with gradient 0.25 * 0.25 * (0.5 + log 2);
    class 1 has only a negative one, so its ratio is 0 and its gamma 10 in the next step."""
    loss = EqualizedFocalLoss(2)
    logits, labels = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])
    assert loss(logits, labels, update_state=True).item() == pytest.approx((0.25 + 0.75) * 0.25 * math.log(2))
    assert loss.gradients.positive.tolist() == pytest.approx([0.0625 * (0.5 + math.log(2)), 0.0])
    assert loss.gradients.negative.tolist() == pytest.approx([0.0, 3 * 0.0625 * (0.5 + math.log(2))])
    second = 0.25 * 0.25 * math.log(2) + 0.75 * 5 * 0.5**10 * math.log(2)
    assert loss(logits, labels, update_state=False).item() == pytest.approx(second)


def test_rows_alone_count_with_weight_one_and_the_papers_normaliser():
    one, other = EqualizedFocalLoss(4), EqualizedFocalLoss(4)
    logits, labels, _, _ = problem(5, 4, 10)
    one.row_losses(logits, labels, update_state=True)
    other(logits, labels, update_state=True)
    torch.testing.assert_close(one.state_dict(), other.state_dict())


def test_ignored_rows_leave_no_trace_in_the_state():
    loss, clean = EqualizedFocalLoss(3), EqualizedFocalLoss(3)
    logits, labels, _, _ = problem(3, 3, 6)
    weight = torch.tensor([1.0, 0.0, 1.0, 2.0, 0.0, 1.0])
    spoilt = logits.masked_fill((weight == 0).unsqueeze(1), float("nan"))
    loss(spoilt, labels, weight=weight, update_state=True)
    kept = weight > 0
    clean(logits[kept], labels[kept], weight=weight[kept], update_state=True)
    torch.testing.assert_close(loss.state_dict(), clean.state_dict())


def test_is_for_dense_and_query_heads():
    assert EqualizedFocalLoss(3).heads == {"dense", "query"}


@pytest.mark.parametrize("wrong", [{"gamma": 0.0}, {"scale": -1.0}, {"alpha": 1.5}, {"prior": 1.0}])
def test_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EqualizedFocalLoss(3, **wrong)
