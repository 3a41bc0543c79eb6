"""The parts a recipe is made of, one frozen model each, told apart by ``type``.

Defaults are the published values. A field without a value in the file keeps its default; an unknown field is an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Part(BaseModel):
    """Base of everything in a recipe: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _default_types(cls, given: Any) -> Any:
        """A part whose ``type`` is not said is of its default type: ``model.neck.balance=bfp`` changes the pyramid."""
        if not isinstance(given, dict):
            return given
        known = {
            name: getattr(cls.model_fields[name].default, "type", None) for name in given.keys() & cls.model_fields
        }
        return {
            name: {"type": known[name], **value} if known.get(name) and isinstance(value, dict) else value
            for name, value in given.items()
        }


def named(value: Any) -> Any:
    """Lets ``sampler: uniform`` stand for ``sampler: {type: uniform}``."""
    return {"type": value} if isinstance(value, str) else value


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


# --- classifiers (seam 4) ---------------------------------------------------------------------------------------------


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


# --- feature replay (seam 5) ------------------------------------------------------------------------------------------


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
    storage: Literal["auto", "device", "cpu"] = Field(
        "auto", description="Where the bank lives; `auto` = the device if 10 % of its free memory suffice."
    )
    lazy: bool = Field(True, description="Whether the bank's memory grows with its rows or is taken at once.")


class InterpolatedFeatures(Targeted):
    """Points between neighbouring stored features of a targeted class (SMOTE)."""

    type: Literal["interpolated_features"] = "interpolated_features"
    count: int = Field(32, ge=0, description="Rows per step; 0 switches it off.")
    neighbours: int = Field(5, ge=1, description="Nearest features of the class that the other end is drawn from.")
    capacity: int = Field(60, ge=2, description="Features that are stored of every targeted class.")
    storage: Literal["auto", "device", "cpu"] = Field("auto", description="Where they live, as for `object_memory`.")
    lazy: bool = Field(True, description="Whether their memory grows with them or is taken at once.")


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
    storage: Literal["auto", "device", "cpu"] = Field(
        "auto", description="Where the bank lives; `auto` = the device if 10 % of its free memory suffice."
    )
    lazy: bool = Field(True, description="Whether the bank's memory grows with its rows or is taken at once.")


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


# --- passes over the data without an optimiser step (seam 8) ----------------------------------------------------------


class UpdateState(Part):
    """Runs the training path without gradients, so that method state (memories, statistics, scores) fills."""

    type: Literal["update_state"] = "update_state"
    images: int = Field(0, ge=0, description="Number of images; 0 = one epoch.")
    per_class: int = Field(
        0, ge=0, description="Instead: so many images of every class and process, from the first on (LOCE: 5)."
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
