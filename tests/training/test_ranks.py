"""Two processes against one: the same curve, the same evaluation, the same weights after a kill; errors end both.

Starting processes is the slow part, so one session runs whatever needs no process to die. This file is also what each
process runs: ``test_ranks.py MODE FOLDER``.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longtail.build import detector as detectors
from longtail.cli.main import main
from longtail.data import AnnotationTable
from longtail.data.dataset import DetectionDataset
from longtail.data.scenes import GeneratedSet
from longtail.data.shapes import make_shapes
from longtail.losses import MeanScore
from longtail.replay import ObjectMemory, VirtualFeatures
from longtail.replay.base import FeatureReplay, RegionRows, ReplayRows
from longtail.schema import DataError, Recipe, UsageError, load_recipe
from longtail.training import api, class_losses, loop
from longtail.training.assemble import model_from_checkpoint
from longtail.training.checkpoint import per_rank_names
from longtail.training.detecting import detect_all
from longtail.training.progress import Silent

STEPS, KILLED_AT = 20, 8
# batch norms are frozen, pictures are squares of 64 pixels that are neither resized nor padded
SETTINGS = [
    "scale=tiny", "model=mask_rcnn", "model.backbone=tiny32", "model.neck.channels=16", "model.regions.channels=32",
    "model.masks.channels=[8, 8]", "images.short_sides=[64]", "images.test_short_side=64", "groups.edges=[5, 25]",
    "evaluation.batch_size=4", "stages.*.trainable.freeze=['backbone*.bn?', 'backbone*.shortcut.1']",
    "stages.*.schedule.warmup_images=4", "stages.*.replay=[{type: object_memory}]",
]  # fmt: skip


class Echo(FeatureReplay):
    """Repeats every region of the even classes: row by row, so that the rows of two processes together are those of
    one."""

    def __init__(self, *, joins: bool) -> None:
        super().__init__()
        self.joins = joins

    def step(self, rows: RegionRows, targets: Any, pool: Any, update_state: bool) -> ReplayRows | None:
        chosen = torch.where((rows.labels < 12) & (rows.labels % 2 == 0))[0]
        return (
            given(rows, chosen, rows.features, joins_normaliser=self.joins, updates_loss_state=self.joins)
            if len(chosen)
            else None
        )


class Bank(FeatureReplay):
    """Holds the last foreground rows of its own process, and gives some of them back, by chance."""

    per_rank: ClassVar[frozenset[str]] = frozenset({"features", "labels", "proposals", "gt_boxes", "filled"})

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (("features", (16, 32)), ("proposals", (16, 4)), ("gt_boxes", (16, 4))):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("labels", torch.zeros(16, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def step(self, rows: RegionRows, targets: Any, pool: Any, update_state: bool) -> ReplayRows | None:
        if not update_state:
            return None
        filled = int(self.filled)
        extra = None
        if filled:
            chosen = torch.randint(filled, (5,))
            extra = given(self, chosen, self.features.clone(), joins_normaliser=False, updates_loss_state=False)
        own = torch.where(rows.labels < 12)[0][: 2 + torch.randint(3, (1,)).item()]
        for name in ("features", "labels", "proposals", "gt_boxes"):
            bank = getattr(self, name)
            bank.copy_(torch.cat([getattr(rows, name).detach()[own], bank])[:16])
        self.filled.fill_(min(filled + len(own), 16))
        return extra


def given(source: Any, chosen: torch.Tensor, features: torch.Tensor, **options: Any) -> ReplayRows:
    nowhere = torch.full_like(chosen, -1)
    return ReplayRows(
        features=features.detach()[chosen],
        labels=source.labels[chosen],
        proposals=source.proposals[chosen],
        gt_boxes=source.gt_boxes[chosen],
        gt_index=nowhere,
        image_index=nowhere,
        weight=torch.ones(len(chosen)),
        **options,
    )


def recipe(steps: int, *overrides: str) -> Recipe:
    return load_recipe("rfs", [*SETTINGS, f"stages.*.schedule.images={4 * steps}", *overrides])


def train(folder: Path, name: str, what: Recipe, **options: Any) -> None:
    data = folder / "data"
    api.train(
        what,
        train=data / "train.json",
        images=data / "images",
        val=folder / "seven.json",
        val_images=data / "images",
        out=folder / name,
        **options,
    )


def curve(folder: Path, name: str) -> None:
    """Twenty steps in double precision: in single precision, rounding soon tips a choice between two proposals."""
    detectors.replay_parts = lambda *_, **__: [Echo(joins=True), Echo(joins=False)]
    api.SAVES_PER_STAGE = STEPS  # a value of the curve for every step
    torch.set_default_dtype(torch.float64)
    try:
        train(folder, name, recipe(STEPS))
    finally:
        torch.set_default_dtype(torch.float32)
        api.SAVES_PER_STAGE = 10


def with_rounds() -> Recipe:
    rounds = ["stages.*.passes_after_epoch=[class_losses]", "stages.*.passes_every.images=16"]
    return recipe(12, "holdout.fraction=0.1", *rounds)


class Cut(Exception):
    """Ends a run on both processes at the same place, with nothing saved."""


def with_bank(folder: Path, name: str, *, killed: bool = False, cut: bool = False) -> None:
    """Twelve steps with rows of each process's own, and rows of moments that both share, with rounds that say how many;
    SIGKILL after some steps, or an end within the first round that comes."""
    everything = torch.ones(12, dtype=torch.bool)
    detectors.replay_parts = lambda *_, **__: [
        Bank(),
        ObjectMemory(12, everything, count=3, capacity=8, draw="random"),
        VirtualFeatures(12, 32, torch.ones(12), scale=6, grouping="none"),
    ]
    original = loop.step_losses
    taken = 0

    def until(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if killed and taken == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    def ending(*arguments: Any) -> Any:
        raise Cut

    loop.step_losses = until
    added = class_losses.add_losses
    class_losses.add_losses = ending if cut else added
    try:
        train(folder, name, with_rounds(), resume=(folder / name).exists())
    except Cut:
        assert cut
    finally:
        loop.step_losses, class_losses.add_losses = original, added


def loce(folder: Path, name: str, *, cut_at: int = 0) -> None:
    """Both stages of LOCE, with the pass that fills the memory between them; ended at a look at the scores."""
    original, looks = MeanScore.after_logits, 0

    def counted(*arguments: Any) -> None:
        nonlocal looks
        looks += 1
        if looks == cut_at:
            raise Cut
        original(*arguments)

    MeanScore.after_logits = counted
    what = load_recipe(
        "loce",
        [
            *(change for change in SETTINGS if "replay" not in change),
            "stages.*.schedule.images=24",
            "stages.equilibrium.passes_before=[{type: update_state, images: 12}]",
        ],
    )
    try:
        train(folder, name, what, resume=(folder / name).exists())
    except Cut:
        assert cut_at
    finally:
        MeanScore.after_logits = original


def evaluations(folder: Path, suffix: str, rank: int = 0, world_size: int = 1) -> None:
    """Seven pictures, one picture, and pictures in which nothing is found."""
    for name in ("seven", "one"):
        api.evaluate(
            folder / "trained",
            data=folder / f"{name}.json",
            images=folder / "data" / "images",
            protocols=("auto", "fixed"),
            split=f"{name}-{suffix}",
        )
    model, _ = model_from_checkpoint(folder / "trained" / "checkpoints" / "last")
    model.inference = replace(model.inference, score_threshold=1.0)
    found = detect_all(
        model,
        DetectionDataset(AnnotationTable.from_coco(folder / "seven.json"), folder / "data" / "images"),
        device=torch.device("cpu"), batch_size=2, workers=0, progress=Silent(), rank=rank, world_size=world_size,
    )  # fmt: skip
    assert len(found) == 0 and (found.rles == [] or rank)


def note_weights(folder: Path, model: torch.nn.Module, rank: int) -> None:
    """The hash of this process's own weights and shared buffers."""
    digest = hashlib.sha256()
    own = per_rank_names(model)
    for name, value in sorted(model.state_dict().items()):
        if name not in own:
            digest.update(value.detach().contiguous().numpy().tobytes())
    with (folder / f"hashes-{rank}.txt").open("a") as file:
        file.write(digest.hexdigest() + "\n")


