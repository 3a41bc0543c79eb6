"""Small tensors of the losses, cell by cell."""

from __future__ import annotations

import torch

from longtail.losses.cells import label_counts, left_out_cells, target_cells

LABELS = torch.tensor([0, 3, 2, 4, 3])  # C = 4, so the fourth is background


def test_targets() -> None:
    for columns in (1, 4, 5, 6):
        expected = [[int(label) == column for column in range(columns)] for label in LABELS]
        assert target_cells(LABELS, columns).tolist() == expected
        values = target_cells(LABELS, columns, torch.float64)
        assert values.dtype == torch.float64
        assert values.tolist() == [[float(cell) for cell in row] for row in expected]
    assert target_cells(LABELS[:0], 5).shape == (0, 5)


def test_left_out_cells_are_never_the_label_nor_beyond_the_classes() -> None:
    mask = torch.tensor([[False, True, False, True]]).expand(5, 4)
    found = left_out_cells(LABELS, mask, 6)
    expected = [[c < 4 and not mask[n, c].item() and int(LABELS[n]) != c for c in range(6)] for n in range(5)]
    assert found.tolist() == expected
    assert mask[0].tolist() == [False, True, False, True]


def test_counts_of_labels() -> None:
    counted = torch.tensor([True, True, True, True, False])
    assert label_counts(LABELS, counted, 4).tolist() == [1, 0, 1, 1]
    assert label_counts(LABELS, counted, 5).tolist() == [1, 0, 1, 1, 1]
