"""Proposals that are made once and kept: written behind a stage of their own, or by ``longtail proposals``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from longtail.data.dataset import DetectionDataset
from longtail.data.loader import evaluation_loader
from longtail.data.proposals import ProposalTable
from longtail.data.table import AnnotationTable
from longtail.models.proposals import TopN
from longtail.models.proposer import Proposer
from longtail.models.two_stage import TwoStageDetector
from longtail.schema import Recipe, UsageError
from longtail.schema.dense import RegionProposalNetwork
from longtail.schema.detector import TwoStagePart
from longtail.training.gathering import gather_array
from longtail.training.material import KeptProposals, TrainingData
from longtail.training.progress import Progress
from longtail.training.run_directory import RunDirectory

TRAIN, VAL = "train.arrow", "val.arrow"


def propose_all(
    model: Proposer | TwoStageDetector,
    dataset: DetectionDataset,
    *,
    top: TopN,
    device: torch.device,
    batch_size: int,
    workers: int,
    progress: Progress,
    rank: int = 0,
    world_size: int = 1,
) -> ProposalTable:
    """Proposals of every picture of ``dataset``, in the frame of the original pictures.

    Each process takes its share of the pictures; the first one returns the whole table, the others an empty one. 20
    bytes a proposal are in memory at the same time.
    """
    loader = evaluation_loader(dataset, batch_size=batch_size, workers=workers, rank=rank, world_size=world_size)
    was_training = model.training
    model.eval()
    rows, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    boxes, scores = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.float32)]
    progress.start("propose", len(dataset))
    with torch.inference_mode():
        for images, targets in loader:
            found = model.propose([image.to(device) for image in images], top=top)
            for (own_boxes, own_scores), target in zip(found, targets, strict=True):
                rows.append(np.array([target["image_index"]], np.int64))
                counts.append(np.array([len(own_boxes)], np.int64))
                boxes.append(own_boxes.float().cpu().numpy())
                scores.append(own_scores.float().cpu().numpy())
            progress.advance(len(images) * world_size)
    progress.finish()
    model.train(was_training)
    own: list[NDArray[Any]] = [
        np.concatenate(rows),
        np.concatenate(counts),
        np.concatenate(boxes),
        np.concatenate(scores),
    ]
    row, count, box, score = (gather_array(column) for column in own) if world_size > 1 else own
    return ProposalTable.of(dataset.table.image_ids[row].tolist(), count, box, score)


def kept_top(recipe: Recipe) -> TopN:
    """How many proposals are kept: enough for training and for detecting."""
    spec = recipe.model
    assert isinstance(spec, TwoStagePart | RegionProposalNetwork)
    return TopN(max(spec.proposals.before_nms), max(spec.proposals.after_nms))


def write_proposals(
    folder: Path,
    model: Proposer | TwoStageDetector,
    recipe: Recipe,
    tables: Mapping[str, tuple[AnnotationTable, Path | None]],
    *,
    device: torch.device,
    progress: Progress,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Writes the proposals of several sets of pictures that are not in ``folder`` yet.

    Args:
        folder: gets one file per set.
        model: what proposes, on ``device``.
        recipe: its recipe.
        tables: name of the file -> annotations and the folder of their pictures (None = the one they name).
        device, progress, rank, world_size: as for :func:`propose_all`.
    """
    for name, (table, images) in tables.items():
        if (folder / name).is_file():
            continue
        found = propose_all(
            model,
            DetectionDataset(table, images, max_pixels=recipe.images.max_pixels),
            top=kept_top(recipe),
            device=device,
            batch_size=recipe.evaluation.batch_size,
            workers=recipe.workers,
            progress=progress,
            rank=rank,
            world_size=world_size,
        )
        if rank == 0:
            found.write(folder / name)


def write_run_proposals(
    run: RunDirectory, model: Proposer, recipe: Recipe, data: TrainingData, fabric: Fabric, progress: Progress
) -> None:
    """Writes the proposals of a run's training and validation pictures into it."""
    tables = {TRAIN: (data.table, data.images)}
    if data.val_table is not None:
        tables[VAL] = (data.val_table, data.val_images)
    write_proposals(
        run.proposals,
        model,
        recipe,
        tables,
        device=fabric.device,
        progress=progress,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    fabric.barrier()


def proposal_folder(recipe: Recipe, own: Path) -> Path:
    """Where the cached proposals of a recipe's stages lie: ``own`` is the folder of the run's own."""
    spec = recipe.model
    assert isinstance(spec, TwoStagePart)
    return own if spec.proposals.cache is None else Path(spec.proposals.cache)


def kept_proposals(recipe: Recipe, index: int, own: Path, *, val: bool) -> KeptProposals | None:
    """What a stage on cached proposals reads; None for another stage.

    Args:
        recipe, index: the stage.
        own: folder of the run's own proposals.
        val: whether those of validation pictures are needed, too.

    Raises:
        DataError: there are none, or the file is damaged.
    """
    if recipe.stages[index].proposals != "cached":
        return None
    folder = proposal_folder(recipe, own)
    return KeptProposals(ProposalTable.open(folder / TRAIN), ProposalTable.open(folder / VAL) if val else None)


def check_proposals(recipe: Recipe, data: TrainingData) -> None:
    """Refuses stages on cached proposals that nobody has made, or that lack pictures, before anything is trained.

    Raises:
        UsageError: with what to do.
        DataError: kept proposals that are damaged, or of other pictures.
    """
    spec, made = recipe.model, False
    for stage in recipe.stages:
        if stage.proposals == "cached" and isinstance(spec, TwoStagePart):
            if spec.proposals.cache is None and not made:
                raise UsageError(
                    f"stage {stage.name!r} takes cached proposals, but there are none: begin with a stage that makes "
                    "them (proposals: only), or name a folder that `longtail proposals` has written "
                    "(model.proposals.cache)"
                )
            if recipe.images.copy_paste.type != "none":
                raise UsageError("cached proposals know nothing of pasted objects; set images.copy_paste=none")
        made = made or stage.proposals == "only"
    if isinstance(spec, TwoStagePart) and spec.proposals.cache is not None:
        for name, table in ((TRAIN, data.table), (VAL, data.val_table)):
            if table is not None:
                ProposalTable.open(Path(spec.proposals.cache) / name).rows_of(table.image_ids.tolist())
