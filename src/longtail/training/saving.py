"""When weights are written: the checkpoint a run resumes from, and the best one."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric

from longtail.evaluation import EvaluationResult
from longtail.schema import UsageError
from longtail.training import checkpoint as checkpoints
from longtail.training.checkpoint import Cursor, Identity
from longtail.training.run_directory import RunDirectory
from longtail.training.weight_average import WeightAverage
from longtail.training.whole_folder import Located, begin, commit, draft_of, locate


def last_checkpoint(run: RunDirectory) -> Located | None:
    """The checkpoint to resume from; None if the run ended before its first one.

    Raises:
        DataError: there is one, and it is damaged.
    """
    try:
        return locate(run.last)
    except UsageError:
        return None


def save_last(
    run: RunDirectory,
    fabric: Fabric,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    average: WeightAverage | None,
    cursor: Cursor,
    identity: Identity,
) -> None:
    """Writes the checkpoint a run resumes from, with the state of every process; the one before it is kept."""
    if fabric.is_global_zero:
        folder = begin(run.last)
        checkpoints.save_weights(folder, model, identity)
        checkpoints.save_trainer(folder, optimiser, cursor)
        if average is not None:
            checkpoints.save_average(folder, average)
    fabric.barrier()
    checkpoints.save_rank(draft_of(run.last), model, fabric.global_rank, cursor.window)
    fabric.barrier()
    if fabric.is_global_zero:
        commit(run.last, keep_previous=True)
    fabric.barrier()


def keep_best(
    run: RunDirectory,
    fabric: Fabric,
    model: torch.nn.Module,
    identity: Identity,
    results: dict[str, EvaluationResult],
    cursor: Cursor,
) -> None:
    """Saves the weights if they are the best so far, by mask AP where there are masks, else by box AP,
    accuracy or recall."""
    result = results["segm"] if "segm" in results else next(iter(results.values()))
    value = result.metrics[result.headline]
    if value is None or value <= cursor.best:
        return
    cursor.best = float(value)
    if fabric.is_global_zero:
        checkpoints.write_checkpoint(run.best, model, identity)
    fabric.barrier()
