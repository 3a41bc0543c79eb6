"""A small residual backbone that trains from scratch in minutes on a CPU; it needs no weights from elsewhere."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from longtail.models.backbones import ExtraLevel, FpnKind, FpnNorm, PyramidBackbone, feature_pyramid


def tiny32(
    *,
    width: int = 32,
    fpn_channels: int = 64,
    fpn_norm: FpnNorm = "none",
    fpn_kind: FpnKind = "fpn",
    extra_level: ExtraLevel = None,
) -> PyramidBackbone:
    """A residual network of ten layers with a feature pyramid on strides 4, 8 and 16.

    Plain batch norm with running statistics: on small sets it beat group norm at equal cost. About 0.4 M
    parameters at the defaults.

    Args:
        width: channels at stride 4; doubled at 8 and again at 16.
        fpn_channels: channels of all output maps.
        fpn_norm, fpn_kind, extra_level: see :func:`longtail.models.backbones.resnet_fpn`.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    channels = (width, 2 * width, 4 * width)
    fpn, strides = feature_pyramid(channels, (4, 8, 16), fpn_channels, extra_level, fpn_norm, fpn_kind)
    return PyramidBackbone(
        TinyResNet(channels),
        fpn,
        out_channels=fpn_channels,
        strides=strides,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


class TinyResNet(nn.Module):
    """Stem (3x3 convolution of stride 2, 3x3 max pooling of stride 2), then one residual block per stage.

    Args:
        channels: output channels of the stages at strides 4, 8, 16, ...

    Shapes:
        images (B, 3, H, W) -> {"0": (B, channels[0], H/4, W/4), "1": (B, channels[1], H/8, W/8), ...}, sizes rounded
        up.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels[0], kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        inputs = (channels[0], *channels[:-1])
        self.stages = nn.ModuleList(
            ResidualBlock(before, after, stride=1 if stage == 0 else 2)
            for stage, (before, after) in enumerate(zip(inputs, channels, strict=True))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for index, stage in enumerate(self.stages):
            x = stage(x)
            maps[str(index)] = x
        return maps


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))