def command(folder: Path, out: str) -> list[str]:
    data = folder / "data"
    words = ["--train", str(data / "train.json"), "--images", str(data / "images"), "--out", str(folder / out)]
    return ["train", "rfs", *SETTINGS, "stages.*.replay=[]", "stages.*.schedule.images=40", *words, "--quiet"]


def process(mode: str, folder: Path) -> int:
    """What each process does."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    original_parts = detectors.replay_parts
    if mode == "session":
        original = api.train_stage

        def noting(*arguments: Any, **options: Any) -> Any:
            with (folder / f"seeds-{rank}.txt").open("a") as file:
                file.write(f"{torch.initial_seed()}\n")
            model = original(*arguments, **options)
            note_weights(folder, model, rank)
            return model

        api.train_stage = noting
        curve(folder, "curve-2")
        with_bank(folder, "whole")
        evaluations(folder, "2", rank, 2)
        detectors.replay_parts = original_parts
        loce(folder, "loce-whole")
        for place in (2, 7):  # within the pass of three batches, and after four steps of the second stage
            loce(folder, "loce-cut", cut_at=place)
        loce(folder, "loce-cut")
    elif mode == "killed":
        with_bank(folder, "cut", killed=True)
    elif mode == "resumed":
        with_bank(folder, "cut", cut=True)
        with_bank(folder, "cut")
        return main(command(folder, "cut"))  # which the first process refuses, while the other waits
    elif mode == "fails":
        original_losses = loop.step_losses
        steps = 0

        def breaking(*arguments: Any) -> Any:
            nonlocal steps
            steps += 1
            if rank == 1 and steps == 3:
                raise DataError("picture 17 is broken")
            return original_losses(*arguments)

        loop.step_losses = breaking
        return main(command(folder, "fails"))
    return 0


def torchrun(mode: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Two processes with gloo, as a user starts them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    words = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, __file__, mode, str(folder)],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def only_line(ended: subprocess.CompletedProcess[str]) -> str:
    """What the two processes say about their end, in one line."""
    lines = [line for line in ended.stderr.splitlines() if line.startswith("longtail:")]
    assert len(lines) == 1, ended.stderr[-3000:]
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Everything that runs: by one process here, by two in the session."""
    home = tmp_path_factory.mktemp("ranks")
    made: GeneratedSet = make_shapes(home / "data", preset="smoke")
    content = json.loads(made.val.read_text())
    for name, count in (("seven", 7), ("one", 1)):
        images = content["images"][:count]
        ids = {image["id"] for image in images}
        kept = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
        (home / f"{name}.json").write_text(json.dumps(content | {"images": images, "annotations": kept}))
    original, original_losses = detectors.replay_parts, loop.step_losses
    try:
        curve(home, "curve-1")
        detectors.replay_parts = lambda *_, **__: []
        train(home, "trained", recipe(STEPS))
        evaluations(home, "1")
        done = torchrun("session", home)
        assert done.returncode == 0, done.stderr[-3000:]
        yield home
    finally:
        detectors.replay_parts, loop.step_losses = original, original_losses


