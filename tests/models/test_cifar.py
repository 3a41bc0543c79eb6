"""ResNets for pictures of 32 x 32 pixels."""

from __future__ import annotations

import pytest
import torch

from longtail.models.cifar import CifarBlock, CifarResNet, small_resnet34


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85)])
def test_sizes_of_the_paper(depth: int, millions: float) -> None:
    network = CifarResNet(depth)
    found = sum(parameter.numel() for parameter in network.parameters()) + 65 * 10  # with ten classes on top
    assert round(found / 1e6, 2) == millions
    assert sum(isinstance(module, torch.nn.Conv2d) for module in network.modules()) == depth - 1


def test_shapes() -> None:
    for size in (32, 40):
        assert CifarResNet(8)(torch.zeros(2, 3, size, size)).shape == (2, 64)
    assert small_resnet34()(torch.zeros(2, 3, 32, 32)).shape == (2, 512)


def test_the_shortcut_takes_every_second_pixel_and_new_channels_are_empty() -> None:
    block = CifarBlock(2, 6, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    maps = torch.rand(1, 2, 4, 4)
    out = block(maps)
    assert torch.equal(out[:, 2:4], maps[:, :, ::2, ::2])
    assert not out[:, :2].any() and not out[:, 4:].any()


@pytest.mark.parametrize("depth", [2, 31, 33])
def test_refuses(depth: int) -> None:
    with pytest.raises(ValueError, match="6 n"):
        CifarResNet(depth)
