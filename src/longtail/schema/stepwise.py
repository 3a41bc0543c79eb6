"""What a recipe says of step-wise learning: chosen objects, their scores, losses against a teacher."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from longtail.schema.parts import Part, named

# --- objects that are learnt from -------------------------------------------------------------------------------------


class ExemplarScores(Part):
    """Scores every training object with the trained model and writes the scores into the run."""

    type: Literal["exemplar_scores"] = "exemplar_scores"


ScoringSpec = Annotated[ExemplarScores, BeforeValidator(named)]


Count = Annotated[int, Field(ge=0)] | Literal["all"]
COUNTS = "Objects per class of every part, the part with the rarest classes first."


class Exemplars(Part):
    """The objects with the best scores, so many per class, and the pictures that hold them."""

    edges: tuple[int, ...] = Field(
        (30,), description="A class belongs to the next part from so many training images on; ascending."
    )
    counts: tuple[Count, ...] = Field((30, 200), description=COUNTS)
    score: Literal["own_class", "max"] = Field(
        "own_class", description="Score of the object's own class, or the highest of all classes (released code)."
    )
    confidence: float = Field(0.5, ge=0, le=1, description="Objects above this score come first.")
    one_per_image: bool = Field(True, description="Whether among them each image gives one, and the rest comes later.")
    unselected: Literal["drop", "ignore"] = Field(
        "drop", description="Other objects of these pictures: background, or without any loss."
    )
    scores: str | None = Field(None, description="File with scores of another run; none = the run's own.")

    @model_validator(mode="after")
    def _one_count_per_part(self) -> Self:
        if list(self.edges) != sorted(set(self.edges)) or any(edge < 1 for edge in self.edges):
            raise ValueError(f"edges are ascending numbers of images, at least 1; got {list(self.edges)}")
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(
                f"{len(self.edges)} edges make {len(self.edges) + 1} parts; give as many counts, got {len(self.counts)}"
            )
        return self


class HeadDominant(Exemplars):
    """Smooth-tail data of the head expert: many objects of the head classes, few of the tail classes."""

    type: Literal["head_dominant"] = "head_dominant"


class TailDominant(Exemplars):
    """Smooth-tail data of the knowledge transfer: all objects of the tail classes, some of the head classes."""

    type: Literal["tail_dominant"] = "tail_dominant"
    counts: tuple[Count, ...] = Field(("all", 50), description=COUNTS)


ExemplarsSpec = Annotated[HeadDominant | TailDominant, Field(discriminator="type"), BeforeValidator(named)]


# --- losses between student and teacher (seam 9) ----------------------------------------------------------------------


class AuxiliaryPart(Part):
    """What every loss against a teacher has."""

    loss_weight: float = Field(1.0, ge=0, description="Factor on this loss within the total.")
    head_min_images: int = Field(30, ge=0, description="A class with at least this many images counts as head.")


class MaskedFeatures(AuxiliaryPart):
    """Squared difference of feature maps inside the boxes of frequent classes (step-wise learning, eq. 2)."""

    type: Literal["masked_features"] = "masked_features"
    mask_space: Literal["image", "padded"] = Field(
        "image", description="Frame of the boxes: the picture's own part of the batch, or the whole (released code)."
    )
    mask_round: Literal["code", "cover"] = Field(
        "code", description="Thin boxes vanish as in the released code, or cover at least one cell."
    )


class RegionFeatures(AuxiliaryPart):
    """Squared difference of the last layer's input, over the regions of frequent classes."""

    type: Literal["region_features"] = "region_features"


class ClassificationDistillationSpec(AuxiliaryPart):
    """Divergence of the class probabilities from the teacher's (step-wise learning, eq. 3)."""

    type: Literal["classification_distillation"] = "classification_distillation"
    loss_weight: float = Field(0.1, ge=0, description="Factor on this loss within the total.")
    shared: bool = Field(
        True, description="Whether both classify the teacher's queries or regions, or each its own queries."
    )
    align: Literal["index", "matched"] = Field(
        "index", description="Own queries are compared by their number, or by the object they are matched with."
    )
    classes: Literal["head", "all"] = Field("head", description="Classes the probabilities are over.")
    layers: Literal["all", "last"] = Field("all", description="Decoder layers that are compared.")
    temperature: float = Field(1.0, gt=0, description="Divides the logits; the loss is multiplied by its square.")


AuxiliaryLossSpec = Annotated[
    MaskedFeatures | RegionFeatures | ClassificationDistillationSpec,
    Field(discriminator="type"),
    BeforeValidator(named),
]
