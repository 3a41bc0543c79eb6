"""Step-wise learning in two processes: the same scores, the same transfer, the same end after cuts.

This file is also what each process runs: ``test_stepwise_ranks.py FOLDER``.
"""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from longtail.data import AnnotationTable
from longtail.data.object_scores import ObjectScores
from longtail.data.shapes import make_shapes
from longtail.schema import Recipe, dump_recipe, load_recipe
from longtail.training import api, loop
from longtail.training.exemplars import SCORES

# pictures are squares of 64 pixels that are neither resized nor padded
FAST = [
    "scale=tiny", "model.backbone=tiny32", "model.channels=64", "model.hidden=64", "model.encoder_layers=1",
    "model.decoder_layers=2", "model.num_queries=20", "images.short_sides=[64]", "images.test_short_side=64",
    "stages.*.schedule.images=16", "stages.*.schedule.batch_size=4", "stages.knowledge-transfer.optimiser.lr=0.002",
    "evaluation.batch_size=4",
    "stages.knowledge-transfer.exemplars.edges=[6]", "stages.knowledge-transfer.auxiliary_losses="
    "[{type: masked_features, head_min_images: 6}, {type: classification_distillation, head_min_images: 6}]",
]  # fmt: skip
FIRST = Path("stages") / "1-set-prediction"


class Cut(Exception):
    """Ends a run on both processes at the same place, with nothing saved."""


def steps() -> Recipe:
    return load_recipe("stepwise-kt", FAST)


def transfer(folder: Path) -> Recipe:
    """The knowledge transfer alone, on the scores of the first run."""
    content = yaml.safe_load(dump_recipe(load_recipe("stepwise-kt", FAST)))
    content["stages"] = content["stages"][1:]
    content["stages"][0]["exemplars"]["scores"] = str(folder / "one" / FIRST / SCORES)
    file = folder / f"transfer-{os.environ.get('RANK', 'alone')}.yaml"
    file.write_text(yaml.safe_dump(content))
    return load_recipe(file)


def train(folder: Path, name: str, what: Recipe, **options: Any) -> None:
    data = folder / "data"
    api.train(what, train=folder / "train.json", images=data / "images", out=folder / name, **options)


def every_step(folder: Path, name: str) -> None:
    """The transfer, with a value of the curve for every step."""
    api.SAVES_PER_STAGE = 4
    train(folder, name, transfer(folder), weights=folder / "one" / FIRST / "end")


def process(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    original = api.train_stage

    def noting(*arguments: Any, **options: Any) -> Any:
        model = original(*arguments, **options)
        state = b"".join(value.numpy().tobytes() for _, value in sorted(model.state_dict().items()))
        with (folder / f"hashes-{os.environ['RANK']}.txt").open("a") as file:
            file.write(hashlib.sha256(state).hexdigest() + "\n")
        return model

    api.train_stage = noting
    every_step(folder, "transfer-2")
    train(folder, "two", steps())
    score, step_losses = api.write_run_scores, loop.step_losses
    taken = 0

    def ending(*arguments: Any) -> Any:
        raise Cut

    def counting(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 3:
            raise Cut
        return step_losses(*arguments)

    for place in ("scoring", "transfer"):
        api.write_run_scores = ending if place == "scoring" else score
        loop.step_losses = counting if place == "transfer" else step_losses
        try:
            train(folder, "cut", steps(), resume=(folder / "cut").exists())
        except Cut:
            pass
        else:
            raise AssertionError(f"not cut in {place}")
    loop.step_losses = step_losses
    train(folder, "cut", steps(), resume=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that runs: by one process here, by two in the session."""
    home = tmp_path_factory.mktemp("ranks")
    made = make_shapes(home / "data", preset="smoke")
    table = AnnotationTable.from_coco(made.train)
    table.select(np.arange(30)).write_coco(home / "train.json")
    saves = api.SAVES_PER_STAGE
    try:
        train(home, "one", steps())
        every_step(home, "transfer-1")
    finally:
        api.SAVES_PER_STAGE = saves
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    words = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, __file__, str(home)],
        env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return home


def values(file: Path) -> dict[tuple[int, str], float]:
    with file.open() as rows:
        return {(int(row["step"]), row["metric"]): float(row["value"]) for row in csv.DictReader(rows)}


def test_the_transfer_is_that_of_one_process(folder: Path) -> None:
    one, two = (values(folder / f"transfer-{count}" / "metrics.csv") for count in (1, 2))
    assert one.keys() == two.keys()
    losses = [key for key in one if key[1].startswith("loss")]
    assert {step for step, _ in losses} == {1, 2, 3, 4}
    assert {"loss_masked_features", "loss_classification_distillation"} <= {name for _, name in losses}
    assert one[4, "loss_masked_features"] > 1e-4
    assert one[4, "loss_classification_distillation"] > 1e-6
    for key in losses:
        assert two[key] == pytest.approx(one[key], rel=2e-3, abs=1e-9), key
    hashes = [(folder / f"hashes-{rank}.txt").read_text().split() for rank in (0, 1)]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 6  # one of the transfer; two stages each of two runs; the first stage again, resumed


def test_two_processes_score_every_object_once(folder: Path) -> None:
    table = AnnotationTable.from_coco(folder / "train.json")
    found = ObjectScores.open(folder / "two" / FIRST / SCORES, table)
    assert len(found.rows) == len(table.label)
    assert (found.own > 0).all()


def test_cut_while_scoring_and_in_the_transfer(folder: Path) -> None:
    whole, cut = folder / "two", folder / "cut"
    for file in (FIRST / SCORES, Path("checkpoints/last/model.safetensors"), Path("metrics.csv")):
        assert (whole / file).read_bytes() == (cut / file).read_bytes(), file
    log = (cut / "log.txt").read_text()
    assert log.count("resuming stage set-prediction after 4 steps") == 1
    assert log.count("resuming stage knowledge-transfer after 2 steps") == 1


if __name__ == "__main__":
    process(Path(sys.argv[1]))
