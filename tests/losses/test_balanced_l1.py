"""Balanced L1 and LGR-L1: loops from the specification, the printed checkpoints, equal gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import BalancedL1Loss, LGRL1Loss
from longtail.losses.balanced_l1 import gradient_weight, steepness

PAIRS = [(0.2, 1.0), (0.3, 1.0), (0.5, 1.0), (0.5, 1.5), (0.5, 2.0), (0.8, 1.0), (1.0, 1.0)]


def single(loss, x):
    """Value and gradient for a difference of x in the first offset."""
    predicted = torch.zeros(1, 4, dtype=torch.float64)
    predicted[0, 0] = x
    predicted.requires_grad_()
    value = loss(predicted, torch.zeros(1, 4, dtype=torch.float64))
    value.backward()
    return value.item(), predicted.grad[0, 0].item()


def balanced(x, alpha, gamma, beta, form):
    b = math.exp(gamma / alpha) - 1
    d = abs(x)
    if form == "exact":
        if d < beta:
            return alpha / b * (b * d + beta) * math.log(b * d / beta + 1) - alpha * d
        return gamma * d + gamma * beta / b - alpha * beta
    if d < beta:
        return alpha / b * (b * d + 1) * math.log(b * d / beta + 1) - alpha * d
    return gamma * d + gamma / b - alpha * beta


def localised(x, alpha, gamma, beta):
    b = math.exp(gamma / alpha) - 1
    d = abs(x)
    if d == 0:
        return 0.0
    if d < beta:
        return beta * alpha * math.log(b * d / beta + 1) / d * 0.5 * d * d / beta
    return gamma * (d - beta / 2)


def slope(x, alpha, gamma, beta):
    b = math.exp(gamma / alpha) - 1
    return math.copysign(alpha * math.log(b * abs(x) / beta + 1) if abs(x) < beta else gamma, x)


@pytest.mark.parametrize(("alpha", "gamma"), PAIRS)
@pytest.mark.parametrize("beta", [1.0, 0.11])
def test_equal_the_loops_coordinate_by_coordinate(alpha, gamma, beta):
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randn(40, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    target[20:] = predicted[20:] + target[20:] * beta / 2
    for form in ("exact", "released"):
        rows = BalancedL1Loss(alpha=alpha, gamma=gamma, beta=beta, beta_form=form).row_losses(predicted, target)
        wanted = [sum(balanced(float(p[k] - t[k]), alpha, gamma, beta, form) for k in range(4))
                  for p, t in zip(predicted, target, strict=True)]  # fmt: skip
        torch.testing.assert_close(rows, torch.tensor(wanted, dtype=torch.float64))
    rows = LGRL1Loss(alpha=alpha, gamma=gamma, beta=beta).row_losses(predicted, target)
    wanted = [sum(localised(float(p[k] - t[k]), alpha, gamma, beta) for k in range(4))
              for p, t in zip(predicted, target, strict=True)]  # fmt: skip
    torch.testing.assert_close(rows, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize(
    ("x", "value", "gradient", "rho", "localised_value"),
    [
        (0.01, 0.000449, 0.087336, 8.733592, 0.000437),
        (0.1, 0.031353, 0.533828, 5.338280, 0.026691),
        (0.5, 0.400568, 1.177720, 2.355440, 0.294430),
        (0.75, 0.719780, 1.364389, 1.819185, 0.511646),
        (1 - 1e-9, 1.078594, 1.5, 1.5, 0.75),
    ],
)
def test_checkpoints_of_the_specification(x, value, gradient, rho, localised_value):
    found, found_gradient = single(BalancedL1Loss(), x)
    again, again_gradient = single(LGRL1Loss(), -x)
    assert found == pytest.approx(value, abs=6e-7)
    assert found_gradient == pytest.approx(gradient, abs=6e-7)
    assert again == pytest.approx(localised_value, abs=6e-7)
    assert again_gradient == pytest.approx(-gradient, abs=6e-7)
    weight = gradient_weight(torch.tensor(x, dtype=torch.float64), alpha=0.5, b=steepness(0.5, 1.5))
    assert weight.item() == pytest.approx(rho, abs=6e-7)


@pytest.mark.parametrize(
    ("pair", "b"),
    zip(PAIRS, [147.41316, 27.03162, 6.38906, 19.08554, 53.59815, 2.49034, 1.71828], strict=True),
)
def test_steepness_of_the_published_pairs(pair, b):
    assert steepness(*pair) == pytest.approx(b, abs=6e-6)


@given(
    values=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    pair=st.sampled_from(PAIRS),
    beta=st.sampled_from([1.0, 1 / 9, 0.11, 2.0]),
)
@settings(max_examples=80, deadline=None)
def test_both_have_the_same_gradient(values, pair, beta):
    gradients = []
    for kind in (BalancedL1Loss, LGRL1Loss):
        x = torch.tensor([values], dtype=torch.float64, requires_grad=True)
        kind(alpha=pair[0], gamma=pair[1], beta=beta)(x, torch.zeros(1, 4, dtype=torch.float64)).backward()
        gradients.append(x.grad)
    wanted = [slope(value, *pair, beta) if value else 0.0 for value in values]
    torch.testing.assert_close(gradients[0], torch.tensor([wanted], dtype=torch.float64))
    torch.testing.assert_close(gradients[1], torch.tensor([wanted], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x", [0.0, 1e-45, 1e-38, 1e-12, 1e-8, 1e-7, 1e-6, 1e-3, 1.0, 1e30])
def test_finite_and_accurate_down_to_zero(x, dtype):
    for kind in (BalancedL1Loss, LGRL1Loss):
        predicted = torch.full((1, 4), x, dtype=dtype, requires_grad=True)
        kind()(predicted, torch.zeros(1, 4, dtype=dtype)).backward()
        wanted = 0.5 * math.log1p(steepness(0.5, 1.5) * x) if x < 1 else 1.5
        assert predicted.grad[0, 0].item() == pytest.approx(wanted, rel=1e-4, abs=1e-40)
    limit = gradient_weight(torch.zeros((), dtype=dtype), alpha=0.5, b=steepness(0.5, 1.5))
    assert limit.item() == pytest.approx(9.5428, abs=6e-5)


def test_the_gradient_is_continuous_at_beta_and_the_value_too():
    for beta in (1.0, 0.11):
        for kind in (BalancedL1Loss, LGRL1Loss):
            below, at = single(kind(beta=beta), beta * (1 - 1e-12)), single(kind(beta=beta), beta)
            assert below == pytest.approx(at, rel=1e-9)
        below, at = (single(BalancedL1Loss(beta=beta, beta_form="released"), beta * x) for x in (1 - 1e-12, 1))
        assert below[0] == pytest.approx(at[0], rel=1e-9)


@pytest.mark.parametrize(("x", "gradient"), [(1e-9, 4.05), (0.05, 1.55), (0.11 - 1e-9, 1.70), (0.12, 1.5)])
def test_the_released_form_has_the_gradient_it_is_known_for(x, gradient):
    assert single(BalancedL1Loss(beta=0.11, beta_form="released"), x)[1] == pytest.approx(gradient, abs=0.005)


@pytest.mark.parametrize("x", [-2.0, -0.3, 0.0, 0.4, 1.0])
def test_the_released_form_is_the_exact_one_for_beta_1(x):
    assert single(BalancedL1Loss(beta_form="released"), x) == single(BalancedL1Loss(), x)


def test_both_train_alike():
    """The specification's strong property: the same trajectory up to floating point."""
    paths = []
    for kind in (BalancedL1Loss, LGRL1Loss):
        x = torch.linspace(-2, 2, 40, dtype=torch.float64).reshape(10, 4).requires_grad_()
        optimiser = torch.optim.SGD([x], lr=0.3, momentum=0.9)
        for _ in range(30):
            optimiser.zero_grad()
            kind()(x, torch.full((10, 4), 0.2, dtype=torch.float64)).backward()
            optimiser.step()
        paths.append(x.detach())
    torch.testing.assert_close(*paths, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"alpha": 0}, "alpha"), ({"gamma": -1}, "gamma"), ({"alpha": 1e-3}, "700"), ({"beta": 0}, "beta")],
)
def test_nonsense_is_refused(options, match):
    for kind in (BalancedL1Loss, LGRL1Loss):
        with pytest.raises(ValueError, match=match):
            kind(**options)
    with pytest.raises(ValueError, match="released"):
        BalancedL1Loss(beta_form="paper")
