"""The equilibrium loss against its definition in the paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longtail.losses import EquilibriumLoss, MeanScore, SoftmaxCrossEntropy

C = 4


def guide(*values: float) -> MeanScore:
    score = MeanScore(len(values) - 1).double()
    score.value.copy_(torch.tensor(values, dtype=torch.float64))
    return score


def case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, C + 1, generator=generator, dtype=torch.float64) * 3
    return logits, torch.arange(20) % (C + 1)


def oracle(z: list[float], y: int, s: list[float]) -> float:
    """Equation 1: log(1 + sum over the others of exp(z_j - z_y + log(s_j / s_y)))."""
    return math.log(1 + sum(math.exp(z[j] - z[y] + math.log(s[j] / s[y])) for j in range(len(z)) if j != y))


def test_follows_the_definition() -> None:
    s = [0.3, 0.02, 0.8, 0.1, 0.01]
    logits, labels = case()
    rows = EquilibriumLoss(guide(*s)).per_sample(logits, labels)
    expected = [oracle(z, y, s) for z, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    torch.testing.assert_close(rows, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_counts_follow_the_definition_with_one_for_the_background() -> None:
    logits, labels = case()
    rows = EquilibriumLoss(torch.tensor([100, 5, 0, 1])).per_sample(logits, labels)
    expected = [oracle(z, y, [100, 5, 1, 1, 1]) for z, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    torch.testing.assert_close(rows, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_equal_scores_are_cross_entropy_bit_for_bit() -> None:
    logits = torch.randn(500, C + 1, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.arange(500) % (C + 1)
    plain = SoftmaxCrossEntropy(C).per_sample(logits, labels)
    assert torch.equal(EquilibriumLoss(MeanScore(C)).per_sample(logits, labels), plain)
    assert torch.equal(EquilibriumLoss(torch.ones(C)).per_sample(logits, labels), plain)


def test_only_ratios_count() -> None:
    logits, labels = case()
    first = EquilibriumLoss(guide(0.3, 0.02, 0.8, 0.1, 0.01)).per_sample(logits, labels)
    second = EquilibriumLoss(guide(0.03, 0.002, 0.08, 0.01, 0.001)).per_sample(logits, labels)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)


def test_a_higher_background_entry_moves_loss_from_background_to_objects() -> None:
    logits, labels = case()
    low = EquilibriumLoss(guide(0.3, 0.02, 0.8, 0.1, 0.01)).per_sample(logits, labels)
    high = EquilibriumLoss(guide(0.3, 0.02, 0.8, 0.1, 0.1)).per_sample(logits, labels)
    assert ((high < low) == (labels == C)).all()
    assert ((high > low) == (labels < C)).all()


def test_finite_where_the_released_form_overflows() -> None:
    logits = torch.tensor([[0.0, 110.0, 0.0]], requires_grad=True)
    loss = EquilibriumLoss(MeanScore(2))(logits, torch.tensor([0]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 110.0
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-1.0, 1.0, 0.0]]


def test_gradient_is_softmax_of_the_shifted_logits_and_none_goes_through_the_scores() -> None:
    s = guide(0.3, 0.02, 0.8, 0.1, 0.01)
    logits, labels = case()
    logits.requires_grad_()
    EquilibriumLoss(s).per_sample(logits, labels).sum().backward()  # type: ignore[no-untyped-call]
    shifted = (logits.detach() + s.value.log()).softmax(1)
    expected = shifted - torch.nn.functional.one_hot(labels, C + 1)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected, rtol=1e-10, atol=1e-14)
    assert not s.value.requires_grad
    assert torch.autograd.gradcheck(lambda z: EquilibriumLoss(s).per_sample(z, labels), logits)


def test_sees_the_scores_of_the_moment() -> None:
    s = guide(0.5, 0.5, 0.5)
    loss = EquilibriumLoss(s)
    logits, labels = torch.zeros(1, 3), torch.tensor([0])
    before = loss(logits, labels)
    s.value[0] = 0.1
    assert loss(logits, labels) > before


def test_scores_are_a_plain_softmax() -> None:
    logits, _ = case()
    assert torch.equal(EquilibriumLoss(guide(0.3, 0.02, 0.8, 0.1, 0.01)).scores(logits), logits.softmax(1))


@pytest.mark.parametrize("wrong", [torch.tensor([1, -1]), torch.ones(2, 2)])
def test_refuses_what_are_no_counts(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="one number >= 0 per class"):
        EquilibriumLoss(wrong)
