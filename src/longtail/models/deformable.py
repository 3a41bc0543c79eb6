"""Deformable convolutions in the stages of a ResNet or ResNeXt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from longtail.losses.cells import full_precision
from longtail.schema.errors import UsageError


class DeformableConv2d(nn.Module):
    """A convolution whose sampling points are shifted by offsets learnt from the input (Dai et al., ICCV 2017), and
    weighted if ``modulated`` (version 2, Zhu et al., CVPR 2019).

    It starts as the convolution it is made from: the offsets start at 0 and the weights of the points at 1. (Published
    code starts them at a half, which halves the output of pretrained weights; here they are ``2 * sigmoid``.) Its
    ``weight`` and ``bias`` have the names and shapes of that convolution's.

    Args:
        plain: the convolution, with zero padding; its parameters are taken over.
        modulated: whether every sampling point has a weight of its own, in 0..2.

    Shapes:
        (B, in_channels, H, W) -> as ``plain``.
    """

    def __init__(self, plain: nn.Conv2d, *, modulated: bool = False) -> None:
        super().__init__()
        if plain.padding_mode != "zeros" or isinstance(plain.padding, str):
            raise ValueError("a deformable convolution pads with zeros, by a given number of pixels")
        self.weight = plain.weight
        self.bias = plain.bias
        self.stride = plain.stride
        self.padding = plain.padding
        self.dilation = plain.dilation
        self.modulated = modulated
        points = plain.kernel_size[0] * plain.kernel_size[1]
        self.offset = nn.Conv2d(
            plain.in_channels,
            (3 if modulated else 2) * points,
            kernel_size=plain.kernel_size,  # type: ignore[arg-type]
            stride=plain.stride,  # type: ignore[arg-type]
            padding=plain.padding,  # type: ignore[arg-type]
            dilation=plain.dilation,  # type: ignore[arg-type]
        ).to(plain.weight)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        self.points = points

    def forward(self, features: Tensor) -> Tensor:
        predicted = full_precision(self.offset(features))
        strength = 2 * torch.sigmoid(predicted[:, 2 * self.points :]) if self.modulated else None
        # the operator has no half precision everywhere, and offsets would lose theirs
        with torch.autocast(features.device.type, enabled=False):
            output: Tensor = deform_conv2d(
                full_precision(features),
                predicted[:, : 2 * self.points],
                full_precision(self.weight),
                None if self.bias is None else full_precision(self.bias),
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                mask=strength,
            )
        return output.to(features.dtype)


def make_deformable(network: nn.Module, stages: Sequence[int], *, modulated: bool = False) -> None:
    """Turns the 3x3 convolution ``conv2`` of every block of some stages into a deformable one, in place.

    Args:
        network: a torchvision ResNet or ResNeXt.
        stages: of 1 (stride 4) .. 4 (stride 32); published 2, 3, 4, called c3 to c5.
        modulated: see :class:`DeformableConv2d`.

    Raises:
        UsageError: there is no such stage.
    """
    if not set(stages) <= {1, 2, 3, 4}:
        raise UsageError(f"deformable stages are among 1, 2, 3, 4, got {list(stages)}")
    for stage in stages:
        for block in getattr(network, f"layer{stage}"):
            block.conv2 = DeformableConv2d(block.conv2, modulated=modulated)
