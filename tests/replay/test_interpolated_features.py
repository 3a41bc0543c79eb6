"""SMOTE on features, against loops over stored features."""

import math

import pytest
import torch

from longtail.replay import InterpolatedFeatures, RegionRows

C = 4
TARGETED = torch.tensor([True, False, True, True])


def regions(labels, seed=0, width=3):
    generator = torch.Generator().manual_seed(seed)
    count = len(labels)
    boxes = torch.rand(count, 4, generator=generator)
    nowhere = torch.zeros(count, dtype=torch.long)
    features = torch.randn(count, width, generator=generator).requires_grad_()
    return RegionRows(features, torch.tensor(labels, dtype=torch.long), boxes, boxes, nowhere, nowhere)


def step(part, rows, update_state=True):
    return part.step(rows, [], lambda boxes: None, update_state)


def place_on_segment(x, y, point):
    """u with point = x + u (y - x), or None."""
    u = float((point - x) @ (y - x) / ((y - x) @ (y - x)))
    return u if -1e-6 <= u <= 1 + 1e-6 and torch.dist(point, x + u * (y - x)) < 1e-5 else None


def nearest(own, x, k):
    """Indices of the k features nearest to that with index x, by a loop over distances."""
    distances = sorted((math.dist(own[x].tolist(), own[y].tolist()), y) for y in range(len(own)) if y != x)
    return [y for _, y in distances[:k]]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_every_row_lies_between_a_feature_and_one_of_its_nearest(k):
    part = InterpolatedFeatures(C, TARGETED, count=200, neighbours=k)
    first = regions([0] * 6 + [2] * 3 + [1] * 4 + [3, 4, 4])
    assert step(part, first) is None  # nothing is stored yet
    torch.manual_seed(1)
    extra = step(part, regions([4, 4]))
    assert extra.labels.unique().tolist() == [0, 2]  # class 3 has a single feature, class 1 is not targeted
    assert (extra.labels == 0).sum() in range(70, 130)  # drawn evenly
    assert torch.equal(extra.weight, torch.ones(200))
    used = set()
    for label, point in zip(extra.labels.tolist(), extra.features, strict=True):
        own = first.features.detach()[first.labels == label]
        pairs = [(x, y) for x in range(len(own)) for y in nearest(own, x, k)]
        found = [(x, y) for x, y in pairs if place_on_segment(own[x], own[y], point) is not None]
        assert found, "no segment between neighbours holds the row"
        used |= {(label, *pair) for pair in found}
    assert used == {
        (label, x, y)
        for label in (0, 2)
        for x in range(int((first.labels == label).sum()))
        for y in nearest(first.features.detach()[first.labels == label], x, k)
    }


def test_rows_are_spread_evenly_over_the_segment():
    part = InterpolatedFeatures(1, torch.tensor([True]), count=2000)
    rows = regions([0, 0], width=1)
    step(part, rows)
    torch.manual_seed(0)
    extra = step(part, rows)
    low, high = sorted(rows.features.detach()[:, 0].tolist())
    share = ((extra.features[:, 0] - low) / (high - low)).sort().values
    assert (share - torch.linspace(0, 1, 2000)).abs().max() < 0.05


def test_weight_zero_as_long_as_no_class_has_two_features():
    part = InterpolatedFeatures(C, TARGETED, count=4)
    step(part, regions([0, 2, 4]))
    extra = step(part, regions([4]))
    assert extra.weight.tolist() == [0, 0, 0, 0]
    assert torch.isfinite(extra.features).all()


def test_trains_the_classifier_alone():
    part = InterpolatedFeatures(C, TARGETED)
    step(part, regions([0, 0, 2]))
    extra = step(part, regions([4]))
    assert extra.labels.shape == (32,)
    assert extra.joins_normaliser
    assert not extra.trains_box
    assert not extra.updates_loss_state


@pytest.mark.parametrize(("count", "targeted"), [(0, TARGETED), (32, TARGETED & False)])
def test_switched_off(count, targeted):
    part = InterpolatedFeatures(C, targeted, count=count)
    assert step(part, regions([0, 0])) is None
    assert step(part, regions([0, 0])) is None


@pytest.mark.parametrize("options", [{"count": -1}, {"neighbours": 0}, {"capacity": 1}])
def test_refuses_nonsense(options):
    with pytest.raises(ValueError, match=r"count is >= 0, neighbours >= 1 and capacity >= 2"):
        InterpolatedFeatures(C, TARGETED, **options)
