"""Passes over the data without an optimiser step, as a recipe writes them (seam 8)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from longtail.schema.parts import Part, named


class UpdateState(Part):
    """Runs the training path without gradients, so that method state (memories, statistics, scores) fills."""

    type: Literal["update_state"] = "update_state"
    images: int = Field(0, ge=0, description="Number of images; 0 = one epoch.")
    per_class: int = Field(0, ge=0, description="Instead: so many images of every class and process (LOCE: 5).")
    choice: Literal["first", "random"] = Field(
        "first", description="Which of them: the first ones (LOCE, released code), or random ones (paper)."
    )


class ValidationLoss(Part):
    """Runs the training path on the validation images without touching any state, and logs the losses."""

    type: Literal["validation_loss"] = "validation_loss"
    images: int = Field(0, ge=0, description="At most this many images; 0 = all.")


class ClassLosses(Part):
    """Measures the classification loss of every class on pictures that are not trained on, without touching any other
    state, logs it, and tells the replay parts, which may change what they draw (FASA)."""

    type: Literal["class_losses"] = "class_losses"
    source: Literal["holdout", "val"] = Field(
        "holdout", description="Pictures held out of the training set (key `holdout`), or the validation data."
    )
    repeat_threshold: float | Literal["auto"] | None = Field(
        0.001, description="Repeat factor sampling of these pictures; none = each once."
    )
    images: int = Field(0, ge=0, description="At most this many images; 0 = all, with their copies.")
    augment: bool = Field(False, description="Whether they are augmented as in training (released code).")


PassSpec = Annotated[UpdateState | ValidationLoss | ClassLosses, Field(discriminator="type"), BeforeValidator(named)]
