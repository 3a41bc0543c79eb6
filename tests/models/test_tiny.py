from __future__ import annotations

import pytest
import torch

from longtail.models.tiny import tiny32


def test_strides_channels_and_size() -> None:
    backbone = tiny32()
    maps = backbone(torch.rand(2, 3, 96, 64))
    assert list(maps) == ["0", "1", "2"]
    assert backbone.strides == (4, 8, 16)
    for value, stride in zip(maps.values(), backbone.strides, strict=True):
        assert value.shape == (2, 64, 96 // stride, 64 // stride)
    assert backbone.out_channels == 64
    assert 350_000 < sum(p.numel() for p in backbone.parameters()) < 500_000


def test_every_parameter_trains_in_one_step() -> None:
    torch.manual_seed(0)
    backbone = tiny32(width=8, fpn_channels=8)
    optimiser = torch.optim.SGD(backbone.parameters(), lr=0.01)
    x = torch.rand(2, 3, 32, 32)
    losses = []
    for _ in range(5):
        loss = sum((value - 1).pow(2).mean() for value in backbone(x).values())
        assert isinstance(loss, torch.Tensor)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None for p in backbone.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_sizes_that_no_stride_divides() -> None:
    maps = tiny32(width=8, fpn_channels=8, extra_level="pool").eval()(torch.rand(1, 3, 50, 37))
    assert [tuple(value.shape[2:]) for value in maps.values()] == [(13, 10), (7, 5), (4, 3), (2, 2)]


def test_refuses_no_channels() -> None:
    with pytest.raises(ValueError, match="width"):
        tiny32(width=0)
