"""Looks at finished runs: what their errors are, and what region samplers would choose among their proposals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from longtail.data import AnnotationTable, Classes, match_categories
from longtail.data.dataset import DetectionDataset
from longtail.data.sources import as_list, read_sources
from longtail.evaluation import DetectionTable, ErrorAnalysis, analyse_errors
from longtail.evaluation.removed_errors import ErrorCurves, remove_errors
from longtail.models.proposals import ProposalNetwork
from longtail.models.rcnn import RCNN
from longtail.sampling import IoUBalancedNegatives, OnlineHardExamples, RandomRegions
from longtail.schema import DataError, UsageError
from longtail.training.assemble import device_of, model_from_checkpoint
from longtail.training.checkpoint import Identity
from longtail.training.evaluating import find_checkpoint, run_validation
from longtail.training.progress import Progress
from longtail.training.region_probe import Chosen, probe_regions
from longtail.training.run_directory import RunDirectory


@dataclass(frozen=True, eq=False)
class Probe:
    """Regions of some pictures.

    Attributes:
        chosen: one entry per picture.
        negative_iou: the run's IoU below which a candidate is negative.
        dataset: the pictures.
    """

    chosen: list[Chosen]
    negative_iou: float
    dataset: DetectionDataset

    def overlaps(self) -> dict[str, NDArray[np.float64]]:
        """By sampler, the IoU of all its negatives."""
        names = self.chosen[0].negatives
        return {name: np.concatenate([one.negative_iou[name] for one in self.chosen]) for name in names}

    def picture(self, index: int = 0) -> Image.Image:
        """The picture of one entry, in the frame of the boxes."""
        image, _ = self.dataset[self.chosen[index].image_index]
        return Image.fromarray(image.permute(1, 2, 0).numpy())


def errors_of(run: Path) -> tuple[ErrorCurves, ErrorAnalysis]:
    """Error analysis of a run's boxes on its own validation pictures.

    Raises:
        UsageError: no run, or one without validation data or evaluation.
    """
    found, home = find_checkpoint(run, "last")
    identity = Identity.read(found.folder)
    results = RunDirectory(home).evaluation("val") / "results.bbox.json"
    paths, _ = run_validation(home)
    if not results.is_file():
        raise UsageError(f"{home} has no detections yet; run `longtail eval {home}` first")
    truth = read_sources(paths, None, prefer="val", pictures=False)
    classes = Classes(identity.category_ids, list(identity.statistics.names), str(found.folder))
    truth = truth.relabelled(match_categories(classes, truth), classes)
    detections = DetectionTable.from_coco_results(results, truth)
    groups = supercategories(as_list(paths), truth)
    return remove_errors(detections, truth, supercategory=groups), analyse_errors(detections, truth)


def supercategories(paths: Sequence[str | Path], truth: AnnotationTable) -> list[str] | None:
    """The supercategory of every class, from a single plain JSON file whose classes all have one; otherwise None."""
    if len(paths) != 1 or not str(paths[0]).endswith(".json"):
        return None
    entries = orjson.loads(Path(paths[0]).read_bytes())["categories"]
    known = {entry["id"]: entry.get("supercategory") for entry in entries}
    found = [known.get(number) for number in truth.category_ids.tolist()]
    return [str(name) for name in found] if all(found) else None


def probe(run: Path, *, pictures: int, picture: str | None, seed: int, device: str, progress: Progress) -> Probe:
    """Lets random, IoU-balanced and hard-example sampling choose among a run's proposals in training pictures.

    Args:
        run: of a detector with a region head.
        pictures: how many, drawn by ``seed`` from those with objects.
        picture: file name of the only one instead; ``""`` = the one with most objects.
        seed: of the draws.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: told of every picture.

    Raises:
        UsageError: no such run or picture, or another kind of detector.
        DataError: pictures that cannot be read.
    """
    found, home = find_checkpoint(run, "last")
    model, identity = model_from_checkpoint(found.folder)
    if not isinstance(model, RCNN):
        raise UsageError(f"{type(model).__name__} samples no regions; use a run of Faster or Mask R-CNN")
    if not isinstance(model.rpn, ProposalNetwork):
        raise UsageError(f"{run} reads its proposals from a table; use a run that makes its own")
    file = RunDirectory(home).data
    if not file.is_file():
        raise UsageError(f"{run} is a checkpoint; its run's folder names the training pictures")
    paths = json.loads(file.read_text(encoding="utf-8"))["paths"]
    table = read_sources(paths["train"], paths["images"], prefer="train")
    dataset = DetectionDataset(table, max_pixels=identity.recipe.images.max_pixels)
    objects = np.diff(table.image_start)
    if picture is None:
        filled = np.flatnonzero(objects)
        if not len(filled):
            raise DataError(f"{table.source} has no objects")
        rows = np.random.default_rng(seed).permutation(filled)[:pictures]
    elif picture:
        if picture not in table.file_names:
            raise UsageError(f"no training picture is called {picture}")
        rows = np.array([list(table.file_names).index(picture)])
    else:
        rows = np.array([int(objects.argmax())])
    own = model.box.sampler
    limit = model.box.matcher.low
    count, fraction = own.count, own.positive_fraction
    samplers = {
        "random": RandomRegions(count, fraction),
        "IoU-balanced": IoUBalancedNegatives(count, fraction, negative_iou=limit),
        "hard examples": OnlineHardExamples(count, fraction),
    }
    chosen = probe_regions(
        model, model.rpn, dataset, np.sort(rows), samplers, device=device_of(device), seed=seed, progress=progress
    )
    return Probe(chosen, limit, dataset)
