"""LOCE as a run: which layers move, and that it goes on exactly wherever it is killed."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longtail.data.scenes import GeneratedSet
from longtail.losses import MeanScore
from longtail.schema import Recipe, load_recipe
from longtail.training import loop
from longtail.training.api import train

FAST = [
    "scale=tiny", "model=mask_rcnn", "model.backbone=tiny32", "model.neck.channels=16", "model.regions.channels=32",
    "model.masks.channels=[8, 8]", "images.short_sides=[64]", "images.test_short_side=64", "groups.edges=[5, 25]",
    "stages.*.schedule.images=40", "stages.*.schedule.warmup_images=4",
    "stages.equilibrium.passes_before=[{type: update_state, per_class: 1}]",
]  # fmt: skip
NORMS = ("running_mean", "running_var", "num_batches_tracked")


def recipe(*changes: str) -> Recipe:
    return load_recipe("loce", [*FAST, *changes])


def run(made: GeneratedSet, out: Path, what: Recipe, *, resume: bool = False) -> None:
    train(what, train=made.train, images=made.images, val=made.val, out=out, resume=resume, device="cpu")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def kill_at(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose call number ``count`` kills the process."""
    calls = 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    return counted


def killed_run(made: GeneratedSet, out: Path, place: str, count: int) -> None:
    """A run in a process of its own, killed at a step, or at a look at the scores: in pass and second stage."""
    child = os.fork()
    if child == 0:
        try:
            if place == "step":
                loop.step_losses = kill_at(count, loop.step_losses)
            else:
                MeanScore.after_logits = kill_at(count, MeanScore.after_logits)  # type: ignore[method-assign]
            run(made, out, recipe(), resume=out.exists())
        finally:
            os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), status
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.fixture(scope="module")
def whole(smoke_set: GeneratedSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("loce") / "whole"
    run(smoke_set, out, recipe())
    return out


def test_killed_in_either_stage_and_in_the_pass_it_ends_as_if_nothing_had_happened(
    whole: Path, smoke_set: GeneratedSet, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    for place, count in (("step", 6), ("look", 2), ("look", 3 + 6)):  # the pass has three batches
        killed_run(smoke_set, cut, place, count)
    run(smoke_set, cut, recipe(), resume=True)
    log = (cut / "log.txt").read_text()
    assert log.count("resuming stage representation after 10 steps") == 1  # the pass begins again
    assert log.count("resuming stage representation") == 2
    assert log.count("resuming stage equilibrium") == 1
    for file in ("metrics.csv", "class_scores.csv", "checkpoints/last/model.safetensors"):
        assert (whole / file).read_bytes() == (cut / file).read_bytes(), file
    banks = [torch.load(r / "checkpoints" / "last" / "rank-0.pt", weights_only=True)["buffers"] for r in (whole, cut)]
    assert banks[0].keys() == banks[1].keys()
    assert all(torch.equal(value, banks[1][name]) for name, value in banks[0].items())
    filled = int((banks[0]["box.replay.0.bank.slots"] >= 0).sum())
    assert 0 < filled == banks[0]["box.replay.0.bank.features"].shape[0]  # filled slots only


def test_the_second_stage_moves_only_its_layers(whole: Path) -> None:
    first = weights(whole / "stages" / "1-representation" / "end")
    last = weights(whole / "checkpoints" / "last")
    moved = {name for name, value in first.items() if not torch.equal(value, last[name]) and not name.endswith(NORMS)}
    own = ("rpn.", "mask.", "box.classifier.", "box.regressor.")
    assert moved == {name for name in first if name.startswith(own)}
    added = {name for name in last if name not in first}
    assert added == {
        f"box.{place}.{name}"
        for place in ("replay.1", "replay.0.guide", "classification_loss.guide")
        for name in ("value", "rows", "hits")
    }


def test_the_scores_of_every_class_are_written(whole: Path, smoke_set: GeneratedSet) -> None:
    with (whole / "class_scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["stage"] for row in rows} == {"equilibrium"}
    last = weights(whole / "checkpoints" / "last")["box.replay.1.value"]
    final = [row for row in rows if row["step"] == "10"]
    assert [float(row["mean_score"]) for row in final] == pytest.approx(last[:-1].tolist(), rel=1e-5)
    assert len({row["class"] for row in final}) == len(final) == len(last) - 1
    assert sum(float(row["regions"]) for row in final) > 0
    assert all(0 <= float(row["accuracy"] or 0) <= 1 for row in rows)


def test_bf16_and_a_bank_in_half_precision(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    what = recipe(
        "precision=bf16-mixed", "stages.*.schedule.images=8",
        "stages.equilibrium.replay=[{type: feature_memory, half: true}]",
    )  # fmt: skip
    run(smoke_set, tmp_path / "run", what)
    bank = torch.load(tmp_path / "run" / "checkpoints" / "last" / "rank-0.pt", weights_only=True)["buffers"]
    assert bank["box.replay.0.bank.features"].dtype == torch.float16
    assert bank["box.replay.0.bank.features"].isfinite().all()
