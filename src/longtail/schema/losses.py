"""Classification and box losses of a recipe (seams 6 and 7), told apart by ``type``; defaults as published."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from longtail.schema.parts import Part, named

# --- classification losses (seam 6) -----------------------------------------------------------------------------------


class LossPart(Part):
    """What every classification loss has."""

    loss_weight: float = Field(1.0, ge=0, description="Factor on this loss within the total.")


class Softmax(LossPart):
    """Softmax cross-entropy over the classes and the background."""

    type: Literal["softmax"] = "softmax"


class Objectness(LossPart):
    """Object or not, times a softmax over the classes alone (Seesaw with p = q = 0)."""

    type: Literal["objectness_softmax"] = "objectness_softmax"


class Sigmoid(LossPart):
    """Binary cross-entropy of every class on its own."""

    type: Literal["sigmoid"] = "sigmoid"
    background_logit: bool = Field(False, description="Whether the background has an output of its own.")
    prior: float = Field(0.01, gt=0, lt=1, description="Initial probability of every class.")


class Focal(LossPart):
    """Focal loss (Lin et al., 2017)."""

    type: Literal["focal"] = "focal"
    form: Literal["sigmoid", "softmax"] = Field("sigmoid", description="Binary per class, or over a softmax.")
    gamma: float = Field(2.0, ge=0, description="How much easy examples are played down.")
    alpha: float = Field(0.25, ge=0, le=1, description="Weight of positives (sigmoid form only).")
    prior: float = Field(0.01, gt=0, lt=1, description="Initial probability of every class (sigmoid form only).")


ClassificationLossSpec = Annotated[
    Softmax | Objectness | Sigmoid | Focal, Field(discriminator="type"), BeforeValidator(named)
]


# --- box losses (seam 7) ----------------------------------------------------------------------------------------------


class SmoothL1(Part):
    """Quadratic below ``beta``, linear above."""

    type: Literal["smooth_l1"] = "smooth_l1"
    beta: float = Field(1 / 9, ge=0, description="Where the quadratic part ends; 0 is L1.")


class L1(Part):
    """Absolute difference of the encoded offsets."""

    type: Literal["l1"] = "l1"


class GIoU(Part):
    """One minus the generalised IoU of the decoded boxes."""

    type: Literal["giou"] = "giou"


BoxLossSpec = Annotated[SmoothL1 | L1 | GIoU, Field(discriminator="type"), BeforeValidator(named)]
