"""Runs on proposals that were made once: their stage, their files, and what shares them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longtail.cli.main import main
from longtail.data import AnnotationTable
from longtail.data.proposals import ProposalTable
from longtail.data.scenes import GeneratedSet
from longtail.schema import DataError, Recipe, UsageError, load_recipe
from longtail.training import api, assemble, evaluating, loop
from longtail.training.assemble import model_from_checkpoint
from longtail.training.material import TrainingData
from longtail.training.study_plan import go_on_from, plan_runs

FAST = [
    "scale=tiny",
    "model.backbone=tiny32",
    "model.neck.channels=16",
    "model.regions.channels=32",
    "model.masks.channels=[8]",
    "images.short_sides=[64]",
    "images.test_short_side=64",
    "groups.edges=[5, 25]",
    "stages.*.schedule.images=24",
    "stages.*.schedule.warmup_images=4",
    "model.inference.detections_per_image=10",
    "model.proposals.before_nms=[60, 60]",
    "model.proposals.after_nms=[30, 20]",
]


def recipe(name: str | Path, *overrides: str) -> Recipe:
    return load_recipe(name, [*FAST, *overrides])


def run(made: GeneratedSet, out: Path, what: Recipe, **options: object) -> api.RunResult:
    return api.train(what, train=made.train, images=made.images, val=made.val, out=out, **options)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(folder / "checkpoints" / "last" / "model.safetensors")
    return {name: value.clone() for name, value in found.items()}


def equal(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def fast(smoke_set: GeneratedSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the recipe."""
    folder = tmp_path_factory.mktemp("fast") / "run"
    run(smoke_set, folder, recipe("fast-rcnn"))
    return folder


def test_the_run_keeps_the_proposals_of_its_first_stage(fast: Path, smoke_set: GeneratedSet) -> None:
    tables = {}
    for name, file in (("train", smoke_set.train), ("val", smoke_set.val)):
        tables[name] = ProposalTable.open(fast / "proposals" / f"{name}.arrow")
        ids = AnnotationTable.from_coco(file).image_ids.tolist()
        assert tables[name].keys == sorted(json.dumps(each) for each in ids)
        counts = np.diff(tables[name].start)
        assert counts.max() == 30
        for row in range(len(ids)):
            scores = tables[name].scores[tables[name].start[row] : tables[name].start[row + 1]]
            assert (scores[:-1] >= scores[1:]).all()
        assert tables[name].boxes.min() >= 0
        assert tables[name].boxes.max() <= 64
    proposer, _ = model_from_checkpoint(fast / "stages" / "1-proposals" / "end")
    names = {name.split(".")[0] for name in proposer.state_dict()}
    assert names == {"backbone", "rpn"}
    last = weights(fast)
    assert not any(name.startswith("rpn.") for name in last)
    first = load_file(fast / "stages" / "1-proposals" / "end" / "model.safetensors")
    assert not torch.equal(last["backbone.body.conv1.weight"], first["backbone.body.conv1.weight"])
    columns = {line.split(",")[3] for line in (fast / "metrics.csv").read_text().splitlines()}
    assert {"loss_objectness", "loss_classifier"} <= columns


