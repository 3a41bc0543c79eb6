"""Feature transfer, against loops."""

import pytest
import torch

from longtail.replay import RegionRows, TransferredFeatures

C, D = 4, 6
WEAK = torch.tensor([True, False, True, False])


def regions(labels, seed=0, spread=None):
    """Features around one centre per class, spread along ``spread`` if given."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(C + 1, D, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(len(labels), D, generator=generator)
    if spread is not None:
        noise = noise[:, :1] * spread + 0.05 * noise
    labels = torch.tensor(labels, dtype=torch.long)
    boxes, nowhere = torch.rand(len(labels), 4), torch.zeros(len(labels), dtype=torch.long)
    return RegionRows((centres[labels] + noise).requires_grad_(), labels, boxes, boxes, nowhere, nowhere)


def step(part, rows, update_state=True):
    return part.step(rows, [], lambda boxes: None, update_state)


def test_with_all_directions_the_whole_deviation_is_transferred():
    part = TransferredFeatures(C, D, WEAK, count=5, momentum=1.0)
    rows = regions([0, 0, 1, 1, 1, 3, 3, 4])
    torch.manual_seed(0)
    extra = step(part, rows)
    assert extra.weight.tolist() == [1] * 5
    assert (extra.labels == 0).all()  # of the weak classes, only 0 has been seen
    features = rows.features.detach().double()
    centre = {c: features[rows.labels == c].mean(0) for c in (0, 1, 3)}
    wanted = {i: centre[0] + features[i] - centre[int(rows.labels[i])] for i in (2, 3, 4, 5, 6)}
    found = set()
    for row in extra.features.double():
        found |= {i for i, value in wanted.items() if torch.dist(row, value) < 1e-4}
    assert found == {2, 3, 4, 5, 6}  # every strong row once


def test_state_agrees_with_loops():
    """Centres and covariance after three steps, number by number."""
    part = TransferredFeatures(C, D, WEAK, momentum=0.2, covariance_momentum=0.25)
    centre, covariance = {}, None
    for seed, labels in enumerate([[1, 1, 3, 0], [4, 4, 0], [3, 3, 2, 1]]):
        rows = regions(labels, seed)
        step(part, rows)
        features = rows.features.detach().double()
        for c in set(labels) - {4}:
            mean = features[rows.labels == c].mean(0)
            centre[c] = mean if c not in centre else 0.8 * centre[c] + 0.2 * mean
        scatter, count = torch.zeros(D, D, dtype=torch.float64), 0
        for x, c in zip(features, labels, strict=True):
            if c in (1, 3):
                scatter += torch.outer(x - centre[c], x - centre[c])
                count += 1
        if count:
            scatter /= count
            covariance = scatter if covariance is None else 0.75 * covariance + 0.25 * scatter
    for c, mean in centre.items():
        torch.testing.assert_close(part.centres.mean[c].double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(part.covariance.double(), covariance, rtol=1e-4, atol=1e-5)
    assert part.steps == 2


def test_the_basis_finds_the_shared_direction():
    direction = torch.nn.functional.normalize(torch.tensor([1.0, -2, 0, 3, 0.5, 1]), dim=0)
    part = TransferredFeatures(C, D, WEAK, count=20, components=1)
    for seed in range(40):
        extra = step(part, regions([0, 1, 1, 1, 3, 3, 3, 2], seed, spread=3 * direction))
    assert abs(float(part.basis[:, 0] @ direction)) > 0.999
    apart = extra.features - part.centres.mean[extra.labels]
    torch.testing.assert_close(apart, apart @ part.basis @ part.basis.T, rtol=1e-3, atol=1e-4)
    assert set(extra.labels.tolist()) == {0, 2}


def test_the_basis_is_orthonormal():
    part = TransferredFeatures(C, D, WEAK, components=3)
    for labels in ([4, 0], [1], [1, 3, 3, 0], [1, 1]):
        step(part, regions(labels))
        torch.testing.assert_close(part.basis.T @ part.basis, torch.eye(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", [[0, 0, 4], [1, 3, 4], [4]])
def test_weight_zero_without_a_strong_row_or_a_weak_class(labels):
    extra = step(TransferredFeatures(C, D, WEAK), regions(labels))
    assert not extra.weight.any()
    assert torch.isfinite(extra.features).all()


def test_rows_beyond_the_strong_ones_have_weight_zero():
    extra = step(TransferredFeatures(C, D, WEAK, count=4), regions([0, 1, 3, 4, 4]))
    assert sorted(extra.weight.tolist()) == [0, 0, 1, 1]
    assert not extra.trains_box
    assert not extra.updates_loss_state


@pytest.mark.parametrize("options", [{"count": -1}, {"components": 0}, {"covariance_momentum": 0.0}])
def test_refuses_nonsense(options):
    with pytest.raises(ValueError, match="count is >= 0, components >= 1"):
        TransferredFeatures(C, D, WEAK, **options)
