"""Runs a picture classifier over pictures."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from longtail.data.dataset import DetectionDataset
from longtail.data.loader import evaluation_loader
from longtail.data.statistics import ClassStatistics
from longtail.data.table import AnnotationTable
from longtail.evaluation import EvaluationResult
from longtail.evaluation.classification import top1
from longtail.models.image_classifier import ImageClassifier
from longtail.schema import DataError
from longtail.training.gathering import gather_array
from longtail.training.progress import Progress


def classify_all(
    model: ImageClassifier,
    dataset: DetectionDataset,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    progress: Progress,
    rank: int = 0,
    world_size: int = 1,
) -> NDArray[np.float64]:
    """Scores (I, C) of every picture of ``dataset``. Each process takes its share; the first one returns them all, the
    others none."""
    loader = evaluation_loader(dataset, batch_size=batch_size, workers=workers, rank=rank, world_size=world_size)
    was_training = model.training
    model.eval()
    rows, scores = [np.zeros(0, np.int64)], [np.zeros((0, model.head.num_classes), np.float64)]
    progress.start("classify", len(dataset))
    with torch.inference_mode():
        for images, targets in loader:
            found = model.classify([image.to(device) for image in images])
            scores.append(found.double().cpu().numpy())
            rows.append(np.array([int(target["image_index"]) for target in targets], np.int64))
            progress.advance(len(images) * world_size)
    progress.finish()
    model.train(was_training)
    row, score = np.concatenate(rows), np.concatenate(scores)
    if world_size > 1:
        row, score = gather_array(row), gather_array(score)
    return np.asarray(score[np.argsort(row, kind="stable")], dtype=np.float64)


def one_label_each(table: AnnotationTable) -> None:
    """Refuses annotations that do not give every picture exactly one label.

    Raises:
        DataError: names the first picture that differs.
    """
    objects = np.diff(table.image_start)
    if (objects != 1).any():
        row = int(np.flatnonzero(objects != 1)[0])
        raise DataError(
            f"{table.source}: {table.file_names[row]} has {int(objects[row])} objects, but pictures that are "
            "classified have one label each; `longtail pictures` cuts objects out into a folder of pictures by class"
        )


def measure(
    model: ImageClassifier,
    truth: AnnotationTable,
    statistics: ClassStatistics,
    dataset: DetectionDataset,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    progress: Progress,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, EvaluationResult]:
    """Accuracy on ``truth``, under the name ``picture``; nothing on other processes than the first."""
    one_label_each(truth)
    scores = classify_all(
        model,
        dataset,
        device=device,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        rank=rank,
        world_size=world_size,
    )
    return {"picture": top1(scores, truth, statistics)} if rank == 0 else {}
