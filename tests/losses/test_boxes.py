"""Box losses against loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import GIoULoss, L1Loss, SmoothL1Loss

quick = settings(max_examples=25, deadline=None)
corner = st.floats(-100, 100).map(lambda x: round(x, 2))


def smooth_l1(predicted, target, beta):
    """Sum over the four values of one box."""
    total = 0.0
    for p, t in zip(predicted, target, strict=True):
        d = abs(p - t)
        total += d * d / (2 * beta) if d < beta else d - beta / 2
    return total


def area(box):
    """Width times height, 0 for an empty box."""
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def giou(a, b, eps):
    """Generalised IoU of two boxes."""
    inner = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    enclosing = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    union = area(a) + area(b) - inner
    return inner / (union + eps) - (enclosing - union) / (enclosing + eps)


@st.composite
def box(draw):
    """Corners of a box, possibly without area."""
    (x1, x2), (y1, y2) = sorted([draw(corner), draw(corner)]), sorted([draw(corner), draw(corner)])
    return [x1, y1, x2, y2]


@quick
@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([0.0, 1 / 9, 0.5, 1.0, 3.0]))
def test_smooth_l1_agrees_with_loops(seed, rows, beta):
    generator = torch.Generator().manual_seed(seed)
    predicted, target = torch.randn(2, rows, 4, generator=generator, dtype=torch.float64) * 2
    pairs = zip(predicted.tolist(), target.tolist(), strict=True)
    expected = [smooth_l1(p, t, beta) for p, t in pairs]
    got = SmoothL1Loss(beta=beta).row_losses(predicted, target)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    assert SmoothL1Loss(beta=beta)(predicted, target).item() == pytest.approx(math.fsum(expected) / rows)


def test_l1_is_smooth_l1_without_parabola():
    predicted, target = torch.randn(2, 9, 4)
    expected = [[sum(abs(p - t) for p, t in zip(*pair, strict=True))]
                for pair in zip(predicted.tolist(), target.tolist(), strict=True)]  # fmt: skip
    torch.testing.assert_close(L1Loss().row_losses(predicted, target), torch.tensor(expected).squeeze(1))
    torch.testing.assert_close(L1Loss()(predicted, target), SmoothL1Loss(beta=0)(predicted, target))


def test_smooth_l1_default_is_the_published_beta():
    assert SmoothL1Loss().beta == 1.0
    half = torch.tensor([[0.5, 0.0, 0.0, 3.0]])
    assert SmoothL1Loss()(half, torch.zeros(1, 4)).item() == pytest.approx(0.125 + 2.5)


@quick
@given(st.lists(st.tuples(box(), box()), min_size=1, max_size=8))
def test_giou_agrees_with_loops(pairs):
    predicted, target = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    rows = GIoULoss().row_losses(predicted, target)
    expected = [1 - giou(a, b, 1e-7) for a, b in pairs]
    torch.testing.assert_close(rows, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert ((rows >= -1e-9) & (rows <= 2 + 1e-9)).all()
    torch.testing.assert_close(GIoULoss().row_losses(target, predicted), rows)


def test_giou_of_known_boxes():
    one = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    loss = GIoULoss()
    assert loss(one, one).item() == pytest.approx(0, abs=1e-6)
    assert loss(torch.tensor([[1.0, 0.0, 3.0, 2.0]]), one).item() == pytest.approx(1 - 1 / 3)  # no empty enclosure
    assert loss(torch.tensor([[3.0, 0.0, 5.0, 2.0]]), one).item() == pytest.approx(1 + 0.2)  # gap 1 of 5
    assert loss(torch.zeros(1, 4), torch.zeros(1, 4)).item() == pytest.approx(1)


def test_giou_pulls_distant_boxes_together():
    predicted = torch.tensor([[10.0, 0.0, 12.0, 2.0]], requires_grad=True)
    GIoULoss()(predicted, torch.tensor([[0.0, 0.0, 2.0, 2.0]])).backward()
    assert predicted.grad[0, 0] > 0  # descent moves the left edge left
    assert predicted.grad[0, [0, 2]].sum() > 0  # and the box as a whole


def test_spaces():
    assert SmoothL1Loss().space == L1Loss().space == "deltas"
    assert GIoULoss().space == "boxes"


def test_refuses_nonsense():
    with pytest.raises(ValueError, match="beta"):
        SmoothL1Loss(beta=-0.1)
    with pytest.raises(ValueError, match="eps"):
        GIoULoss(eps=0)
