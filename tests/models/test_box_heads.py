from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from longtail.models import conv_head


def test_conv_head_is_convolutions_norms_and_a_linear_layer() -> None:
    torch.manual_seed(0)
    head = conv_head(6, 5, 11, layers=2, channels=8).double()
    pooled = torch.randn(3, 6, 5, 5, dtype=torch.float64)
    parameters = dict(head.named_parameters())
    convolutions = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in head.modules() if isinstance(m, nn.GroupNorm)]
    (linear,) = [m for m in head.modules() if isinstance(m, nn.Linear)]
    assert [m.bias for m in convolutions] == [None, None]
    assert [m.num_groups for m in norms] == [8, 8]
    assert len(parameters) == 2 + 4 + 2
    expected = pooled
    for convolution, norm in zip(convolutions, norms, strict=True):
        norm.weight.data.uniform_(0.5, 2)
        norm.bias.data.normal_()
        mapped = F.conv2d(expected, convolution.weight, padding=1)
        groups = mapped.reshape(3, norm.num_groups, -1)
        unit = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        expected = unit.reshape(mapped.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]
        expected = expected.clamp(min=0)
    expected = (expected.flatten(1) @ linear.weight.T + linear.bias).clamp(min=0)
    torch.testing.assert_close(head(pooled), expected)
    assert (expected > 0).any()


def test_the_published_head_has_32_groups() -> None:
    norms = [m for m in conv_head(256, 7, 1024).modules() if isinstance(m, nn.GroupNorm)]
    assert [(m.num_groups, m.num_channels) for m in norms] == [(32, 256)] * 4
