"""Two processes against one: a cascade with replayed rows, on proposals that the run has made.

This file is also what each process runs: ``test_cascade_ranks.py FOLDER``.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longtail.build import detector as detectors
from longtail.data.proposals import ProposalTable
from longtail.data.shapes import make_shapes
from longtail.replay.base import FeatureReplay, RegionRows, ReplayRows
from longtail.schema import load_recipe
from longtail.training import api

STEPS = 3
SETTINGS = [
    "scale=tiny", "model=cascade_mask_rcnn", "model.backbone=tiny32", "model.neck.channels=16",
    "model.regions.channels=32", "model.masks.channels=[8]", "images.short_sides=[64]", "images.test_short_side=64",
    "groups.edges=[5, 25]", "model.inference.detections_per_image=10",
    "stages.*.trainable.freeze=['backbone*.bn?', 'backbone*.shortcut.1']",
    "stages.*.schedule.warmup_images=4", "stages.end-to-end.replay=[{type: object_memory}]",
    f"stages.*.schedule.images={4 * STEPS}",
    "model.proposals.before_nms=[60, 60]", "model.proposals.after_nms=[30, 30]", "stages.*.classification_loss=seesaw",
]  # fmt: skip


class Echo(FeatureReplay):
    """Repeats every region of the even classes: row by row, so that the rows of two processes together are those of
    one."""

    def __init__(self, *, joins: bool) -> None:
        super().__init__()
        self.joins = joins

    def step(self, rows: RegionRows, targets: Any, pool: Any, update_state: bool) -> ReplayRows | None:
        chosen = torch.where((rows.labels < 12) & (rows.labels % 2 == 0))[0]
        if not len(chosen):
            return None
        return ReplayRows(
            features=rows.features.detach()[chosen],
            labels=rows.labels[chosen],
            proposals=rows.proposals[chosen],
            gt_boxes=rows.gt_boxes[chosen],
            gt_index=torch.full_like(chosen, -1),
            image_index=torch.full_like(chosen, -1),
            weight=torch.ones(len(chosen)),
            joins_normaliser=self.joins,
            updates_loss_state=self.joins,
        )


def curve(folder: Path) -> dict[tuple[str, int, str], float]:
    with (folder / "metrics.csv").open() as rows:
        return {(r["stage"], int(r["step"]), r["metric"]): float(r["value"]) for r in csv.DictReader(rows)}


def run(home: Path, name: str) -> None:
    """In double precision: in single precision, rounding soon tips a choice between two regions."""
    original = detectors.replay_parts
    detectors.replay_parts = lambda *_, **__: [Echo(joins=True), Echo(joins=False)]
    api.SAVES_PER_STAGE = STEPS
    torch.set_default_dtype(torch.float64)
    data = home / "data"
    try:
        api.train(
            load_recipe("fast-rcnn", SETTINGS),
            train=data / "train.json", images=data / "images", val=data / "val.json", out=home / name,
        )  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)
        api.SAVES_PER_STAGE = 10
        detectors.replay_parts = original


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cascade")
    make_shapes(folder / "data", preset="smoke")
    run(folder, "one")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    words = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, __file__, str(folder)],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_both_write_the_same_proposals(home: Path) -> None:
    for name in ("train.arrow", "val.arrow"):
        one, two = (ProposalTable.open(home / which / "proposals" / name) for which in ("one", "two"))
        assert one.keys == two.keys and one.start.tolist() == two.start.tolist()
        assert abs(one.boxes - two.boxes).max() < 1e-3


def test_the_curve_of_every_stage_is_that_of_one_process(home: Path) -> None:
    one, two = (curve(home / which) for which in ("one", "two"))
    assert one.keys() == two.keys()
    losses = [key for key in one if key[2].startswith("loss")]
    assert {key[1] for key in losses} == set(range(1, STEPS + 1))
    kinds = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_replay", "loss_replay_box")
    assert {f"{kind}_{number}" for kind in kinds for number in range(3)} <= {key[2] for key in losses}
    worst = max(losses, key=lambda key: abs(one[key] - two[key]) / max(abs(one[key]), 1e-6))
    print("worst:", worst, one[worst], two[worst])
    assert two[worst] == pytest.approx(one[worst], rel=1e-4)


def test_weights_and_running_state_are_those_of_one_process(home: Path) -> None:
    one, two = (load_file(home / which / "checkpoints/last/model.safetensors") for which in ("one", "two"))
    assert {f"box.{number}.classification_loss" for number in range(3)} <= {name.rpartition(".")[0] for name in one}
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-7, msg=name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), "two")
