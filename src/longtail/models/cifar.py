"""Networks for pictures of 32 x 32 pixels: the ResNets of the CIFAR experiments (He et al., CVPR 2016, section 4.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet34

WIDTHS = (16, 32, 64)


class CifarBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut has no parameters: where the map shrinks it takes every second pixel and fills
    the new channels with zeros, half of them on each side ("option A")."""

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.added = channels - in_channels

    def forward(self, maps: Tensor) -> Tensor:
        """(B, K, H, W) -> (B, channels, H / stride, W / stride)."""
        shortcut = maps[:, :, :: self.stride, :: self.stride] if self.stride > 1 else maps
        if self.added:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        out = F.relu(self.bn1(self.conv1(maps)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class CifarResNet(nn.Module):
    """A ResNet of 6 n + 2 layers in three stages of widths 16, 32 and 64.

    Args:
        depth: 20, 32, 44, 56, ...: 6 n + 2.

    Shapes:
        images (B, 3, H, W), usually 32 x 32 -> features (B, 64), averaged over the last map.

    Raises:
        ValueError: another depth.
    """

    def __init__(self, depth: int = 32) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2 with n >= 1, got {depth}")
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        blocks: list[CifarBlock] = []
        channels = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for block in range((depth - 2) // 6):
                blocks.append(CifarBlock(channels, width, stride=2 if stage and block == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.out_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures to features."""
        maps = self.blocks(F.relu(self.bn1(self.conv1(images))))
        pooled: Tensor = maps.mean(dim=(2, 3))
        return pooled


def small_resnet34() -> nn.Module:
    """torchvision's ResNet-34 for 32 x 32 pixels: its first convolution is 3x3 with stride 1, no pooling behind it.
    (B, 3, H, W) -> (B, 512)."""
    network: nn.Module = resnet34(weights=None)
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network
