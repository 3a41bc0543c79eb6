"""Step-wise learning in real runs: scores, chosen objects, what trains, kills and resumption, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longtail.data import AnnotationTable
from longtail.data.dataset import DetectionDataset
from longtail.data.object_scores import ObjectScores, scored_rows, with_annotations
from longtail.data.scenes import GeneratedSet
from longtail.schema import DataError, Recipe, UsageError, load_recipe
from longtail.schema.stepwise import HeadDominant, TailDominant
from longtail.training import api, exemplars, loop
from longtail.training.assemble import model_from_checkpoint
from longtail.training.exemplars import SCORES, exemplar_data, learned, score_objects, scores_file
from longtail.training.material import TrainingData
from longtail.training.progress import Silent
from longtail.training.run_directory import RunDirectory
from longtail.training.study_plan import go_on_from

FAST = [
    "scale=tiny", "model.backbone=tiny32", "model.channels=64", "model.hidden=64", "model.encoder_layers=1",
    "model.decoder_layers=2", "model.num_queries=20", "images.short_sides=[64]", "images.test_short_side=64",
    "groups.edges=[5, 25]", "stages.*.schedule.images=12", "stages.*.schedule.batch_size=4",
    "evaluation.batch_size=8",
]  # fmt: skip
# classes of the small set that have six images are head classes there
TRANSFER = [
    "stages.knowledge-transfer.auxiliary_losses="
    "[{type: masked_features, head_min_images: 6}, {type: classification_distillation, head_min_images: 6}]",
    "stages.knowledge-transfer.exemplars.edges=[6]",
]
TRAINABLE = ("transformer.input_proj.", "class_embed.")


def recipe(name: str = "stepwise", *overrides: str) -> Recipe:
    own = TRANSFER if name in ("stepwise", "stepwise-kt") else []
    return load_recipe(name, [*FAST, *own, *overrides])


def run(made: GeneratedSet, out: Path, what: Recipe, **options: Any) -> api.RunResult:
    return api.train(what, train=made.train, images=made.images, val=made.val, out=out, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}


@pytest.fixture(scope="module")
def small_set(smoke_set: GeneratedSet, tmp_path_factory: pytest.TempPathFactory) -> GeneratedSet:
    """A quarter of the smallest set."""
    folder = tmp_path_factory.mktemp("small")
    for file in (smoke_set.train, smoke_set.val):
        table = AnnotationTable.from_coco(file)
        table.select(np.arange(table.num_images // 4)).write_coco(folder / file.name)
    (folder / "images").symlink_to(smoke_set.images)
    return GeneratedSet(folder)


@pytest.fixture(scope="module")
def whole(small_set: GeneratedSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps."""
    return run(small_set, tmp_path_factory.mktemp("stepwise") / "run", recipe()).run


def test_scores_are_those_of_the_detector_after_step_0(whole: Path, small_set: GeneratedSet) -> None:
    table = AnnotationTable.from_coco(small_set.train)
    first = whole / "stages" / "1-set-prediction"
    kept = ObjectScores.open(first / SCORES, table)
    assert kept.rows.tolist() == list(range(len(table.label)))
    model, _ = model_from_checkpoint(first / "end")
    dataset = DetectionDataset(table, small_set.images)
    for image in (0, 7):
        picture, target = dataset[image]
        (pairs,) = model.score_objects([picture], [target])  # type: ignore[operator]
        rows = table.rows_of(image)
        np.testing.assert_allclose(kept.own[rows], pairs[:, 0].numpy(), atol=1e-5)
        np.testing.assert_allclose(kept.best[rows], pairs[:, 1].numpy(), atol=1e-5)
    assert (kept.own <= kept.best).all()
    assert (kept.own < kept.best).any()


def test_every_step_starts_from_the_one_before_and_trains_what_it_says(whole: Path) -> None:
    stages = whole / "stages"
    zero = weights(stages / "1-set-prediction" / "end")
    one = weights(stages / "2-head-expert" / "end")
    two = weights(whole / "checkpoints" / "last")
    teacher = weights(stages / "3-knowledge-transfer" / "start")
    assert all(torch.equal(teacher[name], one[name]) for name in one)
    for before, after in ((zero, one), (one, two)):
        changed = {name for name in after if not torch.equal(before[name], after[name])}
        assert changed
        assert all(name.startswith(TRAINABLE) for name in changed)
        assert {name.split(".")[1] for name in changed if name.startswith("class_embed")} == {"0", "1", "2"}
        assert {name.split(".")[2] for name in changed if name.startswith("transformer")} == {"0", "1", "2", "3"}
    values = [line.split(",") for line in (whole / "metrics.csv").read_text().splitlines()]
    for name in ("loss_masked_features", "loss_classification_distillation"):
        assert any(float(row[-1]) > 0 for row in values if row[3] == name), name
    log = (whole / "log.txt").read_text()
    assert "exemplars: " in log
    assert "group repeat factor" in log


