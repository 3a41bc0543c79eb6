"""Necks (seam 3): feature maps in, feature maps out. PAFPN and the balanced feature pyramid of Libra R-CNN."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock
from torchvision.ops.misc import Conv2dNormActivation

Refine = Literal["none", "conv", "non_local"]


class PAFPN(FeaturePyramidNetwork):  # type: ignore[misc]
    """A feature pyramid with a second path from fine to coarse (Liu et al., PANet, CVPR 2018).

    After the top-down path, whose outputs are N_2, N_3, ..., the path bottom-up: ``M_2 = N_2``,
    ``M_{l+1} = N_{l+1} + conv3x3 of stride 2 (M_l)``. Outputs are M_2 as it is and ``conv3x3(M_l)`` beyond. There is no
    activation, and a norm only where one is asked for. Parameters of the top-down path are named as in torchvision's
    pyramid.

    Args:
        in_channels: channels of the input maps, finest first.
        out_channels: channels of all outputs.
        extra_blocks: additional coarse levels, as in torchvision.
        norm_layer: channels -> norm behind every convolution; None = none.

    Shapes:
        {name: (B, in_channels[l], H_l, W_l)} finest first, every side half the one before, rounded up ->
        {name: (B, out_channels, H_l, W_l)}, plus the additional levels.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        *,
        extra_blocks: ExtraFPNBlock | None = None,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__(list(in_channels), out_channels, extra_blocks=None, norm_layer=norm_layer)
        steps = len(in_channels) - 1
        self.down_blocks = nn.ModuleList(_conv3x3(out_channels, 2, norm_layer) for _ in range(steps))
        self.outer_blocks = nn.ModuleList(_conv3x3(out_channels, 1, norm_layer) for _ in range(steps))
        self.more_levels = extra_blocks

    def forward(self, x: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        top_down = super().forward(OrderedDict(x))
        names, maps = list(top_down), list(top_down.values())
        path = maps[:1]
        for down, finer_output in zip(self.down_blocks, maps[1:], strict=True):
            path.append(finer_output + down(path[-1]))
        outputs = path[:1] + [outer(m) for outer, m in zip(self.outer_blocks, path[1:], strict=True)]
        if self.more_levels is not None:
            outputs, names = self.more_levels(outputs, list(x.values()), names)
        return OrderedDict(zip(names, outputs, strict=True))


def _conv3x3(channels: int, stride: int, norm_layer: Callable[[int], nn.Module] | None) -> nn.Module:
    block: nn.Module = Conv2dNormActivation(
        channels, channels, 3, stride=stride, padding=1, norm_layer=norm_layer, activation_layer=None
    )
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return block


class EmbeddedGaussian(nn.Module):
    """Non-local block, embedded Gaussian form: every position attends to every other (Libra R-CNN, equation 4).

    ``A = softmax_j(theta(f)_i . phi(f)_j)`` without a factor in front of the product, ``y_i = sum_j A_ij g(f)_j``,
    output ``f + W_o y``. theta, phi and g are 1x1 convolutions with bias and as many channels as f.

    Args:
        channels: of the map.
        out_proj: whether there is W_o, also a 1x1 convolution with bias. The paper's equation has none (then the
            output is ``f + y``), the authors' code has one. It starts from zero, so that the block starts as identity.
        fused: use PyTorch's fused attention, which does not hold A: (H W)^2 entries, 18 million for a picture of
            800x1333 pixels at stride 16. False computes A itself, to the same result.

    Shapes:
        (B, channels, H, W) -> the same.
    """

    def __init__(self, channels: int, *, out_proj: bool = True, fused: bool = True) -> None:
        super().__init__()
        self.fused = fused
        self.theta = nn.Conv2d(channels, channels, kernel_size=1)
        self.phi = nn.Conv2d(channels, channels, kernel_size=1)
        self.g = nn.Conv2d(channels, channels, kernel_size=1)
        self.out_proj = nn.Conv2d(channels, channels, kernel_size=1) if out_proj else None
        for convolution in (self.theta, self.phi, self.g):
            nn.init.normal_(convolution.weight, std=0.01)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        if self.out_proj is not None:
            nn.init.zeros_(self.out_proj.weight)
            nn.init.zeros_(self.out_proj.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        # (B, 1, H W, channels): one head; only contiguous channels reach the fused kernels
        query, key, value = (
            layer(x).flatten(2).transpose(1, 2)[:, None].contiguous() for layer in (self.theta, self.phi, self.g)
        )
        if self.fused:
            y = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        else:
            y = (query @ key.transpose(2, 3)).softmax(dim=3) @ value
        y = y[:, 0].transpose(1, 2).reshape(x.shape)
        return x + (y if self.out_proj is None else self.out_proj(y))


class BalancedFeaturePyramid(nn.Module):
    """Balanced feature pyramid of Libra R-CNN (journal version, section 3.2), after a pyramid and before the heads.

    Gather all levels at the size of a reference level (finer ones by adaptive max pooling, coarser ones by
    nearest-neighbour resizing), integrate them by their mean, refine the mean, and add it to every level (finer ones
    by nearest-neighbour resizing, coarser ones by adaptive max pooling).

    Args:
        channels: of every level.
        level: the reference, counted from the finest = 0; None = ``number of levels // 2``: stride 16 for P2..P5 and
            P2..P6. RetinaNet on P3..P7 uses 1.
        num_levels: how many levels are balanced, from the finest; None = all. The rest are made anew by subsampling
            the level before, so they must be such subsamplings (the paper's own equations: 4 of P2..P6).
        refine: ``"non_local"``, ``"conv"`` (3x3 and ReLU) or ``"none"``.
        out_proj, fused: of the non-local block; see :class:`EmbeddedGaussian`.

    Shapes:
        {name: (B, channels, H_l, W_l)}, finest first, any sizes -> the same names and shapes.

    Raises:
        ValueError: arguments out of range; in ``forward``, fewer maps than ``level`` or ``num_levels`` need.
    """

    def __init__(
        self,
        channels: int,
        *,
        level: int | None = None,
        num_levels: int | None = None,
        refine: Refine = "non_local",
        out_proj: bool = True,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if channels < 1 or (level is not None and level < 0) or (num_levels is not None and num_levels < 1):
            raise ValueError(
                f"channels and num_levels must be >= 1 and level >= 0, got {channels}, {num_levels} and {level}"
            )
        if refine not in ("none", "conv", "non_local"):
            raise ValueError(f"refine must be 'none', 'conv' or 'non_local', got {refine!r}")
        self.level = level
        self.num_levels = num_levels
        self.refine: nn.Module
        if refine == "non_local":
            self.refine = EmbeddedGaussian(channels, out_proj=out_proj, fused=fused)
        elif refine == "conv":
            convolution = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            self.refine = nn.Sequential(convolution, nn.ReLU())
        else:
            self.refine = nn.Identity()

    def forward(self, maps: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        count = len(maps) if self.num_levels is None else self.num_levels
        reference = count // 2 if self.level is None else self.level
        if count > len(maps) or reference >= count:
            raise ValueError(f"{count} levels around level {reference} cannot be balanced: there are {len(maps)} maps")
        levels = list(maps.values())[:count]
        size = _size(levels[reference])
        gathered = [_pooled(x, size) if index < reference else _resized(x, size) for index, x in enumerate(levels)]
        refined = self.refine(sum(gathered[1:], gathered[0]) / count)
        outputs = [
            x + (_resized(refined, _size(x)) if index < reference else _pooled(refined, _size(x)))
            for index, x in enumerate(levels)
        ]
        while len(outputs) < len(maps):
            outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return OrderedDict(zip(maps, outputs, strict=True))


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def _pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive max pooling to ``size``."""
    if _size(x) == size:
        return x
    height, width = _size(x)
    if height % size[0] == 0 and width % size[1] == 0:  # equal windows: the same by a kernel whose gradient is exact
        return F.max_pool2d(x, kernel_size=(height // size[0], width // size[1]))
    return F.adaptive_max_pool2d(x, size)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest neighbour, index floor(i * in / out)."""
    return x if _size(x) == size else F.interpolate(x, size=size, mode="nearest")
