"""When weights are written: the checkpoint a run resumes from, and the best one."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning_fabric import Fabric

from longtail.evaluation import EvaluationResult
from longtail.schema import UsageError
from longtail.training import checkpoint as checkpoints
from longtail.training.checkpoint import Cursor, Identity
from longtail.training.run_directory import RunDirectory


def last_checkpoint(run: RunDirectory) -> Path | None:
    """The checkpoint to resume from; None if the run ended before its first one."""
    try:
        return checkpoints.locate(run.last)
    except UsageError:
        return None


def save_last(
    run: RunDirectory,
    fabric: Fabric,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    cursor: Cursor,
    identity: Identity,
) -> None:
    """Writes the checkpoint a run resumes from, with the state of every process."""
    folder = run.last.with_name(f".{run.last.name}.new")
    if fabric.is_global_zero:
        folder = checkpoints.begin(run.last)
        checkpoints.save_weights(folder, model, identity)
        checkpoints.save_trainer(folder, optimiser, cursor)
    fabric.barrier()
    checkpoints.save_rank(folder, model, fabric.global_rank)
    fabric.barrier()
    if fabric.is_global_zero:
        checkpoints.commit(folder, run.last)
    fabric.barrier()


def keep_best(
    run: RunDirectory,
    fabric: Fabric,
    model: torch.nn.Module,
    identity: Identity,
    results: dict[str, EvaluationResult],
    cursor: Cursor,
) -> None:
    """Saves the weights if they are the best so far, by mask AP where there are masks, by box AP otherwise."""
    value = results["segm" if "segm" in results else "bbox"].metrics["AP"]
    if value is None or value <= cursor.best:
        return
    cursor.best = float(value)
    if fabric.is_global_zero:
        checkpoints.write_checkpoint(run.best, model, identity)
    fabric.barrier()
