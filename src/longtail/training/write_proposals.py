"""Proposals of a finished run, kept for others: :func:`proposals`."""

from __future__ import annotations

from pathlib import Path

from longtail.data.sources import Paths, read_sources
from longtail.models.proposer import Proposer
from longtail.models.two_stage import TwoStageDetector
from longtail.schema import UsageError
from longtail.training.assemble import model_from_checkpoint
from longtail.training.evaluating import find_checkpoint, run_paths_of
from longtail.training.progress import Progress, Silent
from longtail.training.proposing import TRAIN, VAL, write_proposals
from longtail.training.setup import join_processes


def proposals(
    run: Path,
    *,
    out: Path,
    train: Paths = None,
    images: Paths = None,
    val: Paths = None,
    val_images: Paths = None,
    checkpoint: str = "last",
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Path]:
    """Writes the proposals of a run's detector, for stages on cached proposals (``model.proposals.cache``).

    Args:
        run: a run's folder, or a checkpoint folder, of a two-stage detector or of a proposal network.
        out: folder for ``train.arrow`` and, with validation data, ``val.arrow``; files that are there stay.
        train, images, val, val_images: annotations and pictures, as in :func:`longtail.train`; None = those of the run.
        checkpoint: ``last`` or ``best``, when ``run`` is a run.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: told of every picture.

    Returns:
        The files.

    Raises:
        UsageError: the detector proposes nothing itself, or there are no annotations.
    """
    progress = progress or Silent()
    found, home = find_checkpoint(Path(run), checkpoint)
    if found.remark:
        progress.message(found.remark)
    model, identity = model_from_checkpoint(found.folder)
    if not isinstance(model, Proposer | TwoStageDetector):
        raise UsageError(f"{home} holds a {identity.recipe.model.type}, which proposes no regions")
    if train is None:
        paths = run_paths_of(home)
        if not paths:
            raise UsageError(f"{home} does not say what it was trained on; give --train and --images")
        train, images, val, val_images = paths["train"], paths["images"], paths["val"], paths["val_images"]
    given = {TRAIN: (train, images), VAL: (val, images if val_images is None else val_images)}
    tables = {
        name: (read_sources(data, folder, prefer=Path(name).stem), None)
        for name, (data, folder) in given.items()
        if data is not None
    }
    fabric = join_processes(device)
    write_proposals(
        Path(out),
        model.to(fabric.device),
        identity.recipe,
        tables,
        device=fabric.device,
        progress=progress,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    return [Path(out) / name for name in tables]
