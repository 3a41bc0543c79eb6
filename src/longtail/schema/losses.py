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


class BalancedSoftmax(LossPart):
    """Logits shifted by the class prior while training (Balanced Softmax, Ren et al., 2020)."""

    type: Literal["balanced_softmax"] = "balanced_softmax"
    form: Literal["softmax", "sigmoid"] = Field("softmax", description="`sigmoid` is what its authors use on LVIS.")
    background: Literal["none", "pseudo_count"] = Field(
        "none", description="Prior of the background: none, or three times all instances (softmax form only)."
    )
    prior: float = Field(0.01, gt=0, lt=1, description="Initial probability of every class (sigmoid form only).")


class ClassBalanced(LossPart):
    """Rows weighted by the effective number of their class (Cui et al., 2019)."""

    type: Literal["class_balanced"] = "class_balanced"
    beta: float = Field(0.9999, ge=0, lt=1, description="0 weighs all classes alike; published 0.9 to 0.9999.")
    form: Literal["softmax", "sigmoid", "focal"] = Field("softmax", description="The loss that is weighted.")
    background: Literal["one", "pseudo_count"] = Field(
        "one", description="Weight of the background: 1, or that of a class with three times all instances."
    )


class EqualizedFocal(LossPart):
    """Focal loss that fades faster for classes with few positive gradients (EFL, Li et al., 2022)."""

    type: Literal["efl"] = "efl"
    gamma: float = Field(2.0, gt=0, description="How much easy examples of a balanced class are played down.")
    scale: float = Field(8.0, ge=0, description="What a class without positive gradients gets on top.")
    alpha: float = Field(0.25, ge=0, le=1, description="Weight of positives.")
    prior: float = Field(0.01, gt=0, lt=1, description="Initial probability of every class.")
    sync: bool = Field(True, description="Whether gradients are summed over processes.")


class GHMC(LossPart):
    """Binary cross-entropy weighted by how many cells have a gradient of the same size (GHM-C, Li et al., 2019)."""

    type: Literal["ghm_c"] = "ghm_c"
    bins: int = Field(10, ge=1, description="Bins of the gradient's size; released configuration 30.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Of the bins' counts; released configuration 0.75.")
    prior: float = Field(0.01, gt=0, lt=1, description="Initial probability of every class.")
    sync: bool = Field(True, description="Whether counts are summed over processes.")


class GroupSoftmax(LossPart):
    """A softmax for each group of classes with similar counts (BAGS, Li et al., 2020)."""

    type: Literal["group_softmax"] = "group_softmax"
    edges: tuple[float, ...] = Field((10, 100, 1000), description="Training instances at which the groups end.")
    others_ratio: float = Field(8.0, ge=0, description="Rows of other groups kept per row of a group's own classes.")


class LDAM(LossPart):
    """Larger margins for rarer classes, on cosines (Cao et al., 2019)."""

    type: Literal["ldam"] = "ldam"
    max_margin: float = Field(0.5, ge=0, description="Margin of the rarest class.")
    scale: float = Field(30.0, gt=0, description="Factor on the cosines.")
    beta: float = Field(0.0, ge=0, lt=1, description="Re-weighting by effective number; 0 = none, published 0.9999.")


class LogitAdjusted(LossPart):
    """Softmax cross-entropy with logits shifted by the log class prior (Menon et al., 2021)."""

    type: Literal["logit_adjusted"] = "logit_adjusted"
    tau: float = Field(1.0, ge=0, description="Strength; 0 is plain softmax cross-entropy.")


class ACSL(LossPart):
    """Objects are negatives only for classes they are mistaken for (ACSL, Wang et al., 2021)."""

    type: Literal["acsl"] = "acsl"
    threshold: float = Field(0.7, ge=0, le=1, description="Score from which another class counts as a mistake.")
    common_share: float = Field(0.1, ge=0, le=1, description="Share of background regions shown to common classes.")
    rare_share: float = Field(0.01, ge=0, le=1, description="Share of background regions shown to rare classes.")
    prior: float = Field(0.01, gt=0, lt=1, description="Initial probability of every output.")


class Drop(LossPart):
    """EQL that also spares tail classes most of the background (DropLoss, Hsieh et al., 2021)."""

    type: Literal["drop_loss"] = "drop_loss"
    threshold: float = Field(0.00177, ge=0, description="Classes in a smaller share of the training images are tail.")
    prior: float = Field(0.001, gt=0, lt=1, description="Initial probability of every class.")


class Equalization(LossPart):
    """Objects of other classes are no negatives for rare classes (EQL, Tan et al., 2020)."""

    type: Literal["eql"] = "eql"
    threshold: float = Field(0.00177, ge=0, description="Classes in a smaller share of the training images are rare.")
    form: Literal["sigmoid", "softmax"] = Field("sigmoid", description="`sigmoid` is used for detection.")
    prior: float = Field(0.001, gt=0, lt=1, description="Initial probability of every class (sigmoid form only).")


class EqualizationV2(LossPart):
    """Gradients of positives and negatives balanced for every class (EQLv2, Tan et al., 2021)."""

    type: Literal["eqlv2"] = "eqlv2"
    gamma: float = Field(12.0, gt=0, description="Steepness of the mapping from ratio to weight.")
    mu: float = Field(0.8, description="Ratio of positive to negative gradient at which negatives weigh 1/2.")
    alpha: float = Field(4.0, ge=0, description="How much positives gain.")
    prior: float = Field(0.001, gt=0, lt=1, description="Initial probability of every output.")
    sync: bool = Field(True, description="Whether gradients are summed over processes.")


