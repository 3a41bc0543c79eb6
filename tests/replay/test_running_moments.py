"""Running moments against a loop written from the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.replay import RunningMoments

CLASSES, SIZE = 4, 3
batches = st.lists(st.lists(st.integers(0, CLASSES), max_size=7), min_size=1, max_size=5)


def features_of(labels: list[int], seed: int) -> torch.Tensor:
    return torch.randn(len(labels), SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop(given: list[list[int]], *, momentum: float, moment: str, single: str):
    """Row by row, class by class, in float64."""
    mean = np.zeros((CLASSES, SIZE))
    var = np.zeros((CLASSES, SIZE))
    seen, known = [False] * CLASSES, [False] * CLASSES
    for seed, labels in enumerate(given):
        rows = features_of(labels, seed).numpy()
        for c in range(CLASSES):
            own = [row for row, label in zip(rows, labels, strict=True) if label == c]
            if not own:
                continue
            m = sum(own) / len(own)
            v = sum((x - m) ** 2 for x in own) / (len(own) - 1) if len(own) > 1 else np.zeros(SIZE)
            mean[c] = m if not seen[c] else (1 - momentum) * mean[c] + momentum * m
            if single == "zero" or len(own) > 1:
                first = not (seen[c] if single == "zero" else known[c])
                if first:
                    var[c] = v
                elif moment == "var":
                    var[c] = (1 - momentum) * var[c] + momentum * v
                else:
                    var[c] = ((1 - momentum) * np.sqrt(var[c]) + momentum * np.sqrt(v)) ** 2
            seen[c] = True
            known[c] = known[c] or len(own) > 1
    return mean, var, seen, known


@pytest.mark.parametrize("moment", ["var", "std"])
@pytest.mark.parametrize("single", ["zero", "skip"])
@settings(max_examples=25, deadline=None)
@given(batches)
def test_is_the_loop(moment, single, given) -> None:
    moments = RunningMoments(CLASSES, SIZE, momentum=0.25, moment=moment, single_sample=single).double()
    for seed, labels in enumerate(given):
        moments.update(features_of(labels, seed), torch.tensor(labels, dtype=torch.long))
    mean, var, seen, known = loop(given, momentum=0.25, moment=moment, single=single)
    assert np.allclose(moments.mean, mean, atol=1e-12)
    assert np.allclose(moments.var, var, atol=1e-12)
    assert moments.seen.tolist() == seen
    assert moments.spread_known.tolist() == known


def test_first_row_and_single_rows() -> None:
    moments = RunningMoments(2, 1)
    moments.update(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
    assert (moments.mean[0].item(), moments.var[0].item()) == (2.0, 2.0)
    moments.update(torch.tensor([[2.0]]), torch.tensor([0]))
    assert moments.var[0].item() == pytest.approx(1.8)  # a single row has variance 0
    skipping = RunningMoments(2, 1, single_sample="skip")
    skipping.update(torch.tensor([[5.0]]), torch.tensor([1]))
    assert (skipping.var[1].item(), skipping.seen.tolist()) == (0.0, [False, True])
    skipping.update(torch.tensor([[4.0], [8.0]]), torch.tensor([1, 1]))
    assert skipping.var[1].item() == 8.0  # set, not averaged with the 0
    skipping.update(torch.tensor([[4.0]]), torch.tensor([1]))
    assert skipping.var[1].item() == 8.0


def test_order_of_rows_does_not_matter() -> None:
    labels = torch.randint(0, CLASSES + 1, (40,), generator=torch.Generator().manual_seed(0))
    rows = features_of(labels.tolist(), 1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    one, other = RunningMoments(CLASSES, SIZE).double(), RunningMoments(CLASSES, SIZE).double()
    one.update(rows, labels)
    other.update(rows[order], labels[order])
    assert torch.allclose(one.mean, other.mean, atol=1e-14)
    assert torch.allclose(one.var, other.var, atol=1e-13)


def test_half_precision_rows_are_summed_in_float32() -> None:
    moments = RunningMoments(1, 1)
    moments.update(torch.full((300, 1), 1.0).bfloat16(), torch.zeros(300, dtype=torch.long))
    assert moments.mean.dtype == torch.float32
    assert moments.mean.item() == 1.0  # 300 ones do not sum to 300 in bfloat16


@pytest.mark.parametrize(
    "wrong", [{"num_classes": 0}, {"feature_size": 0}, {"momentum": 0.0}, {"momentum": 1.5}, {"moment": "x"},
              {"single_sample": "x"}]
)  # fmt: skip
def test_refuses(wrong) -> None:
    with pytest.raises(ValueError, match=r"must be|is 'var'"):
        RunningMoments(**{"num_classes": 2, "feature_size": 2, **wrong})
