"""The model that classifies whole pictures."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from longtail.schema.detector import AdjustSpec, ModelPart
from longtail.schema.features import ResNet, Timm, backbone_by_name
from longtail.schema.parts import Part

CIFAR_NETWORKS = ("cifar_resnet20", "cifar_resnet32", "cifar_resnet44", "cifar_resnet56", "cifar_resnet34")


class CifarNetwork(Part):
    """A network for pictures of 32 x 32 pixels, trained from scratch."""

    type: Literal["cifar"] = "cifar"
    name: Literal["cifar_resnet20", "cifar_resnet32", "cifar_resnet44", "cifar_resnet56", "cifar_resnet34"] = Field(
        "cifar_resnet32", description="20 to 56: widths 16, 32, 64; 34: torchvision's with a small first convolution."
    )


def picture_backbone_by_name(value: Any) -> Any:
    """Lets ``backbone: cifar_resnet32`` stand for the whole mapping."""
    if isinstance(value, str) and value in CIFAR_NETWORKS:
        return {"type": "cifar", "name": value}
    return backbone_by_name(value)


class Scoring(Part):
    """From logits to scores."""

    adjust: AdjustSpec | None = Field(None, description="Changes class logits without training; none = as trained.")


class ImageClassifier(ModelPart):
    """A classifier of whole pictures."""

    type: Literal["image_classifier"] = "image_classifier"
    backbone: Annotated[
        CifarNetwork | ResNet | Timm, Field(discriminator="type"), BeforeValidator(picture_backbone_by_name)
    ] = CifarNetwork()
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        (32, 32), description="Height and width in pixels that pictures have in the network."
    )
    inference: Scoring = Scoring()