@pytest.mark.parametrize("at", [1, 5, 7])
def test_cut_off_in_any_step(
    at: int, whole: Path, small_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, steps = loop.step_losses, 0

    def dying(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > at:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "step_losses", dying)
    with pytest.raises(KeyboardInterrupt):
        run(small_set, tmp_path / "cut", recipe())
    monkeypatch.setattr(loop, "step_losses", original)
    api.resume(tmp_path / "cut")
    same_run(tmp_path / "cut", whole)


def test_the_scores_of_the_last_stage_that_made_some(tmp_path: Path) -> None:
    what = recipe("stepwise", "stages.head-expert.passes_after=[exemplar_scores]")
    folders = [scores_file(what, index, RunDirectory(tmp_path)).parent.name for index in (1, 2)]
    assert folders == ["1-set-prediction", "2-head-expert"]


@pytest.mark.parametrize("written", [False, True])
def test_cut_off_while_scoring_or_just_after(
    written: bool, whole: Path, small_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, score = ObjectScores.write, exemplars.score_objects

    def dying(*arguments: Any) -> None:
        if written:
            original(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(ObjectScores, "write", dying)
    with pytest.raises(KeyboardInterrupt):
        run(small_set, tmp_path / "cut", recipe())
    assert len(list((tmp_path / "cut").rglob(SCORES))) == written
    monkeypatch.setattr(ObjectScores, "write", original)
    monkeypatch.setattr(exemplars, "score_objects", None if written else score)
    api.resume(tmp_path / "cut")
    same_run(tmp_path / "cut", whole)


def same_run(one: Path, other: Path) -> None:
    first, second = weights(one / "checkpoints" / "last"), weights(other / "checkpoints" / "last")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    scores = Path("stages") / "1-set-prediction" / SCORES
    assert (one / scores).read_bytes() == (other / scores).read_bytes()


def test_a_row_of_a_study_goes_on_from_step_0_and_its_scores(
    whole: Path, small_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(small_set, tmp_path / "base", recipe("deformable-detr", "stages.set-prediction.passes_after=[exemplar_scores]"))
    go_on_from(tmp_path / "base", tmp_path / "row", recipe())
    monkeypatch.setattr(exemplars, "score_objects", None)
    run(small_set, tmp_path / "row", recipe(), resume=True)
    same_run(tmp_path / "row", whole)


def test_scores_of_another_run(whole: Path, small_set: GeneratedSet, tmp_path: Path, monkeypatch: Any) -> None:
    """Those of another run are taken where they are named."""
    monkeypatch.setattr(exemplars, "score_objects", None)
    table = whole / "stages" / "1-set-prediction" / SCORES
    what = recipe(
        "stepwise-ft", f"stages.head-expert.exemplars.scores={table}", "stages.set-prediction.passes_after=[]"
    )
    run(small_set, tmp_path / "named", what)


def test_evaluation_and_prediction(whole: Path, small_set: GeneratedSet, tmp_path: Path) -> None:
    own = api.evaluate(whole)["auto"]["bbox"]
    assert own.metrics == json.loads((whole / "eval" / "val" / "metrics.json").read_text())["bbox"]["metrics"]
    picture = sorted(path for path in small_set.images.rglob("*") if path.is_file())[0]
    found = api.predict(whole, picture, out=tmp_path / "found", score_threshold=0.0)
    assert json.loads(found.read_text())["annotations"]


def tables(small_set: GeneratedSet) -> TrainingData:
    table = AnnotationTable.from_coco(small_set.train)
    return TrainingData(table, small_set.images, table.statistics(edges=(5, 25)), None, None)


def given_scores(table: AnnotationTable, seed: int = 0) -> ObjectScores:
    values = np.random.default_rng(seed).random((len(table.label), 2)).astype(np.float32)
    return ObjectScores(np.arange(len(table.label)), values.min(axis=1), values.max(axis=1))


@pytest.mark.parametrize("spec", [HeadDominant(edges=(6,), counts=(2, 9)), TailDominant(edges=(6,), counts=("all", 4))])
def test_the_smooth_tail_set(spec: HeadDominant | TailDominant, small_set: GeneratedSet) -> None:
    data = tables(small_set)
    table, scores = data.table, given_scores(data.table)
    chosen, lines = exemplar_data(spec, data, scores)
    images = data.statistics.image_counts
    available = np.bincount(table.label, minlength=table.num_classes)
    found = np.bincount(chosen.table.label, minlength=table.num_classes)
    for each in range(table.num_classes):
        limit = spec.counts[int(images[each] >= 6)]
        assert found[each] == (available[each] if limit == "all" else min(limit, available[each]))
    assert chosen.table.num_empty == 0
    assert chosen.statistics is data.statistics
    assert f"{found.sum()} objects of {len(table.label)}" in lines[0]
    # the same with the other objects kept: the same pictures, and the mark says which objects count
    ignoring, _ = exemplar_data(spec.model_copy(update={"unselected": "ignore"}), data, scores)
    assert ignoring.chosen is not None
    assert ignoring.table.image_ids.tolist() == chosen.table.image_ids.tolist()
    assert len(ignoring.table.label) > len(chosen.table.label)
    assert learned(ignoring).annotation_ids.tolist() == chosen.table.annotation_ids.tolist()
    dataset = DetectionDataset(ignoring.table, small_set.images, chosen=ignoring.chosen)
    marks = torch.cat([dataset[image][1]["chosen"] for image in range(len(dataset))])
    assert torch.equal(marks, torch.from_numpy(ignoring.chosen))


@pytest.mark.parametrize("unselected", ["drop", "ignore"])
def test_lists_of_federated_pictures_survive(unselected: str, tmp_path: Path) -> None:
    # category 7 is a tail class: picture 1 shows none, picture 2 says nothing of it, picture 3 not how many
    lists: list[tuple[int, list[int], list[int]]] = [(1, [7], []), (2, [], [5]), (3, [5], [7]), (4, [5, 7], [])]
    images = [
        {"id": own, "file_name": f"{own}.png", "width": 32, "height": 32,
         "neg_category_ids": negative, "not_exhaustive_category_ids": partly}
        for own, negative, partly in lists
    ]  # fmt: skip
    objects = [(1, 1, 5), (2, 2, 5), (3, 3, 7), (4, 1, 5), (5, 4, 3)]  # id, picture, category
    annotations = [
        {"id": own, "image_id": image, "category_id": category, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
        for own, image, category in objects
    ]
    categories = [{"id": each, "name": str(each)} for each in (3, 5, 7)]
    (tmp_path / "lvis.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    table = AnnotationTable.from_coco(tmp_path / "lvis.json")
    data = TrainingData(table, None, table.statistics(edges=(1, 2)), None, None)
    spec = HeadDominant(edges=(2,), counts=(0, 2)).model_copy(update={"unselected": unselected})
    kept = exemplar_data(spec, data, given_scores(table))[0].table
    assert set(kept.image_ids.tolist()) <= {1, 2}, "no tail object is kept, and no picture with nothing else"
    spec = HeadDominant(edges=(2,), counts=("all", 1)).model_copy(update={"unselected": unselected})
    kept = exemplar_data(spec, data, given_scores(table))[0].table
    assert {3, 4} <= set(kept.image_ids.tolist())
    assert kept.negatives is not None and kept.not_exhaustive is not None
    for row, image in enumerate(kept.image_ids.tolist()):
        _, negative, partly = lists[image - 1]
        assert [(3, 5, 7)[label] for label in kept.negatives.of(row)] == negative
        assert [(3, 5, 7)[label] for label in kept.not_exhaustive.of(row)] == partly


def test_objects_of_equal_score_go_by_annotation_id(small_set: GeneratedSet) -> None:
    data = tables(small_set)
    table = replace(data.table, annotation_ids=data.table.annotation_ids[::-1].copy())
    rows = np.arange(len(table.label))
    equal = ObjectScores(rows, np.full(len(rows), 0.3, np.float32), np.full(len(rows), 0.3, np.float32))
    kept = exemplar_data(HeadDominant(edges=(6,), counts=(1, 1)), replace(data, table=table), equal)[0].table
    assert sorted(kept.annotation_ids) == sorted(table.annotation_ids[table.label == c].min() for c in set(table.label))


def test_own_class_and_highest_score_choose_differently(small_set: GeneratedSet) -> None:
    data = tables(small_set)
    scores = given_scores(data.table)
    spec = HeadDominant(edges=(6,), counts=(2, 5))
    ids = [
        exemplar_data(each, data, scores)[0].table.annotation_ids.tolist()
        for each in (spec, spec.model_copy(update={"score": "max"}))
    ]
    assert ids[0] != ids[1]


def test_crowds_ignored_and_flat_objects_are_not_scored(whole: Path, small_set: GeneratedSet) -> None:
    table = AnnotationTable.from_coco(small_set.train).select(np.arange(6))
    crowd, ignore = (np.zeros(len(table.label), dtype=np.bool_) for _ in range(2))
    boxes = table.boxes_xywh.copy()
    crowd[0], ignore[3], boxes[5, 2] = True, True, 0
    table = replace(table, iscrowd=crowd, ignore=ignore, boxes_xywh=boxes)
    model, _ = model_from_checkpoint(whole / "stages" / "1-set-prediction" / "end")
    options: dict[str, Any] = {
        "device": torch.device("cpu"), "batch_size": 2, "workers": 0, "progress": Silent(), "max_pixels": 10**6,
    }  # fmt: skip
    found = score_objects(model, table, small_set.images, **options)  # type: ignore[arg-type]
    assert found.rows.tolist() == scored_rows(table).tolist()
    assert {0, 3, 5}.isdisjoint(found.rows.tolist())
    assert len(found.rows) == len(table.label) - 3


def test_more_objects_than_queries(whole: Path, small_set: GeneratedSet) -> None:
    model, _ = model_from_checkpoint(whole / "stages" / "1-set-prediction" / "end")
    boxes = torch.tensor([[float(i), 5.0, i + 20.0, 40.0] for i in range(30)])
    target = {"boxes": boxes, "labels": torch.zeros(30, dtype=torch.int64)}
    empty = {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)}
    pairs, none = model.score_objects([torch.rand(3, 64, 64)] * 2, [target, empty])  # type: ignore[operator]
    assert (pairs[:, 0] > 0).sum() == 20
    assert none.shape == (0, 2)


def test_scores_of_other_annotations_are_refused(small_set: GeneratedSet, tmp_path: Path) -> None:
    table = AnnotationTable.from_coco(small_set.train)
    given_scores(table).write(tmp_path / SCORES, table)
    back = ObjectScores.open(tmp_path / SCORES, table)
    assert np.array_equal(back.best, given_scores(table).best)
    some = np.ones(len(table.label), dtype=np.bool_)
    some[4] = False
    with pytest.raises(DataError, match="other objects"):
        ObjectScores.open(tmp_path / SCORES, with_annotations(table, some))
    with pytest.raises(DataError, match="no scores"):
        ObjectScores.open(tmp_path / "nothing.arrow", table)
    (tmp_path / SCORES).write_bytes(b"broken")
    with pytest.raises(DataError, match="damaged"):
        ObjectScores.open(tmp_path / SCORES, table)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("stepwise", ["stages.set-prediction.passes_after=[]"], "no earlier stage scores them"),
        ("stepwise", ["stages.head-expert.exemplars.counts=[1, 2, 3]"], "as many counts"),
        ("stepwise", ["stages.head-expert.exemplars.edges=[30, 10]"], "ascending"),
        ("stepwise", ["stages.head-expert.sampler.thresholds=[0.1]"], "each"),
        ("stepwise", ["stages.knowledge-transfer.replay=[object_memory]"], "deformable_detr has none"),
        ("stepwise", ["stages.knowledge-transfer.auxiliary_losses=[region_features]"], "faster_rcnn"),
        ("retinanet", ["stages.one-stage.passes_after=[exemplar_scores]"], "deformable_detr"),
    ],
)
def test_what_does_not_go_together_is_refused(
    name: str, overrides: list[str], message: str, small_set: GeneratedSet, tmp_path: Path
) -> None:
    fast = [text for text in FAST if name == "stepwise" or not text.startswith("model.")]
    with pytest.raises(UsageError, match=message):
        run(small_set, tmp_path / "run", load_recipe(name, [*fast, *overrides]))
    assert not (tmp_path / "run").exists()


def test_objects_that_are_not_chosen_can_be_ignored(small_set: GeneratedSet, tmp_path: Path) -> None:
    what = recipe("stepwise-kt", "stages.knowledge-transfer.exemplars.unselected=ignore")
    run(small_set, tmp_path / "run", what)
    assert "loss_classification_distillation" in (tmp_path / "run" / "metrics.csv").read_text()
