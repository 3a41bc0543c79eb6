"""Heads between the pooled features of a region and its classifier and box regressor."""

from __future__ import annotations

from math import gcd

from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead


def conv_head(in_channels: int, size: int, out_features: int, *, layers: int = 4, channels: int = 256) -> nn.Module:
    """The head called 4conv-fc: 3x3 convolutions without bias, each with a group norm of 32 groups and ReLU, then one
    linear layer with ReLU (Wu and He, *Group Normalization*, ECCV 2018, section 4.2).

    Args:
        in_channels, size: of the pooled features.
        out_features: width of the linear layer.
        layers, channels: of the convolutions.

    Shapes:
        (N, in_channels, size, size) -> (N, out_features).
    """

    def norm(width: int) -> nn.Module:
        return nn.GroupNorm(gcd(32, width), width)

    head: nn.Module = FastRCNNConvFCHead((in_channels, size, size), [channels] * layers, [out_features], norm)
    return head
