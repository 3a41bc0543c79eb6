"""Deformable convolutions against a loop over the sampling points, and as plain ones at their start."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet

from longtail.models import DeformableConv2d, resnet_fpn
from longtail.schema import UsageError


def sampled(image: list[list[float]], y: float, x: float) -> float:
    """Bilinear interpolation with zeros outside."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < len(image) and 0 <= column < len(image[0]):
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * image[row][column]
    return total


def by_loop(features: Tensor, layer: DeformableConv2d) -> Tensor:
    """One picture, one sampling point at a time."""
    predicted = layer.offset(features)
    height, width = predicted.shape[-2:]
    output = torch.zeros(layer.weight.shape[0], height, width, dtype=features.dtype)
    group_in = layer.weight.shape[1]
    group_out = layer.weight.shape[0] // (features.shape[1] // group_in)
    for out in range(layer.weight.shape[0]):
        for row in range(height):
            for column in range(width):
                total = 0.0
                for point in range(9):
                    dy, dx = predicted[0, 2 * point, row, column], predicted[0, 2 * point + 1, row, column]
                    y = row * layer.stride[0] - layer.padding[0] + (point // 3) * layer.dilation[0] + float(dy)
                    x = column * layer.stride[1] - layer.padding[1] + (point % 3) * layer.dilation[1] + float(dx)
                    strength = (
                        2 / (1 + math.exp(-float(predicted[0, 18 + point, row, column]))) if layer.modulated else 1
                    )
                    for channel in range(group_in):
                        image = features[0, out // group_out * group_in + channel].tolist()
                        weight = float(layer.weight[out, channel, point // 3, point % 3])
                        total += strength * weight * sampled(image, y, x)
                output[out, row, column] = total
    return output


@pytest.mark.parametrize("modulated", [False, True])
def test_against_a_loop(modulated: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 4, 3, stride=2, padding=2, dilation=2, groups=2, bias=False).double()
    layer = DeformableConv2d(plain, modulated=modulated)
    nn.init.normal_(layer.offset.weight, std=0.3)
    nn.init.normal_(layer.offset.bias, std=0.5)  # type: ignore[arg-type]
    features = torch.randn(1, 4, 7, 6, dtype=torch.float64)
    with torch.no_grad():
        assert layer.offset(features).abs().max() > 1
        torch.testing.assert_close(layer(features)[0], by_loop(features, layer))


@pytest.mark.parametrize("modulated", [False, True])
def test_it_starts_as_the_convolution_it_is_made_from(modulated: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2).double()
    features = torch.randn(2, 6, 9, 11, dtype=torch.float64)
    expected = plain(features)
    layer = DeformableConv2d(plain, modulated=modulated)
    torch.testing.assert_close(layer(features), expected)
    layer(features).sum().backward()
    assert layer.offset.weight.grad is not None
    assert layer.offset.weight.grad.any(), "the offsets learn from the first step"


@pytest.mark.parametrize("modulated", [False, True])
def test_a_network_with_pretrained_weights_starts_as_the_plain_one(modulated: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = resnet.resnet18().state_dict()
    for name in state:  # as after training: statistics that normalise
        if name.endswith("running_mean"):
            state[name] = 0.1 * torch.randn_like(state[name])
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "weights.safetensors")
    networks = []
    for stages in ((), (2, 3, 4)):
        torch.manual_seed(1)
        network = resnet_fpn(
            "resnet18",
            weights=tmp_path / "weights.safetensors",
            fpn_channels=8,
            trainable_layers=2,
            deformable_stages=stages,
            modulated=modulated,
        )
        networks.append(network.eval())
    plain, deformable = networks
    deformable.fpn.load_state_dict(plain.fpn.state_dict())
    images = torch.randn(1, 3, 64, 96)
    maps = deformable(images)
    for name, value in plain(images).items():
        torch.testing.assert_close(maps[name], value, rtol=1e-4, atol=1e-5)
    found = {name for name, module in deformable.named_modules() if isinstance(module, DeformableConv2d)}
    assert found == {f"body.layer{stage}.{block}.conv2" for stage in (2, 3, 4) for block in (0, 1)}
    trained = {name for name, p in deformable.named_parameters() if p.requires_grad and ".offset." in name}
    assert trained == {
        f"body.layer{stage}.{block}.conv2.offset.{kind}"
        for stage in (3, 4) for block in (0, 1) for kind in ("weight", "bias")
    }  # fmt: skip


def test_refuses_other_stages_and_other_padding() -> None:
    with pytest.raises(UsageError, match="stages"):
        resnet_fpn("resnet18", weights=None, deformable_stages=(5,))
    with pytest.raises(ValueError, match="zeros"):
        DeformableConv2d(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))


@pytest.mark.parametrize("modulated", [False, True])
def test_mixed_precision_and_channels_last(modulated: bool) -> None:
    network = resnet_fpn(
        "resnet18", weights=None, norm="batch", fpn_channels=8, trainable_layers=5, deformable_stages=(2, 3, 4),
        modulated=modulated,
    ).train()  # fmt: skip
    images = torch.rand(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = network(images)
        torch.stack([value.float().sum() for value in maps.values()]).sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())
    offsets = [p.grad for name, p in network.named_parameters() if ".offset." in name]
    assert offsets
    assert all(gradient is not None for gradient in offsets)
