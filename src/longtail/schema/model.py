"""The model of a recipe: one of several kinds, told apart by ``type``."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import BeforeValidator

from longtail.schema.detector import RCNN, ModelPart
from longtail.schema.parts import named

MODELS: tuple[type[ModelPart], ...] = (RCNN,)
ModelSpec = Annotated[RCNN, BeforeValidator(named)]


def model_keys(kind: str) -> frozenset[str]:
    """Keys of the model with this ``type``; none if there is no such model."""
    for model in MODELS:
        if kind in get_args(model.model_fields["type"].annotation):
            return frozenset(model.model_fields)
    return frozenset()
