"""Classifiers and the calibrated second head, as a recipe writes them (seam 4)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from longtail.schema.parts import Part, named


class Linear(Part):
    """A linear layer with bias."""

    type: Literal["linear"] = "linear"
    std: float | None = Field(
        None, gt=0, description="Standard deviation of the initial weights; none = PyTorch's own."
    )


class Cosine(Part):
    """Scaled cosine with a learnt length per class (RIO)."""

    type: Literal["cosine"] = "cosine"
    scale: float = Field(48.0, gt=0, description="Factor on the cosine.")
    learn_norm: bool = Field(True, description="Whether every class learns the length of its weight vector.")


class NormedLinear(Part):
    """Features and weights normalised, with a temperature and a bias (Seesaw)."""

    type: Literal["normed_linear"] = "normed_linear"
    temperature: float = Field(20.0, gt=0, description="Factor on the normalised product.")
    power: float = Field(1.0, gt=0, description="Exponent of the norms.")


class WeightScaling(Part):
    """A linear layer with one learnt factor per class, for second stages (learnable weight scaling)."""

    type: Literal["lws"] = "lws"


class Deconfounded(Part):
    """Normalised parts of the channels in training, total direct effect when detecting (Tang et al., 2020)."""

    type: Literal["deconfounded"] = "deconfounded"
    heads: int = Field(2, ge=1, description="Parts K the channels are cut into.")
    temperature: float = Field(16.0, gt=0, description="Factor on the mean of the parts' normalised products.")
    gamma: float = Field(1 / 32, ge=0, description="Added to the norm of the weights.")
    alpha: float = Field(1.5, ge=0, description="Share of the common direction taken away when detecting.")
    momentum: float = Field(0.9998, ge=0, lt=1, description="Of the gathered mean of foreground features.")


ClassifierSpec = Annotated[
    Linear | Cosine | NormedLinear | WeightScaling | Deconfounded, Field(discriminator="type"), BeforeValidator(named)
]


class Calibrated(Part):
    """A second box head and classifier on the pooled features, which scores the tail classes (SimCal)."""

    type: Literal["calibrated"] = "calibrated"
    tail_below: int = Field(
        100, ge=0, description="It scores the classes with fewer training objects; 100 published for LVIS, 400 COCO-LT."
    )
    start: Literal["copy", "new"] = Field("copy", description="From the original head's weights, or drawn anew.")


CalibrationSpec = Annotated[Calibrated, BeforeValidator(named)]
