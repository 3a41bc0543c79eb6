"""Puts the stages of a run together: data, detector, starting weights, optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longtail.build.augmentation import (
    copy_paste,
    detecting_images,
    stage_images,
    training_transform,
    validation_images,
)
from longtail.build.losses import auxiliary_losses
from longtail.build.model import adjust, build_model, start_calibration
from longtail.build.samplers import image_sampler, stage_sampler
from longtail.data import AnnotationTable, ClassStatistics
from longtail.data.dataset import DetectionDataset
from longtail.data.proposals import ProposalTable
from longtail.models.base import TrainableModel
from longtail.models.remap import remap_classes
from longtail.models.torchvision_weights import from_torchvision, retinanet_classes, retinanet_from_torchvision
from longtail.models.weights import load_state, read_state_dict
from longtail.replay.class_groups import require_scikit_learn
from longtail.schema import DataError, Recipe, UsageError, change_recipe
from longtail.schema import samplers as sampler_specs
from longtail.schema.detector import TwoStagePart
from longtail.schema.image_classifier import ImageClassifier as ImageClassifierSpec
from longtail.schema.passes import ClassLosses
from longtail.schema.replay import VirtualFeatures
from longtail.schema.stage import Interval, StageSpec
from longtail.training.carried import carried_state, same_counts
from longtail.training.check_stepwise import check_stepwise, classified_rows
from longtail.training.checkpoint import IDENTITY, Identity, load_result
from longtail.training.class_losses import LossPictures
from longtail.training.classifying import one_label_each
from longtail.training.exemplars import learned
from longtail.training.material import TrainingData
from longtail.training.optimiser import build_optimiser, parameter_groups
from longtail.training.proposing import check_proposals
from longtail.training.schedule import total_steps
from longtail.training.stage import Stage
from longtail.training.trainable import freeze, matches, without
from longtail.training.weight_average import WeightAverage
from longtail.training.whole_folder import DIGESTS, Located, find_damage, locate

Say = Callable[[str], None]
BACKBONE = "backbone"
TORCHVISION_CLASSIFIER = "roi_heads.box_predictor.cls_score.weight"


def has_masks(recipe: Recipe) -> bool:
    """Whether the recipe's model learns from masks and gives some."""
    return recipe.model.has_masks


def training_dataset(
    recipe: Recipe,
    table: AnnotationTable,
    images: Path | None,
    *,
    masks: bool = True,
    proposals: ProposalTable | None = None,
    chosen: NDArray[np.bool_] | None = None,
) -> DetectionDataset:
    """Training pictures with the recipe's augmentation, with their proposals where these are kept, without ``masks`` if
    they are not wanted, and with the mark of the ``chosen`` objects if only some have a loss."""
    return DetectionDataset(
        table,
        images,
        transform=training_transform(recipe.images),
        with_masks=masks and has_masks(recipe),
        copy_paste=copy_paste(recipe.images, table),
        max_pixels=recipe.images.max_pixels,
        proposals=proposals,
        top_proposals=top_proposals(recipe)[0],
        chosen=chosen,
    )


def top_proposals(recipe: Recipe) -> tuple[int, int]:
    """How many kept proposals of a picture are used in training and when detecting."""
    model = recipe.model
    return model.proposals.after_nms if isinstance(model, TwoStagePart) else (0, 0)


def refuse_early(recipe: Recipe, data: TrainingData) -> None:
    """Builds every stage's detector and the data set once, without weights, so that what does not go together is
    refused before anything is written or trained, later stages included.

    Raises:
        UsageError: parts that do not go together.
        DataError: annotations that lack what the detector needs.
    """
    training_dataset(recipe, data.table, data.images)
    if isinstance(recipe.model, ImageClassifierSpec):
        for table in (data.table, data.val_table):
            if table is not None:
                one_label_each(table)
    check_proposals(recipe, data)
    for spec in recipe.stages:
        stage_sampler(spec, data.table, seed=recipe.seed)
        model = build_model(recipe, spec, data.statistics, pretrained=False)
        check_stepwise(recipe, spec, freeze(model, spec.trainable))
        parameter_groups(model, spec.optimiser)
        check_passes(spec, model, data)


def check_passes(spec: StageSpec, model: TrainableModel, data: TrainingData) -> None:
    """Refuses passes `class_losses` that cannot be.

    Raises:
        UsageError: they want validation data that are not there, proposals nobody has made, a model without classes, or
            scikit-learn, which is not installed.
    """
    for work in (*spec.passes_before, *spec.passes_after_epoch):
        if isinstance(work, ClassLosses):
            for part in spec.replay:
                if isinstance(part, VirtualFeatures) and part.adapts:
                    require_scikit_learn(part.grouping)
            model.head_records()
            if work.source == "val" and data.val_table is None:
                raise UsageError(
                    f"stage {spec.name!r} measures class losses on validation data; give some (--val), or set the "
                    "pass's `source: holdout`"
                )
            if work.source == "holdout" and spec.proposals == "cached":
                raise UsageError(
                    f"stage {spec.name!r} takes cached proposals, and held-out images have none; set the pass's "
                    "`source: val` or proposals=network"
                )