def values(file: Path) -> dict[tuple[str, int, str], float]:
    with file.open() as rows:
        return {(r["stage"], int(r["step"]), r["metric"]): float(r["value"]) for r in csv.DictReader(rows)}


def test_the_curve_is_that_of_one_process(folder: Path) -> None:
    one, two = values(folder / "curve-1" / "metrics.csv"), values(folder / "curve-2" / "metrics.csv")
    assert one.keys() == two.keys()
    losses = [key for key in one if key[2].startswith("loss")]
    assert {key[1] for key in losses} == set(range(1, STEPS + 1))
    assert {"loss_mask", "loss_replay", "loss_replay_box"} <= {key[2] for key in losses}
    worst = max(losses, key=lambda key: abs(one[key] - two[key]) / max(abs(one[key]), 1e-6))
    print("worst:", worst, one[worst], two[worst])
    assert two[worst] == pytest.approx(one[worst], rel=1e-4)


def test_the_weights_are_those_of_one_process_and_equal_on_both(folder: Path) -> None:
    mine, other = ((folder / f"hashes-{rank}.txt").read_text().split() for rank in (0, 1))
    assert mine == other and len(mine) == 7  # of LOCE the ends of five stages
    one, two = (load_file(folder / name / "checkpoints/last/model.safetensors") for name in ("curve-1", "curve-2"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_the_processes_draw_apart(folder: Path) -> None:
    first, second = ([int(line) for line in (folder / f"seeds-{n}.txt").read_text().split()] for n in (0, 1))
    assert second == [seed + 1 for seed in first]


@pytest.mark.parametrize("data", ["seven", "one"])
def test_merged_evaluation_is_that_of_one_process(data: str, folder: Path) -> None:
    results = folder / "trained" / "eval"
    for kind in ("bbox", "segm"):
        detections = [(results / f"{data}-{n}" / f"results.{kind}.json").read_bytes() for n in (1, 2)]
        assert detections[0] == detections[1] and len(json.loads(detections[0])) > 10
        for protocol in ("", "-fixed"):
            tables = [(results / f"{data}-{n}{protocol}" / kind / "per_class.csv").read_bytes() for n in (1, 2)]
            assert tables[0] == tables[1]
            metrics = [json.loads((results / f"{data}-{n}{protocol}" / "metrics.json").read_text()) for n in (1, 2)]
            assert metrics[0][kind]["metrics"] == metrics[1][kind]["metrics"]


def test_two_processes_killed_and_resumed_end_as_if_nothing_had_happened(folder: Path) -> None:
    killed = torchrun("killed", folder)
    assert killed.returncode != 0
    assert not (folder / "cut" / "eval").exists(), "killed before the end"
    with pytest.raises(UsageError, match="trained by 2 processes and cannot be resumed by 1"):
        train(folder, "cut", with_rounds(), resume=True)
    resumed = torchrun("resumed", folder)
    assert resumed.returncode != 0
    assert only_line(resumed).startswith(f"longtail: {folder / 'cut'} is not empty; resume it"), resumed.stderr[-3000:]
    log = (folder / "cut" / "log.txt").read_text()
    assert log.count("resuming stage end-to-end after 6 steps") == log.count("after 8 steps") == 1, "where the round is"
    whole, cut = ((folder / name / "checkpoints" / "last") for name in ("whole", "cut"))
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    curves = [(folder / name / "metrics.csv").read_bytes() for name in ("whole", "cut")]
    assert curves[0] == curves[1] and b"loss_replay_box" in curves[0]
    tables = [(folder / name / "class_losses.csv").read_text() for name in ("whole", "cut")]
    assert tables[0] == tables[1] and len(tables[0].splitlines()) == 1 + 3 * 12
    moved = {line.split(",")[-1] for line in tables[0].splitlines()[1:]}
    assert len(moved) > 1, "probabilities have been raised or lowered"
    banks = [torch.load(whole / f"rank-{rank}.pt", weights_only=True)["buffers"] for rank in (0, 1)]
    again = [torch.load(cut / f"rank-{rank}.pt", weights_only=True)["buffers"] for rank in (0, 1)]
    for before, after in zip(banks, again, strict=True):
        assert len(before) == 11 and all(torch.equal(before[key], after[key]) for key in before)
    for name in ("box.replay.0.features", "box.replay.1.bank.features"):
        assert len(banks[0][name]) and not torch.equal(banks[0][name], banks[1][name]), "each process has its own"


def test_two_processes_of_loce_have_one_score_and_two_memories_and_resume_exactly(folder: Path) -> None:
    """The curves hold means over both processes, the checkpoint the scores that both have."""
    log = (folder / "loce-cut" / "log.txt").read_text()
    assert log.count("resuming stage representation after 6 steps") == log.count("resuming stage equilibrium") == 1
    whole, cut = ((folder / name / "checkpoints" / "last") for name in ("loce-whole", "loce-cut"))
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    curves = [(folder / name / "metrics.csv").read_bytes() for name in ("loce-whole", "loce-cut")]
    assert curves[0] == curves[1]
    banks = [
        [torch.load(run / f"rank-{rank}.pt", weights_only=True)["buffers"] for rank in (0, 1)] for run in (whole, cut)
    ]
    for before, after in zip(*banks, strict=True):
        assert len(before) == 6 and all(torch.equal(before[key], after[key]) for key in before)
    pushed = [own["box.replay.0.bank.pushed"] for own in banks[0]]
    assert all(own.sum() > 0 for own in pushed)
    assert not torch.equal(*pushed), "each process holds its own rows"


def test_an_error_of_one_process_ends_the_other_and_is_shown_once(folder: Path) -> None:
    failed = torchrun("fails", folder)
    assert failed.returncode != 0
    assert only_line(failed) == "longtail: process 1 of 2: picture 17 is broken"


def test_draws_depend_on_seed_epoch_and_position_alone(folder: Path) -> None:
    """Anchors and regions drawn for a picture are the same beside other pictures, and in another order."""
    model, _ = model_from_checkpoint(folder / "trained" / "checkpoints" / "last")
    table = AnnotationTable.from_coco(folder / "seven.json")
    pictures = [DetectionDataset(table, folder / "data" / "images", with_masks=True)[row] for row in range(4)]

    drawn: list[np.ndarray] = []
    for order in ([0, 1, 2, 3], [2, 0], [3, 2, 1]):
        anchors: list[np.ndarray] = []
        original = model.rpn.sampler

        def spy(iou: Any, matched: Any, *rest: Any, original: Any = original, anchors: Any = anchors) -> Any:
            positive, negative = original(iou, matched, *rest)
            anchors.append(torch.cat([positive, negative]).numpy())
            return positive, negative

        spy.needs_loss = original.needs_loss  # type: ignore[attr-defined]
        model.rpn.sampler = spy  # type: ignore[assignment]
        regions: list[Any] = []
        head = model.box.sample
        model.box.sample = lambda *a, head=head, regions=regions: regions.append(head(*a)) or regions[0]  # type: ignore
        with torch.no_grad():
            model.losses([pictures[i][0] for i in order], [pictures[i][1] for i in order], update_state=False)
        model.rpn.sampler, model.box.sample = original, head  # type: ignore[method-assign]
        place = order.index(2)
        drawn.append(np.concatenate([anchors[place], regions[0].gt_index[place].numpy(), regions[0].labels[place]]))
    assert all(np.array_equal(drawn[0], other) for other in drawn[1:])


if __name__ == "__main__":
    sys.exit(process(sys.argv[1], Path(sys.argv[2])))
