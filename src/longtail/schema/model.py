"""The model of a recipe: one of several kinds, told apart by ``type``."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field

from longtail.schema.dense import RegionProposalNetwork, RetinaNet
from longtail.schema.detector import RCNN, CascadeRCNN, DeformableDETR, ModelPart
from longtail.schema.image_classifier import ImageClassifier
from longtail.schema.parts import Part

DEFAULT = "mask_rcnn"


def model_by_name(value: Any) -> Any:
    """Lets ``model: faster_rcnn`` stand for the whole mapping, and a mapping without a type for Mask R-CNN."""
    if isinstance(value, str):
        return {"type": value}
    return {"type": DEFAULT, **value} if isinstance(value, dict) else value


MODELS: tuple[type[ModelPart], ...] = (
    CascadeRCNN,
    DeformableDETR,
    ImageClassifier,
    RCNN,
    RegionProposalNetwork,
    RetinaNet,
)
ModelSpec = Annotated[
    CascadeRCNN | DeformableDETR | ImageClassifier | RCNN | RegionProposalNetwork | RetinaNet,
    Field(discriminator="type"),
    BeforeValidator(model_by_name),
]


def model_keys(kind: str) -> frozenset[str]:
    """Keys of the model with this ``type``; none if there is no such model."""
    for model in MODELS:
        if kind in get_args(model.model_fields["type"].annotation):
            return frozenset(model.model_fields)
    return frozenset()


def inner_keys(kind: str, key: str) -> frozenset[str] | None:
    """Keys of one part of the model with this ``type``; None if the part is not of one kind alone."""
    for model in MODELS:
        if kind in get_args(model.model_fields["type"].annotation) and key in model.model_fields:
            part = model.model_fields[key].annotation
            return frozenset(part.model_fields) if isinstance(part, type) and issubclass(part, Part) else None
    return None
