"""Mask predictors: from the mask head's features to one mask logit map per class."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class NormalisedConv2d(nn.Module):
    """A 1x1 convolution on unit vectors: ``T * <x / ||x||, w_c / ||w_c||> + b_c`` at every pixel.

    Norms run over channels, both denominators are ``max(norm, 1e-12)``; the bias is kept and not normalised. Parameters
    are shaped as those of ``nn.Conv2d(in_channels, out_channels, 1)``.

    Args:
        in_channels, out_channels: as for a convolution.
        temperature: T, positive, fixed.

    Shapes:
        (N, in_channels, h, w) -> (N, out_channels, h, w).
    """

    def __init__(self, in_channels: int, out_channels: int, *, temperature: float = 20.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        plain = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.temperature = temperature
        self.weight = plain.weight
        self.bias = nn.Parameter(plain.weight.new_zeros(out_channels))

    def forward(self, features: Tensor) -> Tensor:
        unit = F.normalize(features, dim=1, eps=1e-12) * self.temperature
        return F.conv2d(unit, F.normalize(self.weight, dim=1, eps=1e-12), self.bias)


class _MaskPredictor(nn.Module):
    """Transposed convolution that doubles the size, ReLU, then a 1x1 layer; names as in torchvision's Mask R-CNN."""

    conv5_mask: nn.ConvTranspose2d
    mask_fcn_logits: nn.Conv2d | NormalisedConv2d

    def __init__(self, in_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(in_channels, hidden_channels, kernel_size=2, stride=2)
        self.relu = nn.ReLU(inplace=True)

    def initialise(self) -> None:
        """Weights Kaiming-normal (fan out, ReLU), biases 0."""
        for layer in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Mask logits (N, num_outputs, 2h, 2w) of features (N, in_channels, h, w), N >= 0."""
        logits: Tensor = self.mask_fcn_logits(self.relu(self.conv5_mask(features)))
        return logits


class OrdinaryMaskPredictor(_MaskPredictor):
    """The mask predictor of Mask R-CNN.

    Args:
        in_channels: channels of the mask head's output.
        hidden_channels: channels after the transposed convolution.
        num_outputs: maps: C for class-specific masks (map c belongs to class c, no background), 1 for class-agnostic.
    """

    def __init__(self, in_channels: int, hidden_channels: int, num_outputs: int) -> None:
        super().__init__(in_channels, hidden_channels)
        self.mask_fcn_logits = nn.Conv2d(hidden_channels, num_outputs, kernel_size=1)
        self.initialise()


class NormalisedMaskPredictor(_MaskPredictor):
    """The mask predictor with a normalised last layer ("normalised linear activation") of LOCE, after Seesaw.

    LOCE's paper says "as in Seesaw loss" only; temperature 20, the bias and ``max(norm, 1e-12)`` are those of its
    released code. Arguments as for :class:`OrdinaryMaskPredictor`.
    """

    def __init__(self, in_channels: int, hidden_channels: int, num_outputs: int, *, temperature: float = 20.0) -> None:
        super().__init__(in_channels, hidden_channels)
        self.mask_fcn_logits = NormalisedConv2d(hidden_channels, num_outputs, temperature=temperature)
        self.initialise()
