"""Feature replay, as a recipe writes it (seam 5)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from longtail.schema.parts import Part, named

Storage = Annotated[
    Literal["auto", "device", "cpu"],
    Field(description="Where the bank lives; `auto` = the device if 10 % of its free memory suffice."),
]
Lazy = Annotated[bool, Field(description="Whether the bank's memory grows with its rows or is taken at once.")]


class Targeted(Part):
    """What every part for weak classes has."""

    max_images: int = Field(30, ge=0, description="A class with at most this many training images is targeted.")
    classes: tuple[str, ...] = Field((), description="Names of the targeted classes, instead of `max_images`.")


class ObjectMemory(Targeted):
    """Object-centric replay of targeted classes (RIO)."""

    type: Literal["object_memory"] = "object_memory"
    source: Literal["bank", "current"] = Field(
        "bank", description="`bank` replays regions of earlier steps, `current` repeats this step's own."
    )
    count: int = Field(20, ge=0, description="Rows replayed per targeted class in the batch; 0 switches it off.")
    capacity: int = Field(60, ge=1, description="Rows that the bank holds of every targeted class.")
    draw: Literal["newest", "random"] = Field("newest", description="Which rows of the bank come back.")
    storage: Storage = "auto"
    lazy: Lazy = True


class InterpolatedFeatures(Targeted):
    """Points between neighbouring stored features of a targeted class (SMOTE)."""

    type: Literal["interpolated_features"] = "interpolated_features"
    count: int = Field(32, ge=0, description="Rows per step; 0 switches it off.")
    neighbours: int = Field(5, ge=1, description="Nearest features of the class that the other end is drawn from.")
    capacity: int = Field(60, ge=2, description="Features that are stored of every targeted class.")
    storage: Storage = "auto"
    lazy: Lazy = True


class ExchangedMoments(Part):
    """Objects' features with the mean and deviation of other objects' (MoEx)."""

    type: Literal["exchanged_moments"] = "exchanged_moments"
    probability: float = Field(0.5, ge=0, le=1, description="Share of the steps.")
    mixing: float = Field(0.9, ge=0, le=1, description="Weight of the label of the object that is changed.")
    norm: Literal["position", "instance", "layer"] = Field(
        "position", description="Moments over the channels of a position, the positions of a channel, or both."
    )


class TransferredFeatures(Targeted):
    """Deviations of other classes' features from their centres, around the centres of targeted classes."""

    type: Literal["transferred_features"] = "transferred_features"
    count: int = Field(32, ge=0, description="Rows per step; 0 switches it off.")
    components: int = Field(150, ge=1, description="Shared directions that are transferred; at most all.")
    momentum: float = Field(0.1, gt=0, le=1, description="Of the centres.")
    covariance_momentum: float = Field(0.01, gt=0, le=1, description="Of the shared covariance.")


class MeanScores(Part):
    """The moving mean score of every class, kept for losses and memories and for the curves; adds no rows (LOCE)."""

    type: Literal["mean_score"] = "mean_score"
    alpha: float = Field(0.9, ge=0, lt=1, description="Share of the old value that an observation leaves.")
    background: float = Field(0.01, gt=0, description="The background's entry, which never moves.")
    initial: float = Field(0.01, gt=0, description="First value of every class.")


class FeatureMemory(Part):
    """Features around earlier objects, more of them for classes with low scores (LOCE)."""

    type: Literal["feature_memory"] = "feature_memory"
    guide: Literal["score", "instances"] = Field(
        "score", description="Classes are drawn by the inverse of their mean score, or of their training objects."
    )
    classes: int = Field(8, ge=0, description="Draws of a class per step; 0 switches it off.")
    count: int = Field(4, ge=0, description="Rows per drawn class; 0 switches it off.")
    capacity: int = Field(80, ge=1, description="Rows that the bank holds of every class, 16 per object.")
    arrivals: Literal["first", "random"] = Field(
        "first", description="Which objects are stored where a step has too many of a class."
    )
    half: bool = Field(False, description="Whether features are kept in float16.")
    storage: Storage = "auto"
    lazy: Lazy = True


class VirtualFeatures(Part):
    """Virtual features of rare classes, drawn from running moments as often as the classes need them (FASA)."""

    type: Literal["virtual_features"] = "virtual_features"
    scale: float = Field(1.0, ge=0, description="Rows expected per step and process at the start; 0 switches it off.")
    power: float = Field(1.0, ge=0, description="Exponent of a class's share of the inverse counts.")
    loss_weight: float = Field(0.1, ge=0, description="Factor on the mean loss of the rows.")
    warmup_epochs: float = Field(1.0, ge=0, description="Length of the beginning that only collects moments.")
    warmup_images: int | None = Field(None, ge=0, description="The same in images seen, instead of `warmup_epochs`.")
    momentum: float = Field(0.1, gt=0, le=1, description="Share of the new batch in the moments.")
    moment: Literal["var", "std"] = Field(
        "var", description="What is averaged: the variance (released code) or its root (paper)."
    )
    single_sample: Literal["zero", "skip"] = Field(
        "zero", description="One row of a class in a batch: a variance of 0 is averaged in, or it stays as it is."
    )
    raise_factor: float = Field(1.1, ge=1, description="On the probabilities of a group whose validation loss fell.")
    lower_factor: float = Field(0.9, gt=0, le=1, description="On those of a group whose loss rose; both 1 = static.")
    grouping: Literal["fisher_dbscan", "affinity", "affinity_official", "frequency", "none"] = Field(
        "fisher_dbscan", description="Which classes move together; `none` = each alone."
    )
    eps: float | Literal["auto"] = Field(
        "auto", description="Radius of the clusters; `auto` = median distance to the second nearest class."
    )
    min_samples: int = Field(2, ge=1, description="Classes within the radius that make a class a core.")
    noise: Literal["nearest", "single"] = Field(
        "nearest", description="Classes in no cluster join the nearest one or stay alone."
    )
    norm: Literal["class_mean", "total"] = Field(
        "class_mean", description="Loss of a class: the mean of its rows, or its sum over all rows (released code)."
    )
    sync: bool = Field(True, description="Whether all processes share moments and probabilities; draws differ anyway.")
    stages: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        "all", description="Stages of a cascade, from 0, whose classifiers are given rows."
    )

    @property
    def adapts(self) -> bool:
        """Whether validation losses move the probabilities."""
        return self.raise_factor > 1 or self.lower_factor < 1


ReplaySpec = Annotated[
    ObjectMemory
    | InterpolatedFeatures
    | ExchangedMoments
    | TransferredFeatures
    | MeanScores
    | FeatureMemory
    | VirtualFeatures,
    Field(discriminator="type"),
    BeforeValidator(named),
]
