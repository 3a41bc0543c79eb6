"""Image samplers and region samplers, as a recipe writes them (seams 1 and 2)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from longtail.schema.parts import Part, named

# --- image samplers (seam 1) ------------------------------------------------------------------------------------------


THRESHOLDS = "Image frequency below which a class is repeated, the group of the rarest classes first; 0 = never."
EXPONENTS = "r(c) = max(1, (t / f(c)) ** exponent), in the same order."


class Uniform(Part):
    """Every image once per epoch, in random order."""

    type: Literal["uniform"] = "uniform"


class RepeatFactor(Part):
    """Repeat factor sampling (Gupta et al., LVIS, CVPR 2019)."""

    type: Literal["repeat_factor"] = "repeat_factor"
    threshold: float | Literal["auto"] = Field(
        0.001, description="Image frequency below which a class is repeated; `auto` reads it off the data."
    )
    exponent: float = Field(0.5, ge=0, description="r(c) = max(1, (t / f(c)) ** exponent); 0.5 is the published root.")
    rounding: Literal["stochastic", "ceil", "round", "floor"] = Field(
        "stochastic", description="How fractional factors become copies: anew each epoch, or fixed for ever."
    )
    count_empty: bool = Field(True, description="Whether images without objects count in the frequency's denominator.")


class ClassAware(Part):
    """Classes in turn, each from its own shuffled list of images (Shen et al., 2016)."""

    type: Literal["class_aware"] = "class_aware"


class BiLevel(Part):
    """A class for every image, drawn uniformly, then one of its images (SimCal): a batch of 16 is 16 classes."""

    type: Literal["bi_level"] = "bi_level"


class GroupRepeatFactor(Part):
    """Repeat factor sampling with a threshold and an exponent for every group of classes (step-wise learning).

    The groups are made of all training images, the frequencies of those of the stage.
    """

    edges: tuple[int, ...] = Field(
        (11, 30, 101), description="A class belongs to the next group from so many training images on; ascending."
    )
    thresholds: tuple[Annotated[float, Field(ge=0)], ...] = Field((0.003, 0.003, 0.003, 0.0), description=THRESHOLDS)
    exponents: tuple[Annotated[float, Field(ge=0)], ...] = Field((0.5, 0.5, 0.3, 1.0), description=EXPONENTS)
    epoch_length: Literal["subset", "oversampled"] = Field(
        "subset", description="An epoch has as many images as without copies, or all copies."
    )

    @model_validator(mode="after")
    def _one_per_group(self) -> Self:
        if list(self.edges) != sorted(set(self.edges)) or any(edge < 1 for edge in self.edges):
            raise ValueError(f"edges are ascending numbers of images, at least 1; got {list(self.edges)}")
        if not len(self.thresholds) == len(self.exponents) == len(self.edges) + 1:
            raise ValueError(
                f"{len(self.edges)} edges make {len(self.edges) + 1} groups; give a threshold and an exponent for each"
            )
        return self


class HeadRepeatFactor(GroupRepeatFactor):
    """Group repeat factors of the head expert: those of scarcer classes."""

    type: Literal["head_repeat_factor"] = "head_repeat_factor"


class TailRepeatFactor(GroupRepeatFactor):
    """Group repeat factors of the knowledge transfer: those of tail classes alone."""

    type: Literal["tail_repeat_factor"] = "tail_repeat_factor"
    thresholds: tuple[Annotated[float, Field(ge=0)], ...] = Field((0.0015, 0.0015, 0.0, 0.0), description=THRESHOLDS)
    exponents: tuple[Annotated[float, Field(ge=0)], ...] = Field((1.0, 1.0, 1.0, 1.0), description=EXPONENTS)


SamplerSpec = Annotated[
    Uniform | RepeatFactor | ClassAware | BiLevel | HeadRepeatFactor | TailRepeatFactor,
    Field(discriminator="type"),
    BeforeValidator(named),
]


# --- region samplers (seam 2) -----------------------------------------------------------------------------------------


class RegionPart(Part):
    """What every region sampler has."""

    count: int = Field(512, ge=1, description="Regions per image.")
    positive_fraction: float = Field(0.25, gt=0, le=1, description="At most this share of them is positive.")
    positives: Literal["random", "per_object", "per_class"] = Field(
        "random", description="Positives at random, evenly over objects, or evenly over classes and then objects."
    )
    negatives_per_positive: float | None = Field(
        None, gt=0, description="At most this many negatives for every positive; none = no bound."
    )


class Random(RegionPart):
    """Negatives drawn uniformly."""

    type: Literal["random"] = "random"


class IoUBalanced(RegionPart):
    """Negatives spread evenly over IoU bins (Libra R-CNN, section 3.1)."""

    type: Literal["iou_balanced"] = "iou_balanced"
    num_bins: int = Field(3, ge=1, description="Number K of equal IoU bins.")
    interval: Literal["neg_range", "max_iou"] = Field(
        "neg_range", description="Bins end at the negative threshold, or at the largest IoU (released code)."
    )
    zero_iou: Literal["include", "last_resort"] = Field(
        "include", description="`last_resort`: IoU 0 only where the rest does not suffice (released code)."
    )
    fill: Literal["even", "uniform"] = Field(
        "even", description="What bins lack is split evenly again, or drawn from all (released code)."
    )
    floor_iou: float = Field(0.0, ge=0, lt=1, description="Bins begin here; candidates below are the floor set.")
    floor_fraction: float = Field(0.0, ge=0, le=1, description="Share of the negatives that the floor set gives.")


class HardExamples(Part):
    """Those with the largest classification loss, positives and negatives apart (OHEM, Shrivastava et al., 2016)."""

    type: Literal["hard_examples"] = "hard_examples"
    count: int = Field(512, ge=1, description="Regions per image.")
    positive_fraction: float = Field(0.25, gt=0, le=1, description="At most this share of them is positive.")


RegionSamplerSpec = Annotated[Random | IoUBalanced | HardExamples, Field(discriminator="type"), BeforeValidator(named)]
