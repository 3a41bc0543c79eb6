"""From the schema's replay parts to modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from longtail.data import ClassStatistics
from longtail.replay import (
    ExchangedMoments,
    FeatureMemory,
    FeatureReplay,
    InterpolatedFeatures,
    MeanScore,
    ObjectMemory,
    TransferredFeatures,
    VirtualFeatures,
    targeted_classes,
)
from longtail.replay.virtual_features import initial_probabilities
from longtail.schema import StageSpec, UsageError
from longtail.schema import replay as replay_specs
from longtail.schema.explain import nearest
from longtail.schema.stage import Schedule

ONE_BY_ONE = Schedule(epochs=1, batch_size=1)


def mean_score(stage: StageSpec, statistics: ClassStatistics) -> MeanScore | None:
    """The mean scores of a stage, if it lists them or has a part that they guide.

    Raises:
        UsageError: they are listed twice.
    """
    listed = [spec for spec in stage.replay if isinstance(spec, replay_specs.MeanScores)]
    if len(listed) > 1:
        raise UsageError(f"stage {stage.name!r} lists mean_score {len(listed)} times; give it once")
    guided = [stage.classification_loss, *stage.replay]
    if not listed and not any(getattr(part, "guide", "") == "score" for part in guided):
        return None
    return follow(listed[0] if listed else replay_specs.MeanScores(), statistics)


def replay_parts(
    specs: Sequence[replay_specs.ReplaySpec],
    statistics: ClassStatistics,
    scores: MeanScore | None = None,
    *,
    feature_size: int,
    schedule: Schedule = ONE_BY_ONE,
) -> list[FeatureReplay]:
    """Replay parts of a stage, in order, and last the ``scores`` that guide them or the loss, if they are not listed.

    Args:
        specs: of the stage.
        statistics: of the training annotations.
        feature_size: D, width of the features in front of the classifier.
        schedule: of the stage; says how many steps a warm-up takes.

    Raises:
        UsageError: a targeted class that the data does not have.
    """
    found = [replay_part(spec, statistics, scores, feature_size=feature_size, schedule=schedule) for spec in specs]
    listed = any(isinstance(spec, replay_specs.MeanScores) for spec in specs)
    return found if scores is None or listed else [*found, as_part(scores)]


def check_stages(stage: StageSpec, count: int) -> None:
    """Refuses virtual features for stages of a cascade that the model does not have.

    Args:
        stage: of the recipe.
        count: region heads of the model, 1 without a cascade.

    Raises:
        UsageError: names the stage that is missing.
    """
    for spec in stage.replay:
        if isinstance(spec, replay_specs.VirtualFeatures) and spec.stages != "all":
            missing = [number for number in spec.stages if number >= count]
            if missing:
                raise UsageError(
                    f"stage {stage.name!r}: virtual_features has stages {list(spec.stages)}, but the model's are "
                    f"{list(range(count))}; use some of these, or `all`"
                )


def draw_in_stages(specs: Sequence[replay_specs.ReplaySpec], heads: Sequence[Sequence[FeatureReplay]]) -> None:
    """Lets the virtual features of every region head of a cascade draw, or not, as their ``stages`` say.

    Args:
        specs: of the recipe.
        heads: the parts of every head, in the order of ``specs``.
    """
    for number, own in enumerate(heads):
        for spec, part in zip(specs, own, strict=False):  # scores that nothing lists come last
            if isinstance(part, VirtualFeatures) and isinstance(spec, replay_specs.VirtualFeatures):
                part.draws = spec.stages == "all" or number in spec.stages


def as_part(scores: MeanScore) -> FeatureReplay:
    """The same object. It has a replay part's methods, but lives among the losses, which know nothing of replay."""
    return cast("FeatureReplay", scores)


def follow(spec: replay_specs.MeanScores, statistics: ClassStatistics) -> MeanScore:
    """New mean scores."""
    return MeanScore(statistics.num_classes, alpha=spec.alpha, background=spec.background, initial=spec.initial)


def replay_part(
    spec: replay_specs.ReplaySpec,
    statistics: ClassStatistics,
    scores: MeanScore | None,
    *,
    feature_size: int,
    schedule: Schedule,
) -> FeatureReplay:
    """One replay part.

    Raises:
        UsageError: a targeted class that the data does not have.
    """
    classes = statistics.num_classes
    match spec:
        case replay_specs.ObjectMemory():
            return ObjectMemory(
                classes,
                targeted(spec, statistics),
                count=spec.count,
                capacity=spec.capacity,
                draw=spec.draw,
                source=spec.source,
                storage=spec.storage,
                lazy=spec.lazy,
            )
        case replay_specs.InterpolatedFeatures():
            return InterpolatedFeatures(
                classes,
                targeted(spec, statistics),
                count=spec.count,
                neighbours=spec.neighbours,
                capacity=spec.capacity,
                storage=spec.storage,
                lazy=spec.lazy,
            )
        case replay_specs.ExchangedMoments():
            return ExchangedMoments(classes, probability=spec.probability, mixing=spec.mixing, norm=spec.norm)
        case replay_specs.TransferredFeatures():
            return TransferredFeatures(
                classes,
                feature_size,
                targeted(spec, statistics),
                count=spec.count,
                components=spec.components,
                momentum=spec.momentum,
                covariance_momentum=spec.covariance_momentum,
            )
        case replay_specs.MeanScores():
            return as_part(follow(spec, statistics) if scores is None else scores)
        case replay_specs.FeatureMemory():
            guide = (
                scores or MeanScore(classes) if spec.guide == "score" else torch.as_tensor(statistics.instance_counts)
            )
            return FeatureMemory(
                classes,
                guide,
                classes=spec.classes,
                count=spec.count,
                capacity=spec.capacity,
                arrivals=spec.arrivals,
                half=spec.half,
                storage=spec.storage,
                lazy=spec.lazy,
            )
        case replay_specs.VirtualFeatures():
            return VirtualFeatures(
                classes,
                feature_size,
                torch.as_tensor(statistics.instance_counts),
                scale=spec.scale,
                power=spec.power,
                loss_weight=spec.loss_weight,
                warmup_steps=warmup_steps(spec, statistics, schedule),
                momentum=spec.momentum,
                moment=spec.moment,
                single_sample=spec.single_sample,
                raise_factor=spec.raise_factor,
                lower_factor=spec.lower_factor,
                grouping=spec.grouping,
                groups=frequency_groups(statistics) if spec.grouping == "frequency" else None,
                eps=None if spec.eps == "auto" else spec.eps,
                min_samples=spec.min_samples,
                noise=spec.noise,
                norm=spec.norm,
                sync=spec.sync,
            )


