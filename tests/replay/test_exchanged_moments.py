"""MoEx between regions, against loops."""

import dataclasses

import pytest
import torch

from longtail.replay import ExchangedMoments, RegionRows

C = 3
GROUPS = {  # which values share their moments, for a region of 4 channels of 2 x 2
    "position": [[(k, i, j) for k in range(4)] for i in range(2) for j in range(2)],
    "instance": [[(k, i, j) for i in range(2) for j in range(2)] for k in range(4)],
    "layer": [[(k, i, j) for k in range(4) for i in range(2) for j in range(2)]],
}


def regions(labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = len(labels)
    boxes = torch.rand(count, 4, generator=generator)
    nowhere = torch.zeros(count, dtype=torch.long)
    features = torch.randn(count, 4, 2, 2, generator=generator).requires_grad_()
    return RegionRows(features, torch.tensor(labels, dtype=torch.long), boxes, boxes, nowhere, nowhere)


def step(part, rows, update_state=True):
    return part.step(rows, [], lambda boxes: None, update_state)


def moments(values):
    """Mean and deviation with the unbiased variance, number by number."""
    mean = sum(values) / len(values)
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - 1) + 1e-5) ** 0.5


def exchanged(a, b, norm):
    result = torch.zeros(4, 2, 2, dtype=torch.float64)
    for group in GROUPS[norm]:
        (mean_a, sd_a), (mean_b, sd_b) = (moments([float(x[cell]) for cell in group]) for x in (a, b))
        for cell in group:
            result[cell] = (float(a[cell]) - mean_a) / sd_a * sd_b + mean_b
    return result


@pytest.mark.parametrize("size", [1.0, 0.003])
@pytest.mark.parametrize("norm", list(GROUPS))
def test_agrees_with_loops(norm, size):
    """Also where the features are so small that what is added to the variance counts."""
    labels = [2, 3, 0, 0, 3, 1]
    rows = regions(labels)
    factor = size * torch.tensor([1, 1, 5, 1, 1, 2.0])
    rows = dataclasses.replace(rows, features=rows.features * factor[:, None, None, None])
    torch.manual_seed(5)
    extra = step(ExchangedMoments(C, probability=1, norm=norm), rows)
    foreground = [0, 2, 3, 5]
    torch.manual_seed(5)
    torch.rand(())
    partner = [foreground[p] for p in torch.randperm(4).tolist()]
    assert partner != foreground
    assert extra.replaces.tolist() == foreground
    assert extra.labels.tolist() == [labels[i] for i in foreground]
    assert extra.second_labels.tolist() == [labels[i] for i in partner]
    torch.testing.assert_close(extra.second_weight, torch.full((4,), 0.1))
    for row, (a, b) in enumerate(zip(foreground, partner, strict=True)):
        wanted = exchanged(rows.features[a], rows.features[b], norm)
        torch.testing.assert_close(extra.features[row].double(), wanted, rtol=1e-4, atol=1e-5 * size)


def test_replaces_rows_in_the_classification_loss_alone_and_trains_the_backbone():
    rows = regions([0, 1])
    extra = step(ExchangedMoments(C, probability=1), rows)
    assert not extra.trains_box
    assert extra.updates_loss_state  # each stands for the row it replaces
    extra.features.sum().backward()
    assert (rows.features.grad != 0).any()


def test_on_a_share_of_the_steps():
    part, rows = ExchangedMoments(C, probability=0.3), regions([0, 1])
    torch.manual_seed(0)
    assert sum(step(part, rows) is not None for _ in range(400)) in range(95, 145)
    assert step(ExchangedMoments(C, probability=0), rows) is None


@pytest.mark.parametrize("labels", [[], [3, 3]])
def test_without_foreground(labels):
    assert step(ExchangedMoments(C, probability=1), regions(labels)) is None


@pytest.mark.parametrize("options", [{"probability": 1.5}, {"mixing": -0.1}, {"norm": "batch"}])
def test_refuses_nonsense(options):
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]|norm is one of"):
        ExchangedMoments(C, **options)
