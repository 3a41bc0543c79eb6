"""Scores of training objects by the trained model, and smooth-tail data for later stages (step-wise learning)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from longtail.data import AnnotationTable
from longtail.data.dataset import DetectionDataset
from longtail.data.loader import evaluation_loader
from longtail.data.object_scores import ObjectScores, scored_rows, with_annotations
from longtail.models.base import Detector
from longtail.sampling.exemplars import class_parts, select_exemplars, smooth_tail_split
from longtail.schema import DataError, Recipe
from longtail.schema.stepwise import Exemplars
from longtail.training.gathering import gather_array
from longtail.training.material import TrainingData
from longtail.training.progress import Progress
from longtail.training.run_directory import RunDirectory

SCORES = "exemplar_scores.arrow"


def score_objects(
    model: Detector,
    table: AnnotationTable,
    images: Path | None,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    progress: Progress,
    max_pixels: int,
    rank: int = 0,
    world_size: int = 1,
) -> ObjectScores:
    """Scores of all objects of a table with pictures as when detecting; on the first process, none on the others.

    Crowds, ignored objects and boxes without area are not scored. Each process takes its share of the pictures.
    """
    counted = np.zeros(len(table.label), dtype=np.bool_)
    counted[scored_rows(table)] = True
    scored = with_annotations(table, counted)
    dataset = DetectionDataset(scored, images, max_pixels=max_pixels)
    loader = evaluation_loader(dataset, batch_size=batch_size, workers=workers, rank=rank, world_size=world_size)
    was_training = model.training
    model.eval()
    place = [np.zeros(0, np.int64)]
    values = [np.zeros((0, 2), np.float32)]
    progress.start("score objects", len(dataset))
    with torch.inference_mode():
        for pictures, targets in loader:
            on_device = [
                {"boxes": target["boxes"].to(device), "labels": target["labels"].to(device)} for target in targets
            ]
            found = model.score_objects([picture.to(device) for picture in pictures], on_device)
            for own, target in zip(found, targets, strict=True):
                rows = scored.rows_of(target["image_index"])
                place.append(np.arange(rows.start, rows.stop, dtype=np.int64))
                values.append(own.cpu().numpy())
            progress.advance(len(pictures) * world_size)
    progress.finish()
    model.train(was_training)
    position, pairs = np.concatenate(place), np.concatenate(values)
    if world_size > 1:
        position, pairs = gather_array(position), gather_array(pairs)
    order = np.argsort(position, kind="stable")
    return ObjectScores(np.flatnonzero(counted)[position[order]], pairs[order, 0], pairs[order, 1])


def write_run_scores(
    folder: Path, model: Detector, recipe: Recipe, data: TrainingData, fabric: Fabric, progress: Progress
) -> None:
    """Scores a run's training objects and writes the scores into the folder of a stage, unless they are there."""
    file = folder / SCORES
    there = bool(fabric.broadcast(file.is_file()))
    if there:
        return
    found = score_objects(
        model,
        data.table,
        data.images,
        device=fabric.device,
        batch_size=recipe.evaluation.batch_size,
        workers=recipe.workers,
        progress=progress,
        max_pixels=recipe.images.max_pixels,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    if fabric.is_global_zero:
        found.write(file, data.table)
    fabric.barrier()


def scores_file(recipe: Recipe, index: int, run: RunDirectory) -> Path:
    """Where the scores for a stage with exemplars lie: the file it names, or that of the last stage before it that has
    written some."""
    spec = recipe.stages[index].exemplars
    assert spec is not None
    if spec.scores is not None:
        return Path(spec.scores)
    scoring = max(number for number, stage in enumerate(recipe.stages[:index]) if stage.passes_after)
    return run.stage(scoring, recipe.stages[scoring].name) / SCORES


def learned(data: TrainingData) -> AnnotationTable:
    """The training table with the objects that have a loss alone."""
    return data.table if data.chosen is None else with_annotations(data.table, data.chosen)


def stage_data(recipe: Recipe, index: int, data: TrainingData, run: RunDirectory) -> tuple[TrainingData, list[str]]:
    """What a stage trains on, of the data of the run, and lines on it for the log.

    Raises:
        DataError: there are no scores to choose by, or they are not of these annotations.
    """
    spec = recipe.stages[index].exemplars
    if spec is None:
        return data, []
    return exemplar_data(spec, data, ObjectScores.open(scores_file(recipe, index, run), data.table))


def exemplar_data(spec: Exemplars, data: TrainingData, scores: ObjectScores) -> tuple[TrainingData, list[str]]:
    """The exemplars among training data, with their pictures, and lines on them for the log.

    Raises:
        DataError: there are none.
    """
    table, images = data.table, data.statistics.image_counts
    limits = smooth_tail_split(images, edges=spec.edges, counts=spec.counts)
    rows = scores.rows
    selected = select_exemplars(
        table.label[rows],
        scores.own if spec.score == "own_class" else scores.best,
        table.image_index[rows],
        limits,
        ids=table.annotation_ids[rows],
        confidence=spec.confidence,
        one_per_image=spec.one_per_image,
    )
    mask = np.zeros(len(table.label), dtype=np.bool_)
    mask[rows[selected]] = True
    if not mask.any():
        raise DataError(f"{table.source} has no object of a class that exemplars are taken of; raise exemplars.counts")
    kept = with_annotations(table, mask)
    lines = describe_chosen(spec, data, kept)
    if spec.unselected == "drop":
        return replace(data, table=kept), lines
    holding = np.unique(table.image_index[mask]).astype(np.int64)
    chosen = mask[np.isin(table.image_index, holding)]
    return replace(data, table=table.select(holding), chosen=chosen), lines


def describe_chosen(spec: Exemplars, data: TrainingData, kept: AnnotationTable) -> list[str]:
    """Sizes of the set as a whole and of every part."""
    images = data.statistics.image_counts
    part = class_parts(images, spec.edges)
    objects = np.bincount(kept.label, minlength=kept.num_classes)
    lines = [f"exemplars: {len(kept.label)} objects of {len(data.table.label)}, in {kept.num_images} images"]
    borders = [0, *spec.edges]
    for number, count in enumerate(spec.counts):
        own = part == number
        until = f"to {spec.edges[number] - 1}" if number < len(spec.edges) else "or more"
        lines.append(
            f"  {int(own.sum())} classes with {borders[number]} {until} images: {int(objects[own].sum())} objects, "
            + ("all of each" if count == "all" else f"at most {count} of each")
        )
    return lines
