"""Layers of a dense head: towers of convolutions, and the classifier of all anchors of a map."""

from __future__ import annotations

from math import gcd
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.misc import Conv2dNormActivation

from longtail.models.classifiers import Classifier

TowerNorm = Literal["none", "group"]


class ConvClassifier(Classifier):
    """The last layer of a dense head: a 3 x 3 convolution that gives every anchor of every place its class logits.

    Args:
        in_features: channels D of the maps.
        num_logits: logits K of one anchor.
        num_anchors: anchors A per place, at least 1.
        std: standard deviation of the initial weights; biases start from 0, or from the loss's prior.

    Shapes:
        maps (B, D, H, W) -> logits (B, H * W * A, K), row by row, anchors of one place side by side.

    Parameters:
        ``weight`` (A, K, D, 3, 3), ``bias`` (A, K).
    """

    name = "linear"

    def __init__(self, in_features: int, num_logits: int, num_anchors: int, *, std: float = 0.01) -> None:
        super().__init__(in_features, num_logits)
        if num_anchors < 1 or std <= 0:
            raise ValueError(f"num_anchors must be at least 1 and std positive, got {num_anchors} and {std}")
        self.num_anchors = num_anchors
        self.std = std
        self.weight = nn.Parameter(torch.empty(num_anchors, num_logits, in_features, 3, 3))
        self.bias = nn.Parameter(torch.empty(num_anchors, num_logits))
        self.initialise()

    def initialise(self, bias_prior: float | None = None) -> None:
        nn.init.normal_(self.weight, std=self.std)
        nn.init.constant_(self.bias, bias_prior or 0.0)

    def forward(self, features: Tensor) -> Tensor:
        logits = F.conv2d(features, self.weight.flatten(0, 1), self.bias.flatten(), padding=1)
        return by_anchor(logits, self.num_logits)

    def class_parameters(self) -> dict[str, int]:
        return {"weight": 1, "bias": 1}


def by_anchor(outputs: Tensor, width: int) -> Tensor:
    """(B, A * width, H, W) -> (B, H * W * A, width), in the order of the anchors."""
    batch, _, height, side = outputs.shape
    return outputs.reshape(batch, -1, width, height, side).permute(0, 3, 4, 1, 2).reshape(batch, -1, width)


def tower(channels: int, layers: int, norm: TowerNorm) -> nn.Sequential:
    """``layers`` 3 x 3 convolutions with ReLU, weights from N(0, 0.01)."""
    norm_layer = None if norm == "none" else _group_norm
    blocks = nn.Sequential(
        *(Conv2dNormActivation(channels, channels, 3, norm_layer=norm_layer, inplace=False) for _ in range(layers))
    )
    for module in blocks.modules():
        if isinstance(module, nn.Conv2d):
            normal_layer(module)
    return blocks


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(gcd(32, channels), channels)


def normal_layer(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights from N(0, 0.01) and bias 0."""
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