class Equilibrium(LossPart):
    """Margins by the mean scores of the classes, so that weak ones are pushed down less (LOCE, Feng et al., 2021)."""

    type: Literal["equilibrium"] = "equilibrium"
    guide: Literal["score", "instances"] = Field(
        "score", description="Margins by running mean scores (replay part `mean_score`), or by training objects."
    )


class Federated(LossPart):
    """Binary cross-entropy over a random subset of the classes (Zhou et al., 2021)."""

    type: Literal["federated"] = "federated"
    subset: int = Field(50, ge=1, description="Classes per batch, those present included.")
    power: float = Field(0.5, ge=0, description="Exponent of the image counts with which classes are drawn.")
    prior: float = Field(0.01, gt=0, lt=1, description="Initial probability of every class.")


class Seesaw(LossPart):
    """Frequent classes push rarer ones down less, unless they are mistaken for them (Wang et al., 2021)."""

    type: Literal["seesaw"] = "seesaw"
    p: float = Field(0.8, ge=0, description="Strength of the mitigation by counts; 0 switches it off.")
    q: float = Field(2.0, ge=0, description="Strength of the compensation by scores; 0 switches it off.")
    eps: float = Field(0.01, gt=0, description="Smallest score of the label in the compensation.")
    sync: bool = Field(True, description="Whether regions are counted over all processes.")


class LGR(LossPart):
    """Well classified regions gain: cross-entropy weighted by its gradient (Libra R-CNN, journal version)."""

    type: Literal["lgr_ce"] = "lgr_ce"
    alpha: float = Field(0.8, gt=0, description="Smaller favours well classified regions more.")
    gamma: float = Field(1.0, gt=0, description="Weight of a region whose label has probability 0.")
    form: Literal["softmax", "sigmoid"] = Field("softmax", description="Over a softmax, or binary per class.")
    norm: Literal["target", "l1_half", "l2"] = Field(
        "target", description="Size of a row's gradient: of its label, half the absolute sum, Euclidean (softmax only)."
    )
    background_logit: bool = Field(False, description="An output for the background (sigmoid form only).")
    prior: float = Field(0.01, gt=0, lt=1, description="Initial probability of every class (sigmoid form only).")


class Bucketed(LossPart):
    """Objects push classes down by a weight that follows their counts in buckets (BCR of Libra R-CNN)."""

    type: Literal["bcr"] = "bcr"
    count: Literal["images", "instances"] = Field("images", description="What is counted per class.")
    num_buckets: int = Field(10, ge=1, description="Equal ranges of the logarithm of the count.")
    a: float = Field(0.5, description="Share of that range at which the weight is 1/2.")
    tau: float = Field(0.025, gt=0, description="Width of the step there.")
    on_background: bool = Field(False, description="Whether background regions are weighted too.")
    background_logit: bool = Field(True, description="Whether the background has an output of its own.")
    prior: float = Field(0.001, gt=0, lt=1, description="Initial probability of every output.")
    lgr: bool = Field(False, description="Whether every cell is also weighted as in the sigmoid form of `lgr_ce`.")
    lgr_alpha: float = Field(0.8, gt=0, description="alpha of that weight.")
    lgr_gamma: float = Field(1.0, gt=0, description="gamma of that weight.")


ClassificationLossSpec = Annotated[
    Softmax
    | Objectness
    | Sigmoid
    | Focal
    | BalancedSoftmax
    | ClassBalanced
    | EqualizedFocal
    | GHMC
    | GroupSoftmax
    | LDAM
    | LogitAdjusted
    | ACSL
    | Drop
    | Equalization
    | EqualizationV2
    | Equilibrium
    | Federated
    | Seesaw
    | LGR
    | Bucketed,
    Field(discriminator="type"),
    BeforeValidator(named),
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


class GHMR(Part):
    """Offsets weighted by how many have a gradient of the same size (GHM-R, Li et al., 2019)."""

    type: Literal["ghm_r"] = "ghm_r"
    mu: float = Field(0.02, gt=0, description="Offset at which the loss turns from quadratic to linear.")
    bins: int = Field(10, ge=1, description="Bins of the gradient's size.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Of the bins' counts.")
    sync: bool = Field(True, description="Whether counts are summed over processes.")


class BalancedL1(Part):
    """Small errors count more, large ones no more than others (Libra R-CNN, conference version)."""

    type: Literal["balanced_l1"] = "balanced_l1"
    alpha: float = Field(0.5, gt=0, description="How much small errors count.")
    gamma: float = Field(1.5, gt=0, description="Largest gradient.")
    beta: float = Field(1.0, gt=0, description="Where the gradient becomes constant.")
    beta_form: Literal["exact", "released"] = Field("exact", description="`released`: the authors' code if beta != 1.")


class LGRL1(Part):
    """Smooth L1 weighted to have balanced L1's gradient (Libra R-CNN, journal version)."""

    type: Literal["lgr_l1"] = "lgr_l1"
    alpha: float = Field(0.5, gt=0, description="How much small errors count.")
    gamma: float = Field(1.5, gt=0, description="Largest gradient.")
    beta: float = Field(1.0, gt=0, description="Where the gradient becomes constant.")


BoxLossSpec = Annotated[
    SmoothL1 | L1 | GIoU | GHMR | BalancedL1 | LGRL1, Field(discriminator="type"), BeforeValidator(named)
]