def images_between(every: Interval, dataset_images: int) -> float:
    """An interval in images seen."""
    return every.images or (every.epochs or 1) * dataset_images


def loss_pictures(recipe: Recipe, data: TrainingData, work: ClassLosses) -> LossPictures:
    """The pictures a pass `class_losses` looks at, resized as when detecting, or augmented as in training."""
    held_out = work.source == "holdout"
    table = data.holdout if held_out else data.val_table
    assert table is not None
    table = table.without_empty()
    images = recipe.images if work.augment else detecting_images(recipe.images)
    sampler = (
        sampler_specs.Uniform()
        if work.repeat_threshold is None
        else sampler_specs.RepeatFactor(threshold=work.repeat_threshold)
    )
    kept = data.proposals
    dataset = training_dataset(
        recipe.model_copy(update={"images": images}),
        table,
        data.images if held_out else data.val_images,
        proposals=None if kept is None else kept.val,
    )
    return LossPictures(dataset, image_sampler(sampler, table, seed=0), data.statistics)


def assemble_stage(
    recipe: Recipe,
    index: int,
    data: TrainingData,
    *,
    previous: dict[str, Tensor] | None,
    weights: Path | None,
    teacher_start: dict[str, Tensor] | None,
    say: Say,
    trust: bool = False,
) -> Stage:
    """Builds stage ``index`` of a recipe with its starting weights.

    Args:
        recipe: the resolved recipe.
        index: which of its stages.
        data: what to train on.
        previous: weights the stage before ended with; None for the first stage.
        weights: a checkpoint or weights file the run starts from (first stage only).
        teacher_start: what the stage started from, when it is resumed and its teacher is that start.
        say: told what was loaded.
        trust: whether plain weights files may hold Python objects, which can run code when they are opened.
    """
    spec = recipe.stages[index]
    afresh = spec.start_from == BACKBONE or (index == 0 and weights is None)
    model = build_model(recipe, spec, data.statistics, pretrained=afresh, trust=trust)
    start = spec.start_from or (str(weights) if index == 0 and weights is not None else None)
    if start == BACKBONE:
        say(f"stage {spec.name} starts from the backbone's weights")
    elif start is not None:
        say(load_start(model, Path(start), spec, data.statistics, trust=trust))
    elif previous is not None:
        going_on = carried_state(model, previous, spec, recipe.stages[index - 1], same_data=True)
        say(load_previous(model, going_on, spec, origin="the previous stage"))
    calibration = start_calibration(model, spec)
    if calibration is not None:
        say(f"stage {spec.name}: {calibration}")
    trained = freeze(model, spec.trainable)
    say(f"stage {spec.name}: {len(trained)} of {sum(1 for _ in model.parameters())} parameter tensors train")

    teacher: TrainableModel | None = None
    if spec.teacher is not None:
        teacher = build_model(recipe, spec, data.statistics, pretrained=False)
        if spec.teacher.weights == "start":
            teacher.load_state_dict(model.state_dict() if teacher_start is None else teacher_start, strict=False)
        else:
            say("teacher: " + load_start(teacher, Path(spec.teacher.weights), spec, data.statistics, trust=trust))
        teacher.eval().requires_grad_(False)

    own_images = recipe.model_copy(update={"images": stage_images(recipe.images, spec)})
    kept, masks = data.proposals, spec.proposals != "only"
    dataset = training_dataset(
        own_images,
        data.table,
        data.images,
        masks=masks,
        proposals=None if kept is None else kept.train,
        chosen=data.chosen,
    )
    validation = None
    if data.val_table is not None:
        validation = training_dataset(
            recipe.model_copy(update={"images": validation_images(recipe.images)}),
            data.val_table,
            data.val_images,
            masks=masks,
            proposals=None if kept is None else kept.val,
        )
    passes = [*spec.passes_before, *spec.passes_after_epoch]
    return Stage(
        name=spec.name,
        model=model,
        optimiser=build_optimiser(model, spec.optimiser),
        schedule=spec.schedule,
        steps=total_steps(spec.schedule, data.table.num_images),
        dataset=dataset,
        sampler=stage_sampler(spec, learned(data), seed=recipe.seed, image_counts=data.statistics.image_counts),
        epoch_images=data.table.num_images,
        validation=validation,
        passes_before=spec.passes_before,
        passes_after_epoch=spec.passes_after_epoch,
        round_images=images_between(spec.passes_every, data.table.num_images),
        loss_pictures={work: loss_pictures(own_images, data, work) for work in passes if isinstance(work, ClassLosses)},
        teacher=teacher,
        teacher_dropout=spec.teacher is not None and spec.teacher.mode == "train",
        auxiliary=auxiliary_losses(spec.auxiliary_losses, data.statistics, rows=classified_rows(recipe)),
        clip_norm=spec.optimiser.clip_norm,
        average=None if spec.weight_average is None else WeightAverage(model, spec.weight_average),
    )


