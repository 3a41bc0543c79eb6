"""Two processes against one: pictures classified.

Starting processes is the slow part, so one session runs every case. This file is also what each process runs:
``test_classify_ranks.py FOLDER``.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longtail.data.shapes import make_shapes
from longtail.data.sources import read_sources
from longtail.data.write_pictures import write_crops
from longtail.schema import load_recipe
from longtail.training import api, loop
from longtail.training.checkpoint import per_rank_names

STEPS, CUT_AT = 4, 7
# batch norms are frozen, since each process would have the moments of its own pictures
SETTINGS = [
    "model.backbone=cifar_resnet20", "model.size=[16, 16]", "workers=0", "threads=1", "images.short_sides=[16]",
    "images.padded_crop=2", "groups.edges=[5, 25]", "evaluation.batch_size=5", "stages.*.schedule.batch_size=8",
    "stages.*.schedule.warmup_images=0", f"stages.*.schedule.images={8 * STEPS}", "stages.*.optimiser.lr=0.01",
    "stages.*.trainable.freeze=['backbone*.bn?']",
]  # fmt: skip
CASES = {
    "softmax": ("cifar-lt-baseline", ["stages.*.sampler=repeat_factor"]),
    "seesaw": ("cifar-lt-baseline", ["stages.*.classification_loss=seesaw", "model.classifier=normed_linear"]),
    "eqlv2": ("cifar-lt-baseline", ["stages.*.classification_loss=eqlv2", "stages.*.sampler=class_aware"]),
    "deferred": ("cifar-lt-ldam-drw", []),
}
REPLAYED = [
    "holdout.fraction=0.2", "stages.*.passes_every.images=16", "stages.*.passes_after_epoch=[class_losses]",
    "stages.*.replay=[{type: object_memory, count: 2, max_images: 20}, {type: virtual_features, warmup_epochs: 0, "
    "scale: 100}]",
]  # fmt: skip


class Cut(Exception):
    """Ends a run on both processes at the same step, with nothing saved."""


def train(home: Path, out: str, name: str, overrides: list[str]) -> None:
    what = load_recipe(name, [*SETTINGS, *overrides])
    api.train(what, train=home / "train", val=home / "val", out=home / out, resume=(home / out).exists())


def run(home: Path, suffix: str) -> None:
    """Every case, in double precision."""
    api.SAVES_PER_STAGE = STEPS  # a value of the curve for every step
    torch.set_default_dtype(torch.float64)
    try:
        for case, (name, overrides) in CASES.items():
            train(home, f"{case}-{suffix}", name, overrides)
    finally:
        torch.set_default_dtype(torch.float32)
        api.SAVES_PER_STAGE = 10


def replayed(home: Path, out: str, *, cut: bool) -> None:
    """Both stages with rows of each process's own and rows of moments that both share, and rounds that say how many."""
    original, taken = loop.step_losses, 0

    def until(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == CUT_AT and cut:
            raise Cut
        return original(*arguments)

    loop.step_losses = until
    try:
        train(home, out, "cifar-lt-ldam-drw", REPLAYED)
    except Cut:
        assert cut
    finally:
        loop.step_losses = original


def note_hashes(home: Path) -> None:
    """After every stage, the sums of this process's own weights and shared buffers."""
    original = api.train_stage

    def noting(*arguments: Any, **options: Any) -> Any:
        model = original(*arguments, **options)
        own = per_rank_names(model)
        sums = {
            name: float(value.double().sum()).hex() for name, value in model.state_dict().items() if name not in own
        }
        with (home / f"sums-{os.environ['RANK']}.txt").open("a") as file:
            file.write(json.dumps(sums) + "\n")
        return model

    api.train_stage = noting


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    made = make_shapes(folder / "data", preset="smoke")
    for split in ("train", "val"):
        write_crops(read_sources(getattr(made, split), made.images), folder / split)
    run(folder, "1")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    words = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, __file__, str(folder)],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def curve(folder: Path) -> dict[tuple[str, int, str], float]:
    with (folder / "metrics.csv").open() as rows:
        return {(r["stage"], int(r["step"]), r["metric"]): float(r["value"]) for r in csv.DictReader(rows)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints/last/model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_curve_weights_and_running_state_are_those_of_one_process(case: str, home: Path) -> None:
    one, two = (curve(home / f"{case}-{processes}") for processes in (1, 2))
    assert one.keys() == two.keys()
    losses = [key for key in one if key[2].startswith("loss")]
    assert {key[1] for key in losses} == set(range(1, STEPS + 1))
    for key in losses:
        assert two[key] == pytest.approx(one[key], rel=1e-6), key
    share = {"seesaw": "share/mitigated_cells", "eqlv2": "share/spared_classes"}.get(case)
    shares = [key for key in one if key[2].startswith("share/")]
    assert len(shares) == (0 if share is None else STEPS)
    assert all(key[2] == share and one[key] == two[key] for key in shares)
    mine, other = (weights(home / f"{case}-{processes}") for processes in (1, 2))
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-8, msg=name)
    assert ("head.classification_loss.counts" in mine) == (case == "seesaw")


@pytest.mark.parametrize("case", CASES)
def test_merged_accuracy_is_that_of_one_process(case: str, home: Path) -> None:
    assert sum(1 for _ in (home / "val").rglob("*.png")) % 10 != 0  # the last batches of both are not full
    results = [home / f"{case}-{processes}" / "eval" / "val" for processes in (1, 2)]
    tables = [(each / "picture" / "per_class.csv").read_text() for each in results]
    assert tables[0] == tables[1]
    found = [json.loads((each / "metrics.json").read_text())["picture"]["metrics"] for each in results]
    assert found[0] == found[1]
    assert found[0]["top1"] is not None


def test_both_processes_have_the_same_weights(home: Path) -> None:
    mine, other = ((home / f"sums-{rank}.txt").read_text() for rank in (0, 1))
    assert mine == other
    assert len(mine.splitlines()) == len(CASES) + 1 + 2 + 2  # ldam-drw has two stages, cut off or not


def test_a_run_that_was_cut_off_ends_as_if_nothing_had_happened(home: Path) -> None:
    whole, cut = (weights(home / name) for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    for name in ("metrics.csv", "class_losses.csv"):
        assert (home / "whole" / name).read_bytes() == (home / "cut" / name).read_bytes()
    banks = [torch.load(home / "whole/checkpoints/last" / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]
    again = [torch.load(home / "cut/checkpoints/last" / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for before, after in zip(banks, again, strict=True):
        own, other = before["buffers"], after["buffers"]
        assert own.keys() == other.keys() and len(own) > 0
        assert all(torch.equal(own[key], other[key]) for key in own)
    name = "head.replay.0.bank.features"
    assert not torch.equal(banks[0]["buffers"][name], banks[1]["buffers"][name]), "each process has its own"


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    note_hashes(folder)
    run(folder, "2")
    replayed(folder, "whole", cut=False)
    replayed(folder, "cut", cut=True)
    replayed(folder, "cut", cut=False)