def warmup_steps(spec: replay_specs.VirtualFeatures, statistics: ClassStatistics, schedule: Schedule) -> int:
    """Forward passes that collect moments only."""
    images = spec.warmup_epochs * statistics.num_images if spec.warmup_images is None else spec.warmup_images
    return math.ceil(images * schedule.accumulate / schedule.batch_size)


def frequency_groups(statistics: ClassStatistics) -> Tensor:
    """(C,) 0 rare, 1 common, 2 frequent, -1 without training images."""
    return torch.tensor(["rcf".find(letter) for letter in statistics.group.tolist()])


def targeted(spec: replay_specs.Targeted, statistics: ClassStatistics) -> Tensor:
    """(C,) bool, the classes that a part acts on: the named ones, or those with few training images, but some.

    Raises:
        UsageError: a named class that the data does not have; names the nearest.
    """
    images = torch.as_tensor(statistics.image_counts)
    if not spec.classes:
        return (images > 0) & targeted_classes(images, spec.max_images)
    unknown = [name for name in spec.classes if name not in statistics.names]
    if unknown:
        raise UsageError(f"replay: there is no class {unknown[0]!r}; {nearest(unknown[0], statistics.names)}")
    wanted = set(spec.classes)
    return torch.tensor([name in wanted for name in statistics.names])


def describe_replay(specs: Sequence[replay_specs.ReplaySpec], statistics: ClassStatistics) -> list[str]:
    """What the replay parts act on, printed before training."""
    return [f"replay: {spec.type} {describe_part(spec, statistics)}" for spec in specs]


def describe_part(spec: replay_specs.ReplaySpec, statistics: ClassStatistics) -> str:
    """What one replay part acts on."""
    match spec:
        case replay_specs.Targeted():
            chosen = targeted(spec, statistics).numpy()
            group = statistics.group[chosen].tolist()
            kind = "named" if spec.classes else f"at most {spec.max_images} images"
            groups = f"{group.count('r')} rare, {group.count('c')} common, {group.count('f')} frequent"
            line = f"acts on {len(group)} of {statistics.num_classes} classes ({kind}): {groups}"
            return f"{line}; {describe_rows(spec)}" if isinstance(spec, replay_specs.ObjectMemory) else line
        case replay_specs.ExchangedMoments():
            return f"changes objects' features in {100 * spec.probability:g} % of the steps"
        case replay_specs.MeanScores():
            return (
                f"follows the scores of {statistics.num_classes} classes with alpha {spec.alpha:g}, "
                f"background {spec.background:g}"
            )
        case replay_specs.FeatureMemory():
            by = "their mean scores" if spec.guide == "score" else "their training objects"
            return (
                f"adds {spec.count} rows of each of {spec.classes} classes drawn by the inverse of {by}, "
                f"from {spec.capacity} rows of every class"
            )
        case replay_specs.VirtualFeatures():
            return describe_virtual(spec, statistics)


def describe_rows(spec: replay_specs.ObjectMemory) -> str:
    """Which rows an object memory adds."""
    if spec.source == "current":
        return f"repeats {spec.count} rows of each in the step"
    which = "the newest" if spec.draw == "newest" else "drawn"
    return f"replays at most {spec.count} rows of each in the step, {which} of its last {spec.capacity}"


def describe_virtual(spec: replay_specs.VirtualFeatures, statistics: ClassStatistics) -> str:
    """How many virtual features are drawn, and which groups of classes get them."""
    chance = initial_probabilities(
        torch.as_tensor(statistics.instance_counts), scale=spec.scale, power=spec.power
    ).numpy()
    total = float(chance.sum())
    shares = [
        f"{100 * float(chance[statistics.group == letter].sum()) / max(total, 1e-300):.0f} % {name}"
        for letter, name in (("r", "rare"), ("c", "common"), ("f", "frequent"))
    ]
    how = f"adapted by {spec.grouping}" if spec.adapts else "static"
    images = spec.warmup_epochs * statistics.num_images if spec.warmup_images is None else spec.warmup_images
    where = "" if spec.stages == "all" else f", in stages {list(spec.stages)} of the cascade"
    return (
        f"draws {total:.3g} rows per step at first ({', '.join(shares)}), {how}, after {images:g} images for the "
        f"moments alone{where}"
    )