def load_previous(model: nn.Module, state: dict[str, Tensor], spec: StageSpec, *, origin: str) -> str:
    """Loads what fits from a model with the same classes; layers to start afresh, and layers of another shape (another
    classifier), keep their fresh values. Says what it did."""
    own = model.state_dict()
    wanted = set(without(own, spec.trainable.reinitialise)) if spec.trainable.reinitialise else set(own)
    fits = {name: value for name, value in state.items() if name in wanted and own[name].shape == value.shape}
    model.load_state_dict(fits, strict=False)
    fresh = sorted({name.rsplit(".", 1)[0] for name in own if name not in fits})
    return f"stage {spec.name} starts from {origin}" + (f"; fresh: {', '.join(fresh)}" if fresh else "")


def load_start(
    model: nn.Module, source: Path, spec: StageSpec, statistics: ClassStatistics, *, trust: bool = False
) -> str:
    """Loads a checkpoint, a run or a plain weights file (one that may run code only if ``trust``). Class layers of
    another label set are mapped by class name.

    Raises:
        UsageError: there is nothing at ``source``.
        DataError: the file cannot be read.
    """
    found = checkpoint_folder(source)
    if found is None:
        if not source.is_file():
            raise UsageError(f"there are no weights at {source}")
        return load_plain_file(model, source, spec, trust=trust)
    state = load_result(found.folder)
    theirs = Identity.read(found.folder)
    names = theirs.statistics.names
    remarks = [found.remark] if found.remark else []
    if list(names) != list(statistics.names):
        state, report = remap_classes(model, state, source_classes=names, target_classes=statistics.names)
        remarks.append(report.text)
    earlier = theirs.recipe.stages[theirs.stage]
    state = carried_state(model, state, spec, earlier, same_data=same_counts(theirs.statistics, statistics))
    return "; ".join([*remarks, load_previous(model, state, spec, origin=str(source))])


def load_plain_file(model: nn.Module, source: Path, spec: StageSpec, *, trust: bool = False) -> str:
    """Loads what fits from a weights file without class names; torchvision's R-CNN detectors and its RetinaNet are
    recognised. Layers of another shape stay fresh, and the text says which."""
    state = read_state_dict(source, trust=trust)
    if TORCHVISION_CLASSIFIER in state:
        state = from_torchvision(state, num_classes=len(state[TORCHVISION_CLASSIFIER]) - 1)
    dense_classes = retinanet_classes(state)
    if dense_classes is not None:
        state = retinanet_from_torchvision(state, num_classes=dense_classes)
    kept = {name: value for name, value in state.items() if not matches(name, spec.trainable.reinitialise)}
    return f"weights from {source}: {load_state(model, kept, source=str(source)).text}"


def checkpoint_folder(source: Path) -> Located | None:
    """The checkpoint folder that ``source`` stands for: itself, or the last sound one of a run; None for anything else.

    Raises:
        DataError: it is damaged.
    """
    if (source / IDENTITY).is_file():
        damage = find_damage(source) if (source / DIGESTS).is_file() else ""
        if damage:
            raise DataError(f"{damage}; use another checkpoint")
        return Located(source)
    if (source / "checkpoints").is_dir():
        return locate(source / "checkpoints" / "last")
    return None


def model_from_checkpoint(folder: Path, *, overrides: Sequence[str] = ()) -> tuple[TrainableModel, Identity]:
    """Builds the model a checkpoint belongs to and loads its weights.

    Args:
        folder: the checkpoint.
        overrides: changes of keys below ``model.inference``.

    Raises:
        UsageError: the folder is no checkpoint, or a change that is not possible.
        DataError: its weights cannot be read or do not fit.
    """
    identity = Identity.read(folder)
    identity = replace(identity, recipe=change_recipe(identity.recipe, overrides, below="model.inference"))
    model = build_model(identity.recipe, identity.recipe.stages[identity.stage], identity.statistics, pretrained=False)
    model.load_state_dict(load_result(folder), strict=False)
    adjust(model, identity.recipe.model.inference.adjust, identity.statistics)
    return model.eval(), identity


def device_of(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one, the CPU otherwise.

    Raises:
        UsageError: a GPU was asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no GPU that PyTorch can use; leave --device away or say --device cpu")
    return torch.device(name)
