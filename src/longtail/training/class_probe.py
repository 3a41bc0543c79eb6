"""How well a finished run knows its classes: what its classifier says about the objects' own boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.data import AnnotationTable, Classes, ClassStatistics, match_categories
from longtail.data.dataset import DetectionDataset
from longtail.data.sources import read_sources
from longtail.models.image_classifier import ImageClassifier
from longtail.models.two_stage import Pyramid, TwoStageDetector, height_width
from longtail.schema import UsageError
from longtail.training.assemble import device_of, model_from_checkpoint
from longtail.training.checkpoint import Identity
from longtail.training.evaluating import find_checkpoint, run_paths_of, run_validation
from longtail.training.progress import Progress

Split = Literal["val", "train"]


@dataclass(frozen=True, eq=False)
class ClassProbe:
    """What a classifier says about objects.

    Attributes:
        statistics: of the run's training data.
        objects: (C,) how many objects of every class were looked at.
        score: (C,) mean score of their own class, in 0..1; NaN without objects.
        accuracy: (C,) share of them whose highest score, the background's included, is their own class; likewise.
    """

    statistics: ClassStatistics
    objects: NDArray[np.int64]
    score: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def probe_classes(run: Path, *, split: Split, pictures: int | None, device: str, progress: Progress) -> ClassProbe:
    """Classifies the objects of a run's own pictures by their boxes, without proposals: a region head pools every
    object's box, those of a cascade one after the other, as when detecting. Pictures are as at test time; objects that
    are crowds or ignored are left out.

    Args:
        run: of a two-stage detector or a classifier of pictures.
        split: the run's validation or training pictures.
        pictures: the first so many with objects; None = all.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: told of every picture.

    Raises:
        UsageError: no such run, pictures it does not know, or another kind of model.
        DataError: pictures that cannot be read.
    """
    found, home = find_checkpoint(run, "last")
    model, identity = model_from_checkpoint(found.folder)
    if not isinstance(model, TwoStageDetector | ImageClassifier):
        raise UsageError(
            f"{run}: {type(model).__name__} has no classifier of regions; use a run of Faster, Mask or Cascade R-CNN "
            "or of an image classifier"
        )
    table = own_pictures(home, identity, str(found.folder), split)
    dataset = DetectionDataset(table, max_pixels=identity.recipe.images.max_pixels)
    chosen = device_of(device)
    model.eval().to(chosen)
    classes = len(identity.statistics.names)
    sums = torch.zeros(3, classes, dtype=torch.float64)
    rows = np.flatnonzero(np.diff(table.image_start))[:pictures].tolist()
    progress.start("classify objects", len(rows))
    for row in rows:
        image, target = dataset[row]
        labels = target["labels"]
        if len(labels):
            scores = own_scores(model, image.to(chosen), target["boxes"].to(chosen)).double().cpu()
            own = scores.gather(1, labels[:, None]).squeeze(1)
            hit = (scores.argmax(dim=1) == labels).double()
            sums.index_add_(1, labels, torch.stack([torch.ones_like(own), own, hit]))
        progress.advance(1)
    progress.finish()
    objects, score, hits = sums.numpy()
    with np.errstate(invalid="ignore"):
        return ClassProbe(identity.statistics, objects.astype(np.int64), score / objects, hits / objects)


@torch.no_grad()
def own_scores(model: TwoStageDetector | ImageClassifier, image: Tensor, boxes: Tensor) -> Tensor:
    """Scores (G, C + 1) of the boxes (G, 4) in a picture, or (1, C) of the picture."""
    if isinstance(model, ImageClassifier):
        return model.classify([image])
    batch, scaled = model.preprocess([image], [{"boxes": boxes}], resize=True)
    pyramid = Pyramid(model.backbone(batch.tensors), height_width(batch.tensors), batch.image_sizes)
    return model.region_predictions(pyramid, [scaled[0]["boxes"]]).scores


def own_pictures(home: Path, identity: Identity, origin: str, split: Split) -> AnnotationTable:
    """Annotations of a run's validation or training pictures, with the classes of its model.

    Raises:
        UsageError: the run does not know them.
    """
    if split == "val":
        paths, images = run_validation(home)
    else:
        known = run_paths_of(home)
        if not known:
            raise UsageError(f"{home} is a checkpoint; its run's folder names the training pictures")
        paths, images = known["train"], known["images"]
    table = read_sources(paths, images, prefer=split)
    classes = Classes(identity.category_ids, list(identity.statistics.names), origin)
    return table.relabelled(match_categories(classes, table), classes)
