"""One stage of training: data, what trains, losses, replay, schedule."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from longtail.schema.augmentation import ColourSpec
from longtail.schema.classifiers import CalibrationSpec, ClassifierSpec
from longtail.schema.losses import BoxLossSpec, ClassificationLossSpec, SmoothL1, Softmax
from longtail.schema.parts import Part, named
from longtail.schema.passes import PassSpec
from longtail.schema.replay import ReplaySpec
from longtail.schema.samplers import Random, RegionSamplerSpec, SamplerSpec, Uniform
from longtail.schema.stepwise import AuxiliaryLossSpec, ExemplarsSpec, ScoringSpec


class Schedule(Part):
    """How long a stage lasts and how its learning rate moves. Everything is counted in images seen."""

    epochs: float | None = Field(None, gt=0, description="Length in passes over the unrepeated training images.")
    images: int | None = Field(None, ge=1, description="Length in images seen; give this or `epochs`.")
    batch_size: int = Field(16, ge=1, description="Images per optimiser step, over all processes and accumulations.")
    accumulate: int = Field(1, ge=1, description="Forward passes a step is made of.")
    warmup_images: int = Field(0, ge=0, description="Images during which the learning rate rises linearly.")
    warmup_factor: float = Field(1e-3, ge=0, le=1, description="Share of the learning rate the warm-up starts from.")
    decay: Literal["constant", "steps", "cosine"] = Field("steps", description="Shape after the warm-up.")
    milestones: tuple[float, ...] = Field((), description="Where steps happen, as shares of the length in (0, 1).")
    gamma: float = Field(0.1, gt=0, le=1, description="Factor at every step.")
    final_factor: float = Field(0.0, ge=0, le=1, description="Share of the learning rate the cosine ends at.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.images is None):
            raise ValueError("a schedule has a length: give exactly one of `epochs` and `images`")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if any(not 0 < share < 1 for share in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise ValueError("milestones are ascending shares of the length, between 0 and 1")
        return self


class ParameterGroup(Part):
    """Parameters whose name matches get their own rates."""

    match: str = Field(description="Shell pattern on the parameter's name, e.g. `backbone.*`; the first match counts.")
    lr_factor: float = Field(1.0, ge=0, description="Factor on the learning rate.")
    weight_decay: float | None = Field(None, ge=0, description="Their own weight decay.")
    optional: bool = Field(False, description="No error if the model has no such parameter.")


class OptimiserPart(Part):
    """What every optimiser has."""

    lr: float = Field(0.02, gt=0, description="Learning rate after the warm-up.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay.")
    norm_weight_decay: float | None = Field(
        0.0, ge=0, description="Weight decay of norm layers; none = the general one."
    )
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of the whole gradient.")
    groups: tuple[ParameterGroup, ...] = Field((), description="Parameters with rates of their own.")


class SGD(OptimiserPart):
    """Stochastic gradient descent with momentum."""

    type: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum.")


class AdamW(OptimiserPart):
    """AdamW."""

    type: Literal["adamw"] = "adamw"
    lr: float = Field(1e-4, gt=0, description="Learning rate after the warm-up.")
    weight_decay: float = Field(0.05, ge=0, description="Weight decay.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Decay of the moment estimates.")


OptimiserSpec = Annotated[SGD | AdamW, Field(discriminator="type"), BeforeValidator(named)]


class Trainable(Part):
    """What moves in this stage. Patterns are shell patterns on module or parameter names."""

    only: tuple[str, ...] = Field((), description="Only these train; empty = everything.")
    freeze: tuple[str, ...] = Field((), description="These do not train (after `only`).")
    reinitialise: tuple[str, ...] = Field((), description="These start afresh instead of from loaded weights.")


class Teacher(Part):
    """A frozen copy of a model for the auxiliary losses."""

    weights: str = Field("start", description="`start` = this stage's own starting point, or a checkpoint.")
    mode: Literal["eval", "train"] = Field("eval", description="`train`: its dropout is on (released code).")


class Interval(Part):
    """A distance within a stage, in passes over the unrepeated training images or in images seen."""

    epochs: float | None = Field(None, gt=0, description="In passes over the unrepeated training images.")
    images: int | None = Field(None, ge=1, description="In images seen; give this or `epochs`.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.images is None):
            raise ValueError("an interval is given in exactly one of `epochs` and `images`")
        return self


class StageSpec(Part):
    """One stage of a recipe."""

    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9-]*$", description="Unique within the recipe.")
    start_from: str | None = Field(
        None,
        description="A checkpoint, weights file or run; `backbone` = its pretrained weights alone; none = the previous "
        "stage, or the backbone's weights.",
    )
    exemplars: ExemplarsSpec | None = Field(
        None, description="Trains on chosen objects alone, by the scores of an earlier stage; none = on all."
    )
    sampler: SamplerSpec = Uniform()
    source_weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="How often each annotation source is drawn from, e.g. [3, 1]; empty = by its size."
    )
    proposals: Literal["network", "only", "cached"] = Field(
        "network",
        description="`only`: the proposal network alone trains, its proposals are kept; `cached`: kept ones are used.",
    )
    region_sampler: RegionSamplerSpec = Random()
    classifier: ClassifierSpec | None = Field(None, description="Replaces the model's classifier in this stage.")
    calibration: CalibrationSpec | None = Field(
        None, description="A second head for the tail classes, of which alone this stage has a loss."
    )
    classification_loss: ClassificationLossSpec = Softmax()
    box_loss: BoxLossSpec = SmoothL1()
    box_weight: float = Field(1.0, ge=0, description="Factor on the box loss of the region head.")
    mask_weight: float = Field(1.0, ge=0, description="Factor on the mask loss.")
    replay: tuple[ReplaySpec, ...] = Field((), description="Feature replay parts, in order.")
    colour: ColourSpec | None = Field(None, description="Replaces `images.colour` in this stage.")
    trainable: Trainable = Trainable()
    optimiser: OptimiserSpec = SGD()
    schedule: Schedule = Schedule(epochs=24, milestones=(16 / 24, 22 / 24), warmup_images=8000)
    weight_average: float | None = Field(
        None, gt=0, lt=1, description="Decay of a moving average of the weights, which becomes the stage's result."
    )
    passes_before: tuple[PassSpec, ...] = Field((), description="Passes over the data before training starts.")
    passes_after_epoch: tuple[PassSpec, ...] = Field((), description="Passes after every epoch, or as `passes_every`.")
    passes_every: Interval = Field(Interval(epochs=1), description="How often `passes_after_epoch` are run.")
    passes_after: tuple[ScoringSpec, ...] = Field((), description="Passes with the trained model, after training.")
    teacher: Teacher | None = Field(None, description="A frozen teacher for the auxiliary losses.")
    auxiliary_losses: tuple[AuxiliaryLossSpec, ...] = Field((), description="Losses between student and teacher.")

    @model_validator(mode="after")
    def _teacher_when_needed(self) -> Self:
        if self.auxiliary_losses and self.teacher is None:
            raise ValueError(
                f"stage {self.name!r} has auxiliary losses but no teacher; add `teacher: {{weights: start}}`"
            )
        if self.calibration is not None and (self.replay or self.auxiliary_losses):
            raise ValueError(
                f"stage {self.name!r} has a calibrated head, whose loss is the stage's only one; leave replay and "
                "auxiliary_losses to an earlier stage"
            )
        if self.source_weights and self.sampler.type == "bi_level":
            raise ValueError(
                f"stage {self.name!r}: bi_level sampling draws from all sources together; leave source_weights out or "
                "take the sampler class_aware"
            )
        return self
