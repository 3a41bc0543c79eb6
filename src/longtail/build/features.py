"""From the schema's backbone and neck to a network that gives feature maps (seam 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from longtail.models.backbones import ExtraLevel, PyramidBackbone, resnet_fpn, timm_fpn
from longtail.models.necks import BalancedFeaturePyramid
from longtail.models.tiny import tiny32
from longtail.schema import UsageError, features


def backbone(
    spec: features.ResNet | features.Timm | features.Tiny32,
    neck: features.FPN | features.PAFPN,
    *,
    pretrained: bool,
    trust: bool = False,
    finest_stage: int = 1,
    extra_level: ExtraLevel | Literal["default"] = "default",
) -> PyramidBackbone:
    """The backbone with its neck.

    Args:
        spec, neck: of the resolved recipe.
        pretrained, trust: as for :func:`~longtail.build.model.build_model`.
        finest_stage: first stage of a ResNet that enters the pyramid.
        extra_level: levels beyond the backbone's; the default is that of R-CNN, one by subsampling for a ResNet.

    Raises:
        UsageError: a neck that needs more levels than the backbone gives, or a network that cannot be had.
    """
    pyramid = pyramid_backbone(
        spec, neck, pretrained=pretrained, trust=trust, finest_stage=finest_stage, extra_level=extra_level
    )
    if neck.balance is not None:
        pyramid.balance = balance(neck.balance, channels=neck.channels, strides=pyramid.strides)
    return pyramid


def balance(spec: features.Balance, *, channels: int, strides: Sequence[int]) -> BalancedFeaturePyramid:
    """The balanced feature pyramid behind a pyramid whose levels have these strides."""
    levels = len(strides)
    used = levels if spec.num_levels is None else spec.num_levels
    if used > levels or (spec.level is not None and spec.level >= used):
        raise UsageError(
            f"model.neck.balance wants {used} levels and integrates at level {spec.level}, but the backbone gives "
            f"{levels}; num_levels is at most {levels}, and level below num_levels (none = that of stride 16)"
        )
    balanced = list(strides[:used])
    stride_16 = balanced.index(16) if 16 in balanced else None
    return BalancedFeaturePyramid(
        channels,
        level=stride_16 if spec.level is None else spec.level,
        num_levels=spec.num_levels,
        refine=spec.refine,
        out_proj=spec.out_proj,
        fused=spec.fused,
    )


def pyramid_backbone(
    spec: features.ResNet | features.Timm | features.Tiny32,
    neck: features.FPN | features.PAFPN,
    *,
    pretrained: bool,
    trust: bool,
    finest_stage: int = 1,
    extra_level: ExtraLevel | Literal["default"] = "default",
) -> PyramidBackbone:
    """The backbone with its feature pyramid."""
    additional = None if extra_level == "default" else extra_level
    match spec:
        case features.ResNet():
            if pretrained and spec.weights is None and spec.norm == "frozen_batch":
                raise UsageError(
                    "a ResNet without weights does not train with frozen batch norms, which then normalise nothing; "
                    "set model.backbone.norm=batch (or group) and model.backbone.trainable_layers=5, or give weights"
                )
            return resnet_fpn(
                spec.name,
                weights=weights_argument(spec.weights) if pretrained else None,
                trust=trust,
                trainable_layers=spec.trainable_layers,
                norm=spec.norm,
                returned_layers=tuple(range(finest_stage, 5)),
                extra_level="pool" if extra_level == "default" else extra_level,
                fpn_channels=neck.channels,
                fpn_norm=neck.norm,
                fpn_kind=neck.type,
                deformable_stages=() if spec.deformable is None else spec.deformable.stages,
                modulated=spec.deformable is not None and spec.deformable.type == "dcn_v2",
            )
        case features.Timm():
            return timm_fpn(
                spec.name,
                weights=weights_argument(spec.weights) if pretrained else None,
                trust=trust,
                out_indices=spec.out_indices,
                extra_level=additional,
                fpn_channels=neck.channels,
                fpn_norm=neck.norm,
                fpn_kind=neck.type,
                freeze_norm=spec.freeze_norm,
            )
        case features.Tiny32():
            return tiny32(fpn_channels=neck.channels, fpn_norm=neck.norm, fpn_kind=neck.type, extra_level=additional)


def weights_argument(weights: str | None) -> str | Path | None:
    """Known sources by name, everything else as a file."""
    return weights if weights in (None, "imagenet", "wheel", "timm") else Path(weights)
