"""Backbones of picture classifiers: pictures in, one feature vector each out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longtail.models.backbones import PyramidBackbone
from longtail.models.preprocess import IMAGENET_MEAN, IMAGENET_STD

PROBE = 64  # side in pixels of the empty picture that shows how wide the last map is


@dataclass(frozen=True)
class PictureBackbone:
    """A ``network`` (B, 3, H, W) -> (B, ``out_features``) and its input normalisation per channel (RGB)."""

    network: nn.Module
    out_features: int
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD


class PooledMap(nn.Module):
    """The last map of a network, averaged over its places.

    Args:
        body: (B, 3, H, W) -> {name: map} or [map, ...].
        nhwc: whether the maps are (B, H, W, channels).
    """

    def __init__(self, body: nn.Module, *, nhwc: bool = False) -> None:
        super().__init__()
        self.body = body
        self.nhwc = nhwc

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, channels)."""
        maps = self.body(images)
        last: Tensor = list(maps.values() if isinstance(maps, Mapping) else maps)[-1]
        return last.mean(dim=(1, 2)) if self.nhwc else last.mean(dim=(2, 3))


def pooled(pyramid: PyramidBackbone) -> PictureBackbone:
    """The body of a detector's backbone, without its pyramid. Batch norms that the backbone holds fixed are trained
    here, unless they are :class:`~torchvision.ops.FrozenBatchNorm2d`."""
    network = PooledMap(pyramid.body, nhwc=pyramid.body_is_nhwc)
    with torch.no_grad():
        width = network.eval()(torch.zeros(1, 3, PROBE, PROBE)).shape[1]
    return PictureBackbone(network.train(), int(width), pyramid.mean, pyramid.std)
