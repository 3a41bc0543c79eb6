"""Encoder and decoder of Deformable DETR from transformers, around backbones of this package."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longtail.models.backbones import PyramidBackbone
from longtail.models.classifiers import LinearClassifier
from longtail.models.query_matching import MISSING
from longtail.schema.errors import UsageError

Start = Literal["xavier", "normal"]


class LastMaps(nn.Module):
    """The last ``count`` maps of a backbone's body as they are, {name: map} named "0", "1", ..., finest first."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, maps: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        return OrderedDict((str(index), value) for index, value in enumerate(list(maps.values())[-self.count :]))


def without_pyramid(backbone: PyramidBackbone, *, finest_stride: int) -> tuple[PyramidBackbone, list[int]]:
    """The backbone with its body's own maps, from ``finest_stride`` on, in the place of its pyramid's, and their
    numbers of channels. The given one is changed.

    Raises:
        UsageError: no map is that coarse.
    """
    pyramid: Any = backbone.fpn
    channels = [block[0].in_channels for block in pyramid.inner_blocks]
    strides = backbone.strides[: len(channels)]
    kept = [index for index, stride in enumerate(strides) if stride >= finest_stride]
    if not kept:
        raise UsageError(f"finest_stride must be at most {strides[-1]}, got {finest_stride}; the maps are {strides}")
    backbone.strides = tuple(strides[index] for index in kept)
    backbone.fpn = LastMaps(len(kept))
    backbone.balance = None
    return backbone, [channels[index] for index in kept]


class MaskedMaps:
    """Maps with masks of the places inside the pictures, as transformers wants them. Not a module: the transformer uses
    the backbone, but it is not its own."""

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone

    def __call__(self, batch: Tensor, inside: Tensor) -> list[tuple[Tensor, Tensor]]:
        masks = inside[None].float()
        maps = self.backbone(batch).values()
        return [(own, F.interpolate(masks, size=own.shape[-2:]).to(torch.bool)[0]) for own in maps]


def query_transformer(
    map_channels: Sequence[int],
    *,
    levels: int,
    channels: int,
    hidden: int,
    heads: int,
    points: int,
    encoder_layers: int,
    decoder_layers: int,
    dropout: float,
    start: Start = "xavier",
    num_queries: int,
    box_refine: bool,
    two_stage: bool,
) -> Any:
    """transformers' ``DeformableDetrModel`` without its backbone, with projections for maps of ``map_channels``.

    Other arguments: see :func:`longtail.models.deformable_detr.deformable_detr`.

    Raises:
        UsageError: transformers is not installed, fewer levels than maps, or refined boxes demanded of one stage only.
    """
    try:
        from transformers import DeformableDetrConfig, DeformableDetrModel
        from transformers.models.resnet import configuration_resnet
    except ImportError as error:
        raise UsageError(MISSING) from error
    if levels < len(map_channels):
        raise UsageError(f"levels must be at least {len(map_channels)}, the backbone's maps, got {levels}")
    if two_stage and not box_refine:
        raise UsageError("two_stage works with box_refine only; set both, or two_stage=false")
    resnet: Any = configuration_resnet
    stand_in = resnet.ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage2", "stage3", "stage4"]
    )
    config = DeformableDetrConfig(
        backbone_config=stand_in,
        d_model=channels,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_ffn_dim=hidden,
        decoder_ffn_dim=hidden,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_n_points=points,
        decoder_n_points=points,
        num_feature_levels=max(levels, 2),
        num_queries=num_queries,
        two_stage=two_stage,
        two_stage_num_proposals=num_queries,
        with_box_refine=box_refine,
        dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=dropout,
    )
    transformer: Any = DeformableDetrModel(config)
    del transformer.backbone
    # of the maps themselves, which the released code does not drop; not of the encoder's layers
    transformer.encoder.dropout = 0.0
    projections = []
    before = list(map_channels)
    for level in range(levels):
        kernel = 1 if level < len(before) else 3
        source = before[level] if level < len(before) else (before[-1] if level == len(before) else channels)
        convolution = nn.Conv2d(source, channels, kernel, stride=1 if kernel == 1 else 2, padding=kernel // 2)
        nn.init.xavier_uniform_(convolution.weight)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
        projections.append(nn.Sequential(convolution, nn.GroupNorm(32, channels)))
    transformer.input_proj = nn.ModuleList(projections)
    if start == "xavier":
        start_as_published(transformer)
    return transformer


def start_as_published(transformer: Any) -> None:
    """Draws the matrices anew that transformers draws from N(0, 0.02), as the released code of Deformable DETR does.

    Xavier-uniform are the feed-forward layers, the decoder's self-attention, and with two stages ``enc_output`` and
    ``pos_trans``. Query, key and value of the self-attention are one matrix (3 d, d) in the released code (PyTorch's
    ``MultiheadAttention``), which makes their bound ``sqrt(6 / (4 d))`` instead of ``sqrt(6 / (2 d))``. Learned queries
    are N(0, 1). All biases stay zero, and the deformable attention, ``level_embed``, ``reference_points`` and
    ``input_proj`` as they are: they start as published already.
    """
    for layer in [*transformer.encoder.layers, *transformer.decoder.layers]:
        nn.init.xavier_uniform_(layer.mlp.fc1.weight)
        nn.init.xavier_uniform_(layer.mlp.fc2.weight)
    for layer in transformer.decoder.layers:
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))
        nn.init.xavier_uniform_(attention.o_proj.weight)
    if transformer.config.two_stage:
        nn.init.xavier_uniform_(transformer.enc_output.weight)
        nn.init.xavier_uniform_(transformer.pos_trans.weight)
    else:
        nn.init.normal_(transformer.query_position_embeddings.weight)


def inverse_sigmoid(share: Tensor) -> Tensor:
    """Logit of values in 0..1, which are moved away from 0 and 1 by 1e-5 at least."""
    share = share.clamp(0, 1)
    return (share.clamp(min=1e-5) / (1 - share).clamp(min=1e-5)).log()


def transformers_state(detector: nn.Module) -> dict[str, Tensor]:
    """Weights under the names of transformers' ``DeformableDetrForObjectDetection``, for a detector with two stages on
    a ResNet of torchvision; the backbone's names are those of the same ResNet of timm (``TimmBackboneConfig``).

    Args:
        detector: a :class:`~longtail.models.deformable_detr.DeformableDETR`.
    """
    state = {}
    for name, value in detector.state_dict().items():
        top, _, rest = name.partition(".")
        if top == "transformer":
            state[f"model.{rest}"] = value
        elif top == "backbone":
            state[f"model.backbone.model.{rest.removeprefix('body.')}"] = value
        elif top in ("class_embed", "bbox_embed"):
            state[name] = value
            state[f"model.decoder.{name}"] = value.clone()
    return state


class ProposalClassifier(LinearClassifier):
    """The linear layer of a query detector's proposals: channel 0 is the objectness, the others have no meaning. It is
    as wide as the classifiers only so that its weights fit detectors in which it is one of them."""

    def class_parameters(self) -> dict[str, int]:
        """None: no channel belongs to a class."""
        return {}


class BoxHead(nn.Module):
    """Three linear layers from a query (..., d) to an offset of its box (..., 4), which starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = [(channels, channels), (channels, channels), (channels, 4)]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in sizes)
        last: Any = self.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def start_small(self) -> None:
        """Width and height start at an eighth of the picture instead of a half."""
        last: Any = self.layers[-1]
        nn.init.constant_(last.bias[2:], -2.0)

    def forward(self, query: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            query = F.relu(layer(query))
        offset: Tensor = self.layers[-1](query)
        return offset
