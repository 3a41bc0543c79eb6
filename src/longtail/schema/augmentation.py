"""What is done to training pictures, as parts of a recipe's `images`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from longtail.schema.parts import Part, named

Side = Annotated[int, Field(ge=1)]
Channel = Annotated[int, Field(ge=0, le=255)]
Positive = Annotated[float, Field(gt=0)]


def in_order(name: str, ends: tuple[float, float]) -> None:
    """Refuses a range whose ends are exchanged.

    Raises:
        ValueError: with the name.
    """
    if ends[0] > ends[1]:
        raise ValueError(f"{name} is a range from low to high, got {list(ends)}")


# --- resizing ---------------------------------------------------------------------------------------------------------


class ShortSide(Part):
    """Shorter side drawn from `images.short_sides`, longer one at most `images.long_side`."""

    type: Literal["short_side"] = "short_side"


class LargeScaleJitter(Part):
    """Large-scale jitter (Ghiasi et al., arXiv 2012.07177): a drawn factor, then a crop or padding to a fixed size."""

    type: Literal["scale_jitter"] = "scale_jitter"
    size: tuple[Side, Side] = Field((1024, 1024), description="Height and width that every picture gets, in pixels.")
    scale: tuple[Positive, Positive] = Field(
        (0.1, 2.0), description="Range of the factor; at 1 the picture just fits. 0.8 to 1.25 is standard jitter."
    )
    pad: bool = Field(
        True, description="Fill small pictures up to the size; else the batch is padded, and proposals stay out of it."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        in_order("scale", self.scale)
        return self


class CropOrNot(Part):
    """DETR's policy: `short_side`, or with a probability resize, random crop, then `short_side`."""

    type: Literal["detr"] = "detr"
    probability: float = Field(0.5, ge=0, le=1, description="Probability of the crop.")
    before: tuple[Side, ...] = Field(
        (400, 500, 600), min_length=1, description="Shorter side before the crop, in pixels; one is drawn."
    )
    crop: tuple[Side, Side] = Field((384, 600), description="Range of the crop's height and of its width, in pixels.")

    short_sides: tuple[Side, ...] = Field(
        (), description="Shorter sides at the end, in pixels; one is drawn. Empty = `images.short_sides`."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        in_order("crop", self.crop)
        return self


ResizeSpec = Annotated[ShortSide | LargeScaleJitter | CropOrNot, Field(discriminator="type"), BeforeValidator(named)]

# --- colours ----------------------------------------------------------------------------------------------------------


class NoColour(Part):
    """Colours stay (but for `images.brightness`)."""

    type: Literal["none"] = "none"


class StepwiseColour(Part):
    """Colour jitter, random grey and Gaussian blur of step-wise learning, before any resizing or cropping."""

    type: Literal["stepwise"] = "stepwise"
    jitter_probability: float = Field(0.8, ge=0, le=1, description="Probability of colour jitter.")
    brightness: float = Field(0.4, ge=0, le=1, description="Factors are drawn from 1 - this to 1 + this.")
    contrast: float = Field(0.4, ge=0, le=1, description="Factors are drawn from 1 - this to 1 + this.")
    saturation: float = Field(0.4, ge=0, le=1, description="Factors are drawn from 1 - this to 1 + this.")
    hue: float = Field(0.1, ge=0, le=0.5, description="Shift of the hue, in turns of the colour circle.")
    grey_probability: float = Field(0.2, ge=0, le=1, description="Probability of grey.")
    blur_probability: float = Field(0.5, ge=0, le=1, description="Probability of blur.")
    blur_kernel: int = Field(23, ge=1, description="Side of the blur's window in pixels, odd.")
    blur_sigma: tuple[Positive, Positive] = Field((0.1, 2.0), description="Range of the blur's width, in pixels.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        in_order("blur_sigma", self.blur_sigma)
        if self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel must be odd, got {self.blur_kernel}")
        return self


ColourSpec = Annotated[NoColour | StepwiseColour, Field(discriminator="type"), BeforeValidator(named)]

# --- copy-paste -------------------------------------------------------------------------------------------------------


class NoPaste(Part):
    """No copy-paste."""

    type: Literal["none"] = "none"


class ClassAwarePaste(Part):
    """Objects of other pictures, rare classes first, are pasted onto a picture. Needs masks."""

    type: Literal["class_aware"] = "class_aware"
    probability: float = Field(0.5, ge=0, le=1, description="Probability that anything is pasted onto a picture.")
    max_objects: int = Field(3, ge=1, le=100, description="One to this many objects are pasted; each reads a picture.")
    power: float = Field(
        0.5,
        ge=-1,
        le=4,
        description="A class is drawn with its images ** -power: 0 = every class alike, -1 = about as in the data.",
    )
    scale: tuple[Positive, Positive] = Field(
        (0.8, 1.25), description="Range of the object's scale; at 1 its own picture would just fit into this one."
    )
    flip: float = Field(0.5, ge=0, le=1, description="Probability that the object is mirrored.")
    min_visible: float = Field(
        0.1, ge=0, le=1, description="Objects of which less than this share stays visible are removed, and counted."
    )
    blur: float = Field(0.0, ge=0, le=20, description="Width of the Gaussian that softens the edge, in pixels.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        in_order("scale", self.scale)
        return self


CopyPasteSpec = Annotated[NoPaste | ClassAwarePaste, Field(discriminator="type"), BeforeValidator(named)]
