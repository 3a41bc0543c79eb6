"""Rounds of class losses: what they count, what they change, and that they change nothing else."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from longtail.data import AnnotationTable, ClassStatistics
from longtail.data.scenes import GeneratedSet
from longtail.losses import SigmoidCrossEntropy
from longtail.losses.auxiliary import Record
from longtail.models.base import HeadRecord
from longtail.replay import VirtualFeatures
from longtail.schema import DataError, Recipe, UsageError, load_recipe
from longtail.training import api, class_losses, loop
from longtail.training.api import RunResult, train
from longtail.training.assemble import refuse_early
from longtail.training.class_log import HEADER, ClassLog, ClassRow
from longtail.training.class_losses import adapt_all, add_losses, combined, described
from longtail.training.material import TrainingData

FAST = [
    "scale=tiny",
    "model.backbone=tiny32",
    "model.neck.channels=16",
    "model.regions.channels=32",
    "images.short_sides=[48, 64]",
    "images.test_short_side=64",
    "groups.edges=[5, 25]",
    "stages.*.schedule.images=48",
    "stages.*.schedule.warmup_images=4",
    "stages.*.passes_every.images=16",
]
STATE = ("prob", "previous_loss", "previous_count", "rounds")


def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, [*FAST, *overrides])


def run(made: GeneratedSet, out: Path, what: Recipe, *, resume: bool = False) -> RunResult:
    return train(what, train=made.train, images=made.images, val=made.val, out=out, resume=resume)


def part(**options: Any) -> str:
    return "stages.end-to-end.replay=" + json.dumps([{"type": "virtual_features", "warmup_images": 16, **options}])


def test_losses_are_added_by_class_as_a_loop_adds_them() -> None:
    torch.manual_seed(0)
    heads: Any = [type("Head", (), {"classification_loss": SigmoidCrossEntropy(num_classes=3)}) for _ in range(2)]
    names = [HeadRecord(f"x{n}", f"y{n}") for n in range(2)]
    sums = torch.zeros(2, 2, 4, dtype=torch.float64)
    expected = np.zeros((2, 2, 4))
    for _ in range(3):
        record = Record(["x0", "y0", "x1", "y1"])
        for n in range(2):
            logits, labels = torch.randn(5 + n, heads[n].classification_loss.num_logits), torch.randint(0, 4, (5 + n,))
            record.keep(f"x{n}", logits)
            record.keep(f"y{n}", labels)
            for row in range(5 + n):
                loss = heads[n].classification_loss.per_sample(logits[row : row + 1], labels[row : row + 1])
                expected[n, 0, labels[row]] += float(loss)
                expected[n, 1, labels[row]] += 1
        add_losses(sums, heads, names, record)
    np.testing.assert_allclose(sums.numpy(), expected, rtol=1e-6)


def test_a_cascade_counts_the_weighted_sum_of_its_stages_means() -> None:
    sums = torch.tensor([[[6.0, 0.0, 4.0], [2, 0, 4]], [[8.0, 3.0, 1.0], [4, 1, 1]]], dtype=torch.float64)
    loss, rows = combined(sums, [2.0, 1.0])
    assert rows.tolist() == [2, 0, 4]
    assert loss.tolist() == [2 * (3 + 0.5 * 2), 0, 4 * (1 + 0.5 * 1)]
    assert [value.tolist() for value in combined(sums[:1], [7.0])] == [[6, 0, 4], [2, 0, 4]]


def test_the_first_stage_of_a_cascade_decides_for_all() -> None:
    model = nn.ModuleList(
        [
            VirtualFeatures(2, 3, torch.tensor([1, 1]), scale=scale, grouping="none")
            for _ in range(3)
            for scale in (1, 0.5)
        ]
    )
    for place, own in enumerate(model):
        own.moments.seen.fill_(place < 2)  # so that the others would leave their probabilities alone
    for loss in ([4.0, 4.0, 0.0], [2.0, 6.0, 0.0]):
        first = adapt_all(model, 3, torch.tensor(loss, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    assert first == [model[0], model[1]]
    for own, scale in zip(model, [1, 0.5] * 3, strict=True):
        assert own.prob.tolist() == pytest.approx([0.5 * scale * 1.1, 0.5 * scale * 0.9])


def test_values_and_rows_by_hand() -> None:
    statistics = ClassStatistics(
        names=["a", "b", "c"],
        image_counts=np.array([2, 3, 500]),
        instance_counts=np.array([2, 3, 500]),
        num_images=505,
        num_nonempty=505,
    )
    drawing = VirtualFeatures(3, 2, torch.tensor([2, 3, 500]))
    found = described(
        statistics,
        torch.tensor([3.0, 0, 8, 10], dtype=torch.float64),
        torch.tensor([2.0, 0, 4, 5], dtype=torch.float64),
        [drawing],
    )
    chance = drawing.prob.tolist()
    assert found.values == pytest.approx(
        {
            "class_loss/background": 2.0,
            "class_loss/rare": 1.5,
            "class_loss/frequent": 2.0,
            "virtual/expected_rows": 1.0,
            "virtual/rare": (chance[0] + chance[1]) / 2,
            "virtual/frequent": chance[2],
        }
    )
    assert [row.rows for row in found.rows] == [2, 0, 4]
    assert [row.loss for row in found.rows] == [1.5, None, 2.0]
    assert [row.group for row in found.rows] == ["r", "r", "f"]
    assert [row.probability for row in found.rows] == chance


def test_the_table_is_rewound(tmp_path: Path) -> None:
    log = ClassLog(tmp_path / "class_losses.csv")
    log.rewind(0)
    assert log.position() == 0
    log.add("one", 4, 16, [ClassRow('a "b", c', "r", 2, 0.5, 1 / 3)])
    place = log.position()
    log.add("one", 8, 32, [ClassRow("a", "-", 0, None, None)])
    assert log.path.read_text() == HEADER + 'one,4,16,"a ""b"", c",r,2,0.5,0.333333\none,8,32,a,-,0,,\n'
    log.rewind(place)
    assert log.position() == place
    log.rewind(0)
    assert not log.path.exists()


def test_without_rows_it_is_plain_training_on_the_same_split(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    """Also: rounds change neither weights nor the draws of what follows."""
    run(smoke_set, tmp_path / "plain", recipe("rfs", "holdout={fraction: 0.1}"))
    run(smoke_set, tmp_path / "fasa", recipe("fasa", part(scale=0)))
    plain, fasa = (
        load_file(tmp_path / name / "checkpoints" / "last" / "model.safetensors") for name in ("plain", "fasa")
    )
    assert {name for name in fasa if not name.startswith("box.replay.")} == set(plain)
    assert all(torch.equal(value, fasa[name]) for name, value in plain.items())
    data = [json.loads((tmp_path / name / "data.json").read_text()) for name in ("plain", "fasa")]
    assert data[0]["holdout"] == data[1]["holdout"]
    assert data[0]["train"]["images"] + data[0]["holdout"]["images"] == 120
    assert not (tmp_path / "plain" / "class_losses.csv").exists()


def test_a_round_changes_the_probabilities_alone(
    smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, rounds = loop.class_loss_round, []

    def watching(work: Any, stage: Any, **options: Any) -> Any:
        before, chance = {k: v.clone() for k, v in stage.model.state_dict().items()}, torch.get_rng_state()
        found = original(work, stage, **options)
        after = stage.model.state_dict()
        changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
        assert changed <= {f"box.replay.0.{name}" for name in STATE}
        assert torch.equal(chance, torch.get_rng_state())
        again = original(work, stage, **options)
        assert [row.loss for row in again.rows] == [row.loss for row in found.rows], "the pictures are the same"
        stage.model.load_state_dict(after | {f"box.replay.0.{name}": after[f"box.replay.0.{name}"] for name in STATE})
        rounds.append(found)
        return found

    monkeypatch.setattr(loop, "class_loss_round", watching)
    seesaw = "stages.end-to-end.classification_loss=seesaw"
    run(smoke_set, tmp_path / "run", recipe("fasa", part(grouping="none"), seesaw))
    assert len(rounds) == 3
    assert rounds[0].values["virtual/rare"] != rounds[-1].values["virtual/rare"] or len(
        {row.probability for row in rounds[0].rows} ^ {row.probability for row in rounds[-1].rows}
    )
    with (tmp_path / "run" / "class_losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["images"]) for row in rows[::12]] == [16, 32, 48]
    assert sum(int(row["rows"]) > 0 for row in rows[:12]) == 6, "classes with ten images and more"
    assert [row["loss"] == "" for row in rows] == [row["rows"] == "0" for row in rows]


def test_the_released_code_looks_at_the_validation_data(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    run(smoke_set, tmp_path / "run", recipe("fasa-official", "stages.end-to-end.passes_after_epoch=" + json.dumps(
        [{"type": "class_losses", "source": "val", "repeat_threshold": None, "augment": True, "images": 8}]
    )))  # fmt: skip
    content = json.loads((tmp_path / "run" / "data.json").read_text())
    assert content["holdout"] is None
    assert content["train"]["images"] == 120
    assert len((tmp_path / "run" / "class_losses.csv").read_text().splitlines()) == 1 + 3 * 12


def test_what_cannot_be_is_refused_before_training(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"held-out images, but there are none; set `holdout"):
        recipe("fasa", "holdout=null")
    with pytest.raises(UsageError, match=r"give some \(--val\), or set the pass's `source: holdout`"):
        train(recipe("fasa-official"), train=smoke_set.train, images=smoke_set.images, out=tmp_path / "a")
    with pytest.raises(DataError, match=r"no image can be held out: .* a class gives one from 500"):
        run(smoke_set, tmp_path / "b", recipe("rfs", "holdout.fraction=0.002"))
    cached = ["stages.end-to-end.proposals=cached", "stages.end-to-end.passes_after_epoch=[class_losses]"]
    with pytest.raises(UsageError, match="held-out images have none; set the pass's `source: val`"):
        run(smoke_set, tmp_path / "c", recipe("fast-rcnn", *cached, "holdout.fraction=0.1"))
    assert not list(tmp_path.iterdir())


def test_a_missing_scikit_learn_is_found_before_training(
    smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where groups are made of the moments and probabilities change; everything else goes without it."""
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    for name in ("fasa", "fasa-official"):
        with pytest.raises(UsageError, match=r"longtail\[fasa\]"):
            run(smoke_set, tmp_path / "run", recipe(name))
    assert not list(tmp_path.iterdir())
    run(smoke_set, tmp_path / "static", recipe("fasa", part(raise_factor=1, lower_factor=1)))
    table = AnnotationTable.from_coco(smoke_set.train)
    data = TrainingData(
        table, smoke_set.images, table.statistics(edges=(5, 25)), table, smoke_set.images, holdout=table
    )
    for quiet in (part(grouping="none"), part(grouping="frequency"), "stages.*.passes_after_epoch=[]"):
        refuse_early(recipe("fasa", quiet), data)


def test_a_round_that_is_cut_off_is_made_again(
    smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after the first round, before it is saved; in the second round's pictures; and in the step after it."""
    what = recipe("fasa", part(grouping="none"))
    run(smoke_set, tmp_path / "whole", what)
    for module, name, count in ((api, "save_last", 4), (class_losses, "add_losses", 5), (loop, "step_losses", 2)):
        left = count
        original = getattr(module, name)

        def breaking(*arguments: Any, original: Any = original) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise RuntimeError("cut off")
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, breaking)
            with pytest.raises(RuntimeError, match="cut off"):
                run(smoke_set, tmp_path / "cut", what, resume=(tmp_path / "cut").exists())
    run(smoke_set, tmp_path / "cut", what, resume=True)
    for file in ("metrics.csv", "class_losses.csv", "checkpoints/last/model.safetensors"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
