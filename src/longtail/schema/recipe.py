"""A recipe: one published system or baseline, complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from longtail.schema.augmentation import (
    Channel,
    ColourSpec,
    CopyPasteSpec,
    NoColour,
    NoPaste,
    ResizeSpec,
    ShortSide,
    Side,
)
from longtail.schema.detector import RCNN
from longtail.schema.errors import UsageError
from longtail.schema.explain import explain
from longtail.schema.model import ModelSpec
from longtail.schema.parts import Part
from longtail.schema.passes import ClassLosses
from longtail.schema.stage import StageSpec


class Images(Part):
    """Size and augmentation of the pictures."""

    short_sides: tuple[int, ...] = Field(
        (640, 672, 704, 736, 768, 800), min_length=1, description="Shorter side in pixels; one is drawn per picture."
    )
    long_side: int = Field(1333, ge=1, description="The longer side is at most this.")
    test_short_side: int = Field(800, ge=1, description="Shorter side at test time.")
    test_long_side: int = Field(1333, ge=1, description="Longest side at test time.")
    flip: float = Field(0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    vertical_flip: float = Field(0.0, ge=0, le=1, description="Probability of a vertical flip.")
    transpose: float = Field(0.0, ge=0, le=1, description="Probability that x and y are exchanged.")
    brightness: float = Field(0.0, ge=0, le=1, description="Strength of brightness jitter.")
    colour: ColourSpec = NoColour()
    resize: ResizeSpec = ShortSide()
    padded_crop: int = Field(
        0,
        ge=0,
        description="Pixels filled up on every side, at most half as many as it has, after which a crop of the former "
        "size is drawn; CIFAR: 4.",
    )
    fixed_size: tuple[Side, Side] | None = Field(
        None, description="Height and width, in pixels, that pictures are cropped or filled up to at last; none = off."
    )
    fill: tuple[Channel, Channel, Channel] = Field(
        (124, 116, 104), description="Colour (R, G, B) that pictures are filled up with; the default is a mean colour."
    )
    copy_paste: CopyPasteSpec = NoPaste()
    keep_empty: bool = Field(True, description="Whether pictures without objects are trained on.")
    max_pixels: int = Field(178_000_000, ge=1, description="Larger pictures are refused before decoding.")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.fixed_size is not None and self.resize.type == "scale_jitter":
            raise ValueError("resize=scale_jitter gives every picture its own `size`; leave fixed_size at none")
        return self


class Groups(Part):
    """How classes are grouped into rare, common and frequent, from the training annotations."""

    edges: tuple[int, int] = Field((10, 100), description="Rare up to the first, frequent above the second.")
    count: Literal["images", "instances"] = Field("images", description="What is counted.")


class HoldOut(Part):
    """Training images that are not trained on, but measured for the methods that ask for it."""

    fraction: float = Field(0.1, gt=0, le=0.5, description="Share of the images of every class that has enough.")
    seed: int = Field(0, ge=0, description="Source of the choice; the recipe's own seed has no part in it.")


class Evaluation(Part):
    """When and how a run is evaluated."""

    protocol: Literal["auto", "lvis", "coco", "voc"] = Field(
        "auto", description="`auto`: LVIS if every image lists its negative classes, otherwise COCO."
    )
    every_epochs: float = Field(0.0, ge=0, description="Evaluate this often during training; 0 = only at the end.")
    batch_size: int = Field(4, ge=1, description="Pictures per forward pass at test time.")


class Recipe(Part):
    """Everything that influences training, except the data themselves."""

    name: str = Field(description="Name of the recipe.")
    summary: str = Field("", description="One line on what it does.")
    paper: str = Field("", description="Where it comes from.")
    scale: str | None = Field(None, description="The scale fragment merged under the recipe.")
    seed: int = Field(0, ge=0, description="Source of every random choice.")
    precision: Literal["32-true", "bf16-mixed"] = Field("32-true", description="Number format of training.")
    deterministic: bool = Field(True, description="Deterministic kernels where PyTorch has them.")
    workers: int = Field(2, ge=0, description="Processes that load pictures; 0 = none.")
    threads: int = Field(0, ge=0, description="CPU threads of the main process; 0 = PyTorch's choice.")
    model: ModelSpec = RCNN()
    images: Images = Images()
    groups: Groups = Groups()
    holdout: HoldOut | None = Field(None, description="A part of the training images kept for `class_losses`.")
    stages: tuple[StageSpec, ...] = Field(min_length=1, description="Stages, in order.")
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _unique_stage_names(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must differ, got {names}")
        return self

    @model_validator(mode="after")
    def _holdout_when_needed(self) -> Self:
        for stage in self.stages:
            for work in (*stage.passes_before, *stage.passes_after_epoch):
                if isinstance(work, ClassLosses) and work.source == "holdout" and self.holdout is None:
                    raise ValueError(
                        f"stage {stage.name!r} measures class losses on held-out images, but there are none; set "
                        "`holdout: {fraction: 0.1}` or the pass's `source: val`"
                    )
        return self

    @model_validator(mode="after")
    def _scores_before_exemplars(self) -> Self:
        scored = False
        for stage in self.stages:
            if stage.exemplars is not None and stage.exemplars.scores is None and not scored:
                raise ValueError(
                    f"stage {stage.name!r} learns from chosen objects, but no earlier stage scores them; give one "
                    "`passes_after: [exemplar_scores]`, or name a file of scores (exemplars.scores)"
                )
            scored = scored or bool(stage.passes_after)
        return self

    @classmethod
    def parse(cls, content: Mapping[str, Any], *, origin: str) -> Recipe:
        """Validates ``content``; a mistake becomes a :class:`UsageError` that names the key and the nearest one."""
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise UsageError(f"{origin}: {explain(error, cls)}") from None