def test_the_second_stage_asks_for_the_backbones_weights(
    smoke_set: GeneratedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = assemble.build_model

    def asking(*arguments: Any, pretrained: bool, **options: Any) -> Any:
        asked.append(pretrained)
        return original(*arguments, pretrained=pretrained, **options)

    monkeypatch.setattr(assemble, "build_model", asking)
    table = AnnotationTable.from_coco(smoke_set.train)
    data = TrainingData(table, smoke_set.images, table.statistics(edges=(5, 25), count="images"), None, None)
    said: list[str] = []
    for start in ("backbone", "null"):
        assemble.assemble_stage(
            recipe("fast-rcnn", f"stages.end-to-end.start_from={start}"), 1, data,
            previous={}, weights=None, teacher_start=None, say=said.append,
        )  # fmt: skip
    assert asked == [True, False]
    assert "stage end-to-end starts from the backbone's weights" in said


def test_evaluation_and_prediction(
    fast: Path, smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original = evaluating.detect_all

    def seeing(model: Any, dataset: Any, **options: Any) -> Any:
        seen.append((dataset.proposals is not None, dataset.top_proposals))
        return original(model, dataset, **options)

    monkeypatch.setattr(evaluating, "detect_all", seeing)
    own = api.evaluate(fast)["auto"]["bbox"]
    assert seen == [(True, 20)]
    assert own.metrics == json.loads((fast / "eval" / "val" / "metrics.json").read_text())["bbox"]["metrics"]
    # the same pictures as foreign ones: the network proposes anew
    other = api.evaluate(fast, data=smoke_set.val, images=smoke_set.images, split="anew")["auto"]["bbox"]
    assert other.metrics == own.metrics
    picture = sorted(path for path in smoke_set.images.rglob("*") if path.is_file())[0]
    found = api.predict(fast, picture, out=tmp_path / "found", score_threshold=0.0)
    assert len(json.loads(found.read_text())["annotations"]) == 10
    alone = fast / "checkpoints" / "last"
    with pytest.raises(UsageError, match="proposals=only"):
        api.predict(alone, picture, out=tmp_path / "nothing")
    with pytest.raises(UsageError, match="does not find objects"):
        api.predict(fast / "stages" / "1-proposals" / "end", picture, out=tmp_path / "nothing")


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", [2, 7])
def test_cut_off_in_either_stage(
    at: int, fast: Path, smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, steps = loop.step_losses, 0

    def dying(*arguments: object):  # type: ignore[no-untyped-def]
        nonlocal steps
        steps += 1
        if steps > at:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(loop, "step_losses", dying)
    with pytest.raises(Killed):
        run(smoke_set, tmp_path / "cut", recipe("fast-rcnn"))
    monkeypatch.setattr(loop, "step_losses", original)
    api.resume(tmp_path / "cut")
    assert equal(tmp_path / "cut", fast)
    for name in ("train.arrow", "val.arrow"):
        assert (tmp_path / "cut" / "proposals" / name).read_bytes() == (fast / "proposals" / name).read_bytes()


def test_cached_proposals_of_a_frozen_network_train_as_it_does(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    """Every candidate is taken, since the network's own sampler draws from the same generator; no flips, since a
    network proposes something else in a flipped picture (that proposals are flipped: tests/data/test_proposals.py)."""
    kind = "model=cascade_mask_rcnn"
    same = [
        kind,
        "model.proposals.after_nms=[30, 30]",
        "images.flip=0",
        "stages.*.region_sampler={count: 1000, positive_fraction: 1.0}",
        "stages.*.trainable.only=[box, mask.*]",
        "stages.*.optimiser.clip_norm=null",
    ]
    run(smoke_set, tmp_path / "start", recipe("baseline", kind))
    start = tmp_path / "start" / "checkpoints" / "last"
    words = ["proposals", str(start.parents[1]), "--out", str(tmp_path / "kept"), "--quiet"]
    assert main(words) == 0
    computing = run(smoke_set, tmp_path / "computing", recipe("baseline", *same), weights=start)
    cached = recipe("baseline", *same, "stages.*.proposals=cached", f"model.proposals.cache={tmp_path / 'kept'}")
    reading = run(smoke_set, tmp_path / "reading", cached, weights=start)
    one, other = weights(tmp_path / "computing"), weights(tmp_path / "reading")
    assert set(one) - set(other) == {name for name in one if name.startswith("rpn.")}
    moved = 0
    before = weights(tmp_path / "start")
    for name, value in other.items():
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-6)
        moved += not torch.equal(value, before[name])
    assert moved > 5
    for metric, value in reading.results["bbox"].metrics.items():
        assert value == pytest.approx(computing.results["bbox"].metrics[metric], abs=2e-3), metric


def test_what_is_missing_is_refused_before_anything_is_trained(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are none: begin with a stage"):
        run(smoke_set, tmp_path / "none", recipe("baseline", "stages.*.proposals=cached"))
    with pytest.raises(DataError, match="no proposals at"):
        run(
            smoke_set,
            tmp_path / "nowhere",
            recipe("baseline", "stages.*.proposals=cached", f"model.proposals.cache={tmp_path}"),
        )
    with pytest.raises(UsageError, match="pasted"):
        run(smoke_set, tmp_path / "pasted", recipe("fast-rcnn", "images.copy_paste=class_aware"))
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_rows_of_a_study_share_the_proposals(fast: Path, smoke_set: GeneratedSet, tmp_path: Path) -> None:
    other = ["stages.end-to-end.classification_loss=lgr_ce", "model.neck.balance=bfp", "model=cascade_rcnn"]
    rows = [recipe("fast-rcnn"), recipe("fast-rcnn", *other), recipe("fast-rcnn", "stages.*.region_sampler.count=16")]
    planned = plan_runs(rows, "data")
    assert [len(each.recipe.stages) for each in planned] == [1, 2, 2, 2]
    assert {each.parent for each in planned[1:]} == {planned[0].key}
    assert len({each.key for each in plan_runs([recipe("fast-rcnn", "model.neck.channels=8")], "data")}) == 1
    for change in (
        "model.proposals.nms_threshold=0.5",
        "model.neck.channels=8",
        "stages.proposals.sampler=class_aware",
    ):
        apart = plan_runs([rows[0], recipe("fast-rcnn", change)], "data")
        assert [each.parent for each in apart] == [None, None], change

    first = run(smoke_set, tmp_path / "first", planned[0].recipe)
    assert first.results == {}
    assert json.loads((tmp_path / "first" / "eval" / "val" / "metrics.json").read_text()) == {}
    for name, what in (("plain", rows[0]), ("cascade", rows[1])):
        go_on_from(tmp_path / "first", tmp_path / name, what)
        api.resume(tmp_path / name)
        assert (tmp_path / name / "proposals" / "train.arrow").samefile(
            tmp_path / "first" / "proposals" / "train.arrow"
        )
    assert equal(tmp_path / "plain", fast), "as if it had trained the first stage itself"
    assert any(name.startswith("box.2.") for name in weights(tmp_path / "cascade"))
