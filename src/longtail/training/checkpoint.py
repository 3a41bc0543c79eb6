"""Checkpoints: weights as safetensors, trainer state readable with ``weights_only=True``, one file per rank.

A checkpoint is a folder:

    model.safetensors    weights and shared buffers
    model.json           the resolved recipe, the stage, the classes: enough to build the model again
    average.safetensors  moving average of the weights, where the stage keeps one (absent from ``best``)
    trainer.pt           optimiser, position, best value (absent from ``best``)
    rank-<r>.pt          random states and per-rank buffers of one process (absent from ``best``)
    digests.json         SHA-256 of the other files
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longtail.data import ClassStatistics
from longtail.schema import DataError, Recipe, UsageError
from longtail.training.weight_average import WeightAverage
from longtail.training.whole_folder import begin, commit

WEIGHTS, IDENTITY, TRAINER, AVERAGE = "model.safetensors", "model.json", "trainer.pt", "average.safetensors"


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


@dataclass(frozen=True)
class Window:
    """Losses that have been added up on this process and not been written to the curves yet.

    Attributes:
        sums: by name, over the steps.
        steps: how many.
        dropped: objects lost to the augmentation in them.
    """

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    dropped: int = 0


@dataclass
class Cursor:
    """Where training stands.

    Attributes:
        stage: its number, from 0.
        step: optimiser steps done in it.
        passes_done: whether its passes before training are over.
        epoch_done: whether the passes and the evaluation after the epoch that ended with ``step`` are over.
        best: best validation AP so far.
        logged, logged_classes: bytes of ``metrics.csv`` and ``class_losses.csv`` that belong to what was done.
        window: what the next row of the curves has of this process so far.
    """

    stage: int = 0
    step: int = 0
    passes_done: bool = False
    epoch_done: bool = True
    best: float = -1.0
    logged: int = 0
    logged_classes: int = 0
    window: Window = Window()


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
    place = {name: value for name, value in asdict(cursor).items() if name != "window"}
    torch.save({"optimiser": optimiser.state_dict(), "cursor": place}, folder / TRAINER)


def save_average(folder: Path, average: WeightAverage) -> None:
    """Writes the moving average of the weights."""
    save_file({name: value.detach().cpu().contiguous() for name, value in average.values.items()}, folder / AVERAGE)


def save_rank(folder: Path, model: nn.Module, rank: int, window: Window) -> None:
    """Writes what belongs to one process: its random states, its per-rank buffers, its part of the curves."""
    own = per_rank_names(model)
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - third-party parts may use it
    content: dict[str, Any] = {
        "buffers": {name: value.detach().cpu() for name, value in model.state_dict().items() if name in own},
        "window": asdict(window),
        "torch": torch.get_rng_state(),
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
    }
    if torch.cuda.is_available():
        content["cuda"] = torch.cuda.get_rng_state()
    torch.save(content, folder / f"rank-{rank}.pt")


def write_checkpoint(target: Path, model: nn.Module, identity: Identity) -> None:
    """Writes weights and identity into ``target``, complete or not at all."""
    save_weights(begin(target), model, identity)
    commit(target, keep_previous=False)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint, on the CPU: what training goes on with.

    Raises:
        DataError: the file is missing or damaged.
    """
    return _read(folder / WEIGHTS)


def load_result(folder: Path) -> dict[str, Tensor]:
    """The state dict of the model a checkpoint stands for: with averaged weights where the stage averages them.

    Raises:
        DataError: a file is missing or damaged.
    """
    average = _read(folder / AVERAGE) if (folder / AVERAGE).is_file() else {}
    return load_weights(folder) | average


def load_average(folder: Path, average: WeightAverage) -> None:
    """Restores the moving average of the weights.

    Raises:
        DataError: the file is missing or damaged.
    """
    average.load(_read(folder / AVERAGE))


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(file))
    except Exception as error:
        raise DataError(f"{file} cannot be read ({error}); use another checkpoint") from None


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


def load_rank(folder: Path, model: nn.Module, rank: int) -> Window:
    """Restores one process's random states and per-rank buffers, and returns its part of the curves.

    Raises:
        UsageError: the checkpoint was written by fewer processes.
        DataError: it was written for other banks.
    """
    file = folder / f"rank-{rank}.pt"
    if not file.is_file():
        raise UsageError(f"{folder} has no state for process {rank}; resume with as many processes as before")
    content = torch.load(file, map_location="cpu", weights_only=True)
    _, unexpected = model.load_state_dict(content["buffers"], strict=False)
    if unexpected:
        raise DataError(f"{file} does not fit the model: unexpected {unexpected[:5]}")
    torch.set_rng_state(content["torch"])
    version, numbers, gauss = content["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = content["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    if torch.cuda.is_available() and "cuda" in content:
        torch.cuda.set_rng_state(content["cuda"])
    return Window(**content["window"])
