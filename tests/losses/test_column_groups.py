"""Softmax cross-entropies over groups of columns against one cross-entropy after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.column_groups import group_cross_entropy

WIDTHS = [3, 1, 4]


def inputs(rows: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, sum(WIDTHS), generator=generator, dtype=torch.float64).mul(3).requires_grad_()
    targets = torch.stack([torch.randint(0, width, (rows,), generator=generator) for width in WIDTHS], dim=1)
    return logits, targets


def one_by_one(logits: Tensor, targets: Tensor, order: list[int]) -> Tensor:
    pieces = logits[:, order].split(WIDTHS, dim=1)
    return torch.stack(
        [F.cross_entropy(piece, targets[:, g], reduction="none") for g, piece in enumerate(pieces)], dim=1
    )


@pytest.mark.parametrize("order", [None, [5, 0, 7, 2, 1, 6, 3, 4]])
def test_values_and_gradients(order: list[int] | None) -> None:
    logits, targets = inputs()
    columns = None if order is None else torch.tensor(order)
    place = None if columns is None else columns.argsort()
    rows = group_cross_entropy(logits, targets, WIDTHS, order=columns, place=place)
    expected = one_by_one(logits, targets, order or list(range(8)))
    torch.testing.assert_close(rows, expected)
    weight = torch.arange(18, dtype=torch.float64).reshape(6, 3)  # a gradient of its own for every row and group
    (found,) = torch.autograd.grad((rows * weight).sum(), logits)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), logits)
    torch.testing.assert_close(found, wanted)


def test_constants_are_added_to_the_first_group_only() -> None:
    logits, targets = inputs()
    added = torch.linspace(-2, 3, 18, dtype=torch.float64).reshape(6, 3)
    untouched = added.clone()
    rows = group_cross_entropy(logits, targets, WIDTHS, added=added)
    torch.testing.assert_close(rows, one_by_one(logits + F.pad(added, (0, 5)), targets, list(range(8))))
    assert torch.equal(added, untouched)
    assert torch.autograd.gradcheck(lambda z: group_cross_entropy(z, targets, WIDTHS, added=added), (logits,))


def test_columns_at_minus_infinity_get_no_gradient() -> None:
    logits, targets = inputs()
    out = torch.zeros(6, 8, dtype=torch.bool)
    out[:, 1] = True
    targets[:, 0] = 0
    rows = group_cross_entropy(logits.masked_fill(out, float("-inf")), targets, WIDTHS)
    rows.sum().backward()
    assert rows.isfinite().all()
    assert logits.grad is not None
    assert not logits.grad[:, 1].any()
    assert logits.grad[:, 2].all()


def test_no_rows() -> None:
    logits, targets = inputs(rows=0)
    rows = group_cross_entropy(logits, targets, WIDTHS)
    rows.sum().backward()
    assert rows.shape == (0, 3)
    assert logits.grad is not None
    assert logits.grad.shape == (0, 8)
