"""Moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from longtail.schema import DataError
from longtail.training.weight_average import WeightAverage


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    net[2].requires_grad_(False)
    return net


def test_it_follows_the_definition() -> None:
    net = model()
    average = WeightAverage(net, 0.6)
    assert set(average.values) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    expected = net[0].weight.detach().double().clone()
    for step in range(1, 30):
        with torch.no_grad():
            net[0].weight.add_(torch.randn_like(net[0].weight))
        average.update(net, step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net[0].weight.detach().double()
    torch.testing.assert_close(average.values["0.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_weights_come_back_after_the_block_even_after_an_error() -> None:
    net = model()
    average = WeightAverage(net, 0.9)
    before = net[0].weight.detach().clone()
    average.values["0.weight"].zero_()
    seen = []

    def work() -> None:
        with average.applied(net):
            seen.append(bool(net[0].weight.any()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert seen == [False]
    assert torch.equal(net[0].weight, before)
    average.copy_to(net)
    assert not net[0].weight.any()


def test_saved_averages_of_another_model_are_refused() -> None:
    average = WeightAverage(model(), 0.9)
    saved = {name: value + 1 for name, value in average.values.items()}
    average.load(saved)
    assert all(torch.equal(average.values[name], saved[name]) for name in saved)
    with pytest.raises(DataError, match="another model"):
        average.load({**saved, "extra": torch.zeros(1)})
    with pytest.raises(DataError, match="another model"):
        average.load({**saved, "0.bias": torch.zeros(7)})
    with pytest.raises(ValueError, match="between 0 and 1"):
        WeightAverage(model(), 1.0)
