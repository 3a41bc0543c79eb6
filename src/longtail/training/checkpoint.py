"""Checkpoints: weights as safetensors, trainer state readable with ``weights_only=True``, one file per rank.

A checkpoint is a folder:

    model.safetensors   weights and shared buffers
    model.json          the resolved recipe, the stage, the classes: enough to build the model again
    trainer.pt          optimiser, position, best value (absent from ``best``)
    rank-<r>.pt         random state and per-rank buffers of one process (absent from ``best``)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longtail.data import ClassStatistics
from longtail.schema import DataError, Recipe, UsageError

WEIGHTS, IDENTITY, TRAINER = "model.safetensors", "model.json", "trainer.pt"


@dataclass(frozen=True)
class Identity:
    """What a set of weights is: the recipe and stage it was trained with, and the classes its outputs stand for."""

    recipe: Recipe
    stage: int
    category_ids: list[int | str]
    statistics: ClassStatistics

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "stage": self.stage,
            "category_ids": self.category_ids,
            "statistics": self.statistics.to_dict(),
        }

    @classmethod
    def read(cls, folder: Path) -> Identity:
        """Reads ``model.json``.

        Raises:
            UsageError: the folder is no checkpoint.
        """
        file = folder / IDENTITY
        if not file.is_file():
            raise UsageError(f"{folder} is not a checkpoint: it has no {IDENTITY}")
        content = json.loads(file.read_text(encoding="utf-8"))
        return cls(
            recipe=Recipe.parse(content["recipe"], origin=str(file)),
            stage=content["stage"],
            category_ids=content["category_ids"],
            statistics=ClassStatistics.from_dict(content["statistics"]),
        )


@dataclass
class Cursor:
    """Where training stands."""

    stage: int = 0
    step: int = 0
    passes_done: bool = False
    best: float = -1.0


def per_rank_names(model: nn.Module) -> set[str]:
    """Names of buffers that differ between ranks, as the modules declare them in ``per_rank``."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(module, "per_rank", frozenset())
    }


def shared_state(model: nn.Module) -> dict[str, Tensor]:
    """Everything in the state dict that is equal on all ranks."""
    own = per_rank_names(model)
    return {name: value for name, value in model.state_dict().items() if name not in own}


def save_weights(folder: Path, model: nn.Module, identity: Identity) -> None:
    """Writes the two files that make a model usable into an existing folder."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in shared_state(model).items()}
    save_file(state, folder / WEIGHTS)
    (folder / IDENTITY).write_text(json.dumps(identity.to_dict(), ensure_ascii=False), encoding="utf-8")


def save_trainer(folder: Path, optimiser: torch.optim.Optimizer, cursor: Cursor) -> None:
    """Writes optimiser and position."""
    torch.save({"optimiser": optimiser.state_dict(), "cursor": asdict(cursor)}, folder / TRAINER)


def save_rank(folder: Path, model: nn.Module, rank: int) -> None:
    """Writes what belongs to one process: its random state and its per-rank buffers."""
    own = per_rank_names(model)
    content: dict[str, Any] = {
        "buffers": {name: value.detach().cpu() for name, value in model.state_dict().items() if name in own},
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        content["cuda"] = torch.cuda.get_rng_state()
    torch.save(content, folder / f"rank-{rank}.pt")


def begin(target: Path) -> Path:
    """An empty folder beside ``target`` in which to write a checkpoint."""
    folder = target.with_name(f".{target.name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def commit(folder: Path, target: Path) -> None:
    """Puts a finished folder in ``target``'s place; what was there stays as ``<target>.previous`` until then."""
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    previous = target.with_name(f"{target.name}.previous")
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(target, previous)
    os.rename(folder, target)
    shutil.rmtree(previous, ignore_errors=True)


def write_checkpoint(target: Path, model: nn.Module, identity: Identity) -> None:
    """Writes weights and identity into ``target``, complete or not at all."""
    folder = begin(target)
    save_weights(folder, model, identity)
    commit(folder, target)


def locate(target: Path) -> Path:
    """The checkpoint in ``target``, or the previous one if a save was cut off between two renames.

    Raises:
        UsageError: there is neither.
    """
    for folder in (target, target.with_name(f"{target.name}.previous")):
        if (folder / IDENTITY).is_file():
            return folder
    raise UsageError(f"there is no checkpoint in {target}")


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint, on the CPU.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        return dict(load_file(folder / WEIGHTS))
    except Exception as error:
        raise DataError(f"{folder / WEIGHTS} cannot be read ({error}); use another checkpoint") from None


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, origin: Path) -> None:
    """Puts a checkpoint's weights into a model of the same shape; per-rank buffers are left alone.

    Raises:
        DataError: names or shapes differ.
    """
    missing, unexpected = model.load_state_dict(dict(state), strict=False)
    missing = [name for name in missing if name not in per_rank_names(model)]
    if missing or unexpected:
        raise DataError(f"{origin} does not fit the model: missing {missing[:5]}, unexpected {unexpected[:5]}")


def load_trainer(folder: Path) -> tuple[dict[str, Any], Cursor]:
    """Optimiser state and position of a checkpoint.

    Raises:
        UsageError: the checkpoint holds weights only.
    """
    if not (folder / TRAINER).is_file():
        raise UsageError(f"{folder} holds weights only and cannot be resumed; resume the checkpoint `last`")
    content = torch.load(folder / TRAINER, map_location="cpu", weights_only=True)
    return content["optimiser"], Cursor(**content["cursor"])


def load_rank(folder: Path, model: nn.Module, rank: int) -> None:
    """Restores one process's random state and per-rank buffers.

    Raises:
        UsageError: the checkpoint was written by fewer processes.
    """
    file = folder / f"rank-{rank}.pt"
    if not file.is_file():
        raise UsageError(f"{folder} has no state for process {rank}; resume with as many processes as before")
    content = torch.load(file, map_location="cpu", weights_only=True)
    own = dict(model.named_buffers())
    for name, value in content["buffers"].items():
        own[name].copy_(value)
    torch.set_rng_state(content["torch"])
    if torch.cuda.is_available() and "cuda" in content:
        torch.cuda.set_rng_state(content["cuda"])
