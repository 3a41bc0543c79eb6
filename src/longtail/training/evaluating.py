"""Evaluation of detectors in training, of finished runs, and prediction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from longtail.build.model import adjust
from longtail.data import AnnotationTable, Classes, ClassStatistics, match_categories
from longtail.data.dataset import DetectionDataset
from longtail.data.files import write_json
from longtail.data.proposals import ProposalTable
from longtail.data.sources import Paths, read_sources
from longtail.evaluation import DetectionTable, EvaluationResult
from longtail.evaluation import evaluate as evaluate_detections
from longtail.models.base import TrainableModel
from longtail.models.image_classifier import ImageClassifier
from longtail.schema import Recipe, UsageError, change_recipe
from longtail.schema.dense import RegionProposalNetwork
from longtail.schema.detector import DeformableDETR, DetectorPart
from longtail.schema.image_classifier import ImageClassifier as ImageClassifierSpec
from longtail.training.assemble import checkpoint_folder, device_of, has_masks, model_from_checkpoint, top_proposals
from longtail.training.checkpoint import Identity
from longtail.training.classifying import measure
from longtail.training.detecting import detect_all
from longtail.training.independent import as_detector, independent, run_proposals
from longtail.training.material import TrainingData
from longtail.training.progress import Progress, Silent
from longtail.training.run_directory import RunDirectory
from longtail.training.setup import join_processes, on_first
from longtail.training.whole_folder import Located, locate


def evaluate_model(
    model: TrainableModel, recipe: Recipe, data: TrainingData, fabric: Fabric, progress: Progress
) -> dict[str, EvaluationResult]:
    """Metrics of a model on the validation data, by IoU type; of a classifier of pictures under ``picture``."""
    assert data.val_table is not None
    if isinstance(model, ImageClassifier):
        adjust(model, recipe.model.inference.adjust, data.statistics)
        pictures = DetectionDataset(data.val_table, data.val_images, max_pixels=recipe.images.max_pixels)
        found = classify(model, data.val_table, data.statistics, pictures, recipe, fabric, progress)
        return on_first(fabric, lambda: found)
    detector = as_detector(model)
    adjust(detector, recipe.model.inference.adjust, data.statistics)
    kept = None if data.proposals is None else data.proposals.val
    dataset = plain_pictures(recipe, data.val_table, data.val_images, proposals=kept)
    detections = detect_all(
        detector,
        dataset,
        device=fabric.device,
        batch_size=recipe.evaluation.batch_size,
        workers=recipe.workers,
        progress=progress,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    truth = data.val_table
    protocol = "proposals" if without_classes(recipe) else recipe.evaluation.protocol
    kinds = ["bbox", "segm"] if has_masks(recipe) and truth.masks is not None else ["bbox"]

    def measured() -> dict[str, EvaluationResult]:
        return {
            kind: evaluate_detections(detections, truth, protocol=protocol, iou_type=kind, training=data.statistics)
            for kind in kinds
        }

    return on_first(fabric, measured)


def classify(
    model: ImageClassifier,
    truth: AnnotationTable,
    statistics: ClassStatistics,
    pictures: DetectionDataset,
    recipe: Recipe,
    fabric: Fabric,
    progress: Progress,
) -> dict[str, EvaluationResult]:
    """Accuracy of a classifier of pictures; nothing on other processes than the first."""
    return measure(
        model,
        truth,
        statistics,
        pictures,
        device=fabric.device,
        batch_size=recipe.evaluation.batch_size,
        workers=recipe.workers,
        progress=progress,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )


def plain_pictures(
    recipe: Recipe, table: AnnotationTable, images: Path | None, *, proposals: ProposalTable | None
) -> DetectionDataset:
    """Pictures to detect objects in, with their kept proposals if there are any."""
    return DetectionDataset(
        table,
        images,
        max_pixels=recipe.images.max_pixels,
        proposals=proposals,
        top_proposals=top_proposals(recipe)[1],
    )


def write_results(folder: Path, results: dict[str, EvaluationResult], *, split: str) -> None:
    """``metrics.json`` for all IoU types together, and a folder with the details of each; both name the ``split``."""
    for kind, result in results.items():
        result.settings["split"] = split
        result.write(folder / kind)
    write_json(folder / "metrics.json", {kind: result.to_dict() for kind, result in results.items()})


def evaluate(
    run: Path,
    *,
    data: Paths = None,
    images: Paths = None,
    detections: Path | None = None,
    protocols: Sequence[str] = ("auto",),
    split: str = "val",
    checkpoint: str = "last",
    device: str = "auto",
    progress: Progress | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, dict[str, EvaluationResult]]:
    """Evaluates a run or a checkpoint folder and writes results below ``<run>/eval/<split>``.

    Args:
        run: a run's folder, or a checkpoint folder.
        data, images: annotations of any format and their image folder, as in :func:`longtail.train`; None = the run's
            own validation data.
        detections: a results file to evaluate instead of what the run detects, in the class ids of the run, with masks
            or without; pictures are then not needed.
        protocols: ``auto``, ``lvis``, ``coco``, ``voc``, ``fixed``, ``pool``, ``bins``,
            ``proposals``; a region proposal network has the last one alone, which is its ``auto``.
        split: name of the folder the results go to.
        checkpoint: ``last`` or ``best``, when ``run`` is a run.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: told of every picture.
        overrides: changes of keys below ``model.inference``, as ``key.path=value``; the run's own recipe stays.

    Started by ``torchrun``, the processes share the pictures; the first one measures and writes, all return the result.

    Returns:
        protocol -> IoU type -> result.

    Raises:
        UsageError: no run, or no data to evaluate on.
        DataError: the annotations' classes are not the model's.
    """
    progress = progress or Silent()
    found, home = find_checkpoint(Path(run), checkpoint)
    if found.remark:
        progress.message(found.remark)
    if overrides and detections is not None:
        raise UsageError("detections are evaluated as they are; settings change only what the model detects")
    identity = Identity.read(found.folder)
    recipe = change_recipe(identity.recipe, overrides, below="model.inference")
    if without_classes(recipe) and not set(protocols) <= {"auto", "proposals"}:
        raise UsageError("a region_proposal_network finds no classes; of the protocols only 'proposals' measures it")
    own_data = data is None
    if data is None:
        data, images = run_validation(home)
    truth = read_sources(data, images, prefer="val", pictures=detections is None)
    for note in truth.notes:
        progress.message(note)
    classes = Classes(identity.category_ids, list(identity.statistics.names), str(found.folder))
    truth = truth.relabelled(match_categories(classes, truth), classes)
    fabric = join_processes(device)
    if isinstance(recipe.model, ImageClassifierSpec):
        if detections is not None or list(protocols) != ["auto"]:
            raise UsageError("a classifier of pictures has its accuracy alone; leave protocols and detections away")
        model, _ = model_from_checkpoint(found.folder, overrides=overrides)
        assert isinstance(model, ImageClassifier)
        pictures = DetectionDataset(truth, max_pixels=recipe.images.max_pixels)
        accuracy = classify(model.to(fabric.device), truth, identity.statistics, pictures, recipe, fabric, progress)
        if accuracy:
            write_results(RunDirectory(home).evaluation(split), accuracy, split=split)
        return on_first(fabric, lambda: {"auto": accuracy})
    if detections is not None:
        table = DetectionTable.from_coco_results(detections, truth)
    else:
        uncapped = "fixed" in protocols or "pool" in protocols
        model, _ = model_from_checkpoint(found.folder, overrides=overrides)
        kept = run_proposals(identity, home) if own_data else None
        dataset = plain_pictures(recipe, truth, None, proposals=kept)
        table = detect_all(
            (as_detector(model) if kept is not None else independent(model, identity, home)).to(fabric.device),
            dataset,
            device=fabric.device,
            batch_size=recipe.evaluation.batch_size,
            workers=recipe.workers,
            progress=progress,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            detections_per_image=10_000 if uncapped else None,
        )
    with_masks = has_masks(recipe) if detections is None else table.rles is not None
    kinds = ["bbox", "segm"] if with_masks and truth.masks is not None else ["bbox"]
    cap = detections_per_image(recipe)

    def measured() -> dict[str, dict[str, EvaluationResult]]:
        results: dict[str, dict[str, EvaluationResult]] = {}
        for protocol in protocols:
            given = table if protocol in ("fixed", "pool") else table.cap_per_image(cap)
            name = "proposals" if without_classes(recipe) else protocol
            results[protocol] = {
                kind: evaluate_detections(given, truth, protocol=name, iou_type=kind, training=identity.statistics)
                for kind in (["bbox"] if name == "proposals" else kinds)
            }
            for result in results[protocol].values() if overrides else ():
                result.settings["overrides"] = list(overrides)
            name = split if protocol == "auto" else f"{split}-{protocol}"
            write_results(RunDirectory(home).evaluation(name), results[protocol], split=split)
        given = table.cap_per_image(cap)
        for kind in [] if without_classes(recipe) else kinds:
            file = RunDirectory(home).evaluation(split) / f"results.{kind}.json"
            write_json(file, given.to_coco_results(truth, kind))
        return results

    return on_first(fabric, measured)


def predict(
    run: Path,
    images: Path,
    *,
    out: Path,
    score_threshold: float = 0.3,
    checkpoint: str = "last",
    device: str = "auto",
    progress: Progress | None = None,
) -> Path:
    """Detects objects in pictures without annotations.

    Args:
        run: a run's folder, or a checkpoint folder.
        images: a picture or a folder of pictures.
        out: folder for ``predictions.json``: ``images`` (id, file_name), ``categories`` (original ids and names,
            ``frequency`` group) and ``annotations`` in COCO's results form, boxes with masks if the detector has them.
        score_threshold: detections below are left out, in [0, 1].
        checkpoint, device, progress: as in :func:`evaluate`.

    Returns:
        The path of ``predictions.json``.
    """
    progress = progress or Silent()
    found, home = find_checkpoint(Path(run), checkpoint)
    if found.remark:
        progress.message(found.remark)
    found_model, identity = model_from_checkpoint(found.folder)
    if isinstance(found_model, ImageClassifier):
        raise UsageError(
            "predict shows detected objects, and this run classifies whole pictures; `longtail eval` measures it, and "
            "ImageClassifier.classify gives the scores of pictures"
        )
    if without_classes(identity.recipe):
        raise UsageError(f"{home} holds a region_proposal_network, which finds no classes; see `longtail proposals`")
    model = independent(found_model, identity, home)
    classes = (list(identity.statistics.names), identity.category_ids)
    root = images if Path(images).is_dir() else Path(images).parent
    table = AnnotationTable.from_image_list(Path(images), categories=classes)
    target = device_of(device)
    model.to(target)
    detections = detect_all(
        model,
        DetectionDataset(table, Path(root), max_pixels=identity.recipe.images.max_pixels),
        device=target,
        batch_size=identity.recipe.evaluation.batch_size,
        workers=identity.recipe.workers,
        progress=progress,
    )
    detections = detections.select(detections.score >= score_threshold)
    entries = detections.to_coco_results(table, "bbox")
    if detections.rles is not None:
        entries = [a | b for a, b in zip(entries, detections.to_coco_results(table, "segm"), strict=True)]
    content = {
        "images": [
            {"id": image_id, "file_name": name}
            for image_id, name in zip(table.image_ids.tolist(), table.file_names, strict=True)
        ],
        "categories": [
            {"id": category, "name": name, "frequency": group}
            for category, name, group in zip(
                identity.category_ids, identity.statistics.names, identity.statistics.group.tolist(), strict=True
            )
        ],
        "annotations": entries,
    }
    path = Path(out) / "predictions.json"
    write_json(path, content)
    return path


def detections_per_image(recipe: Recipe) -> int:
    """How many detections of a picture a detector keeps."""
    assert isinstance(recipe.model, DetectorPart | DeformableDETR | RegionProposalNetwork)
    return recipe.model.inference.detections_per_image


def without_classes(recipe: Recipe) -> bool:
    """Whether the recipe's detector finds boxes without classes."""
    return isinstance(recipe.model, RegionProposalNetwork)


def find_checkpoint(source: Path, which: str) -> tuple[Located, Path]:
    """The sound checkpoint folder ``source`` stands for, and the folder results belong to.

    Raises:
        UsageError: there is none.
        DataError: it is damaged.
    """
    run = RunDirectory(source)
    if run.recipe.is_file():
        return locate(run.last if which == "last" else run.best), source
    found = checkpoint_folder(source)
    if found is None:
        raise UsageError(f"{source} is neither a run nor a checkpoint")
    return found, found.folder


def run_paths_of(home: Path) -> dict[str, Any]:
    """Annotations and pictures a run was started with; nothing for a checkpoint folder."""
    file = RunDirectory(home).data
    paths: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["paths"] if file.is_file() else {}
    return paths


def run_validation(home: Path) -> tuple[Paths, Paths]:
    """Annotations and image folder of a run's own validation data.

    Raises:
        UsageError: the run had none.
    """
    paths = run_paths_of(home)
    if not paths.get("val"):
        raise UsageError(f"{home} was trained without validation data; give --data and --images")
    return paths["val"], paths["val_images"]
