"""Real runs on the smallest set: they learn, resume to the bit, and every recipe trains."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from longtail.data.scenes import GeneratedSet
from longtail.models.region_head import BoxStage
from longtail.schema import DataError, LongtailError, Recipe, UsageError, dump_recipe, load_recipe, recipe_names
from longtail.training import loop
from longtail.training.api import evaluate, predict, resume, train

FAST = [
    "scale=tiny",
    "model.backbone=tiny32",
    "model.neck.channels=16",
    "model.regions.channels=32",
    "model.masks.channels=[8, 8]",
    "images.short_sides=[64]",
    "images.test_short_side=64",
    "groups.edges=[5, 25]",
    "stages.*.schedule.images=24",
    "stages.*.schedule.warmup_images=4",
]
TWO_STAGES = """
name: two-stages
summary: End to end, then the classifier alone.
paper: none
extends: rfs
stages:
  - name: end-to-end
  - name: classifier
    sampler: {type: class_aware}
    trainable: {only: [box.classifier], reinitialise: [box.classifier]}
    replay: [{type: object_memory, count: 3, max_images: 8}]
    passes_before: [{type: update_state, images: 8}]
    passes_after_epoch: [{type: validation_loss, images: 8}]
    teacher: {weights: start}
    auxiliary_losses: [{type: masked_features, head_min_images: 10}]
"""


def recipe(name: str | Path, *overrides: str) -> Recipe:
    """For a detector without a pyramid, regions or masks, only what it has, too."""
    keys = type(load_recipe(name).model).model_fields
    missing = tuple(f"model.{part}" for part in ("neck", "regions", "masks") if part not in keys)
    fast = [text for text in FAST if not text.startswith(missing)]
    return load_recipe(name, [*fast, *overrides])


def run(made: GeneratedSet, out: Path, what: Recipe, **options: object):
    return train(what, train=made.train, images=made.images, val=made.val, out=out, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(folder / "checkpoints" / "last" / "model.safetensors")
    return {name: value.clone() for name, value in found.items()}  # the file's own memory would change with it


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


DETECTORS = [name for name in recipe_names() if load_recipe(name).model.type != "image_classifier"]


@pytest.mark.parametrize("name", DETECTORS)
def test_every_recipe_trains_and_evaluates(name: str, smoke_set: GeneratedSet, tmp_path: Path) -> None:
    result = run(smoke_set, tmp_path / "run", recipe(name))
    found = result.results["bbox"]
    assert found.metrics[found.headline] is not None
    for file in ("recipe.yaml", "environment.json", "data.json", "log.txt", "metrics.csv", "eval/val/metrics.json"):
        assert (result.run / file).is_file(), file
    assert {path.name for path in (result.run / "checkpoints").iterdir()} <= {"last", "last.previous", "best"}
    assert load_recipe(result.run / "recipe.yaml") == recipe(name)


def test_masks_train_and_are_evaluated(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    result = run(smoke_set, tmp_path / "run", recipe("rfs", "model=mask_rcnn", "model.masks.predictor=normalised"))
    assert set(result.results) == {"bbox", "segm"}
    assert (result.run / "eval" / "val" / "segm" / "per_class.csv").is_file()
    assert "loss_mask" in (result.run / "metrics.csv").read_text()


def test_the_loss_falls_because_of_the_steps(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    """Sixty steps from scratch, against the same sixty with a learning rate of nothing: same pictures, same regions
    to draw from, so what differs is learning."""
    final = {}
    for rate in ("0.003", "1e-12"):
        what = recipe("baseline", "stages.*.schedule.images=240", f"stages.*.optimiser.lr={rate}")
        run(smoke_set, tmp_path / rate, what)
        rows = [line.split(",") for line in (tmp_path / rate / "metrics.csv").read_text().splitlines()]
        final[rate] = [float(value) for _, _, _, name, value in rows[1:] if name == "loss"][-1]
    assert final["0.003"] < 0.9 * final["1e-12"], final


def test_same_seed_same_weights_other_seed_other_weights(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    run(smoke_set, tmp_path / "a", recipe("rfs"))
    run(smoke_set, tmp_path / "b", recipe("rfs", "workers=2"))
    run(smoke_set, tmp_path / "c", recipe("rfs", "seed=1"))
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b")), "loader processes change nothing"
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", [3, 6, 9])
def test_a_run_cut_off_and_resumed_gives_the_same_weights(
    at: int, smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages of six steps with passes, teacher and replay; cut off within and between them."""
    (tmp_path / "two.yaml").write_text(TWO_STAGES)
    what = recipe(tmp_path / "two.yaml", "stages.*.schedule.accumulate=2")
    whole = run(smoke_set, tmp_path / "whole", what)

    steps = 0
    original = loop.step_losses

    def dying(*arguments: object):
        nonlocal steps
        steps += 1
        if steps > 2 * at:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(loop, "step_losses", dying)
    with pytest.raises(Killed):
        run(smoke_set, tmp_path / "cut", what)
    monkeypatch.setattr(loop, "step_losses", original)
    resumed = resume(tmp_path / "cut")
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert resumed.results["bbox"].metrics == whole.results["bbox"].metrics
    assert (tmp_path / "cut" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def test_the_second_stage_trains_only_what_it_says(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO_STAGES)
    run(smoke_set, tmp_path / "two", recipe(tmp_path / "two.yaml"))
    run(smoke_set, tmp_path / "one", recipe("rfs"))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    changed = {name for name in one if not torch.equal(one[name], two[name])}
    assert changed
    norms = ("running_mean", "running_var", "num_batches_tracked")
    assert all(name.startswith("box.classifier.") for name in changed if not name.endswith(norms))
    text = (tmp_path / "two" / "metrics.csv").read_text()
    assert "loss_masked_features" in text
    assert "state/loss_classifier" in text
    log = (tmp_path / "two" / "log.txt").read_text()
    assert "fresh: box.classifier" in log


def test_evaluation_of_a_finished_run_equals_its_own(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    done = run(smoke_set, tmp_path / "run", recipe("baseline"))
    found = evaluate(tmp_path / "run", protocols=("auto", "coco", "fixed"))
    assert found["auto"]["bbox"].metrics == done.results["bbox"].metrics
    assert (tmp_path / "run" / "eval" / "val-coco" / "metrics.json").is_file()
    settings = json.loads((tmp_path / "run" / "eval" / "val-coco" / "metrics.json").read_text())["bbox"]["settings"]
    assert (settings["split"], settings["protocol"]) == ("val", "coco")
    detections = json.loads((tmp_path / "run" / "eval" / "val" / "results.bbox.json").read_text())
    assert {entry["category_id"] for entry in detections} <= set(range(1, 13))
    best = evaluate(tmp_path / "run" / "checkpoints" / "best", data=smoke_set.val, images=smoke_set.images)
    assert best["auto"]["bbox"].metrics == done.results["bbox"].metrics


def test_prediction_gives_original_ids_and_names(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    run(smoke_set, tmp_path / "run", recipe("baseline", "model=mask_rcnn"))
    path = predict(tmp_path / "run", smoke_set.images / "val", out=tmp_path / "out", score_threshold=0.0)
    content = json.loads(path.read_text())
    assert len(content["images"]) == 40
    assert content["categories"][0]["id"] == 1
    assert {category["frequency"] for category in content["categories"]} == {"r", "c", "f"}
    assert {"image_id", "category_id", "score", "segmentation"} <= set(content["annotations"][0])
    strict = predict(tmp_path / "run", smoke_set.images / "val" / "000000.jpg", out=tmp_path / "b", score_threshold=1.0)
    assert json.loads(strict.read_text())["annotations"] == []


def test_weights_of_other_classes_are_mapped_by_name(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    run(smoke_set, tmp_path / "run", recipe("baseline"))
    for part in ("train", "val"):
        content = json.loads((smoke_set.root / f"{part}.json").read_text())
        for category in content["categories"]:
            category["id"] += 100
        for annotation in content["annotations"]:
            annotation["category_id"] += 100
        for image in content["images"]:
            image["neg_category_ids"] = [value + 100 for value in image["neg_category_ids"]]
        content["categories"][0]["name"] = "something new"
        content["categories"].reverse()
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    done = train(
        recipe("baseline"),
        train=tmp_path / "train.json",
        images=smoke_set.images,
        val=tmp_path / "val.json",
        out=tmp_path / "new",
        weights=tmp_path / "run",
    )
    log = (done.run / "log.txt").read_text()
    assert "11" in log
    assert "something new" in log


def test_a_run_is_not_overwritten_and_resumes_only_its_own_recipe(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    done = run(smoke_set, tmp_path / "run", recipe("baseline"))
    before = weights(tmp_path / "run")
    with pytest.raises(UsageError, match="not empty"):
        run(smoke_set, tmp_path / "run", recipe("baseline"))
    with pytest.raises(UsageError, match="differ: seed"):
        run(smoke_set, tmp_path / "run", recipe("baseline", "seed=3"), resume=True)
    again = run(smoke_set, tmp_path / "run", recipe("baseline"), resume=True)
    assert equal(before, weights(tmp_path / "run"))
    assert again.results["bbox"].metrics == done.results["bbox"].metrics


def test_bad_requests_are_refused_before_training(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no annotation file"):
        train(recipe("baseline"), train=tmp_path / "no.json", images=smoke_set.images, out=tmp_path / "run")
    with pytest.raises(DataError, match="no image folder"):
        train(recipe("baseline"), train=smoke_set.train, images=tmp_path / "no", out=tmp_path / "run")
    with pytest.raises(UsageError, match="anchor_sizes"):
        run(smoke_set, tmp_path / "a", recipe("baseline", "model.proposals.anchor_sizes=[8, 16]"))
    with pytest.raises(UsageError, match="matches no parameter"):
        run(smoke_set, tmp_path / "a", recipe("baseline", "stages.*.optimiser.groups=[{match: 'decoder*'}]"))
    assert not (tmp_path / "a").exists(), "nothing is written before a request is known to make sense"
    (tmp_path / "two.yaml").write_text(TWO_STAGES)
    late = recipe(tmp_path / "two.yaml", "stages.classifier.trainable.only=[box.clasifier]")
    with pytest.raises(UsageError, match="matches no parameter"):
        run(smoke_set, tmp_path / "late", late)
    assert not (tmp_path / "late").exists(), "the second stage's mistake is found before the first one trains"
    with pytest.raises(UsageError, match="no weights"):
        run(smoke_set, tmp_path / "b", recipe("baseline"), weights=tmp_path / "none")
    with pytest.raises(UsageError, match="neither a run nor a checkpoint"):
        evaluate(tmp_path / "none")
    assert not (tmp_path / "run").exists()


def test_training_stops_at_a_broken_loss_and_keeps_the_last_sound_checkpoint(
    smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.step_losses
    calls = 0

    def breaking(*arguments: object):
        nonlocal calls
        calls += 1
        losses = original(*arguments)
        return {name: value * float("nan") for name, value in losses.items()} if calls > 3 else losses

    monkeypatch.setattr(loop, "step_losses", breaking)
    with pytest.raises(LongtailError, match="infinite or NaN"):
        run(smoke_set, tmp_path / "run", recipe("baseline"))
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values() if value.is_floating_point())


def test_the_resolved_recipe_is_in_the_run(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    what = recipe("rfs")
    run(smoke_set, tmp_path / "run", what)
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text()) == yaml.safe_load(dump_recipe(what))
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["train"]["images"] == 120
    assert data["train"]["sha256"]
    assert len(data["statistics"]["group"]) == 12


def test_bf16_trains(smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the losses see the objects' boxes as they are."""
    seen, original = [], BoxStage.losses

    def looking(stage: BoxStage, maps: object, size: object, proposals: object, targets: list, **options: object):
        seen.extend(target["boxes"].dtype for target in targets)
        return original(stage, maps, size, proposals, targets, **options)

    monkeypatch.setattr(BoxStage, "losses", looking)
    result = run(smoke_set, tmp_path / "run", recipe("baseline", "precision=bf16-mixed"))
    assert all(torch.isfinite(v).all() for v in weights(result.run).values() if v.is_floating_point())
    assert set(seen) == {torch.float32}


def test_a_teacher_that_is_the_student_gives_the_same_maps_in_bf16(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    """The second stage trains the classifier alone, so its maps stay those of its start."""
    (tmp_path / "two.yaml").write_text(TWO_STAGES)
    done = run(smoke_set, tmp_path / "run", recipe(tmp_path / "two.yaml", "precision=bf16-mixed"))
    rows = [line.split(",") for line in (done.run / "metrics.csv").read_text().splitlines()]
    found = [float(value) for _, _, _, name, value in rows[1:] if name == "loss_masked_features"]
    assert found and not any(found), found


def test_periodic_evaluation_keeps_the_best_and_logs_the_curve(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    what = recipe("baseline", "stages.*.schedule.images=240", "evaluation.every_epochs=1")
    done = run(smoke_set, tmp_path / "run", what)
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    evaluated = [int(step) for _, step, _, name, _ in rows[1:] if name == "bbox/AP"]
    assert evaluated == [30, 60], "after every 120 pictures"
    best = load_file(tmp_path / "run" / "checkpoints" / "best" / "model.safetensors")
    assert best.keys() == weights(tmp_path / "run").keys()
    assert done.results["bbox"].metrics["AP"] is not None


def damage(file: Path) -> None:
    """One bit in the middle changes; the size stays."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt", "rank-0.pt"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(name: str, smoke_set: GeneratedSet, tmp_path: Path) -> None:
    run(smoke_set, tmp_path / "run", recipe("baseline"))
    whole, curves = weights(tmp_path / "run"), (tmp_path / "run" / "metrics.csv").read_bytes()
    damage(tmp_path / "run" / "checkpoints" / "last" / name)
    found = evaluate(tmp_path / "run")
    assert found["auto"]["bbox"].metrics["AP"] is not None
    resume(tmp_path / "run")
    assert f"{name} is damaged" in (tmp_path / "run" / "log.txt").read_text()
    assert equal(whole, weights(tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == curves


def test_two_damaged_checkpoints_are_refused(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    run(smoke_set, tmp_path / "run", recipe("baseline"))
    for name in ("last", "last.previous"):
        damage(tmp_path / "run" / "checkpoints" / name / "model.safetensors")
    with pytest.raises(DataError, match=r"last/model\.safetensors is damaged"):
        resume(tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "best" / "model.json")
    with pytest.raises(DataError, match=r"best/model\.json is damaged"):
        evaluate(tmp_path / "run", checkpoint="best")
    with pytest.raises(DataError, match=r"best/model\.json is damaged"):
        evaluate(tmp_path / "run" / "checkpoints" / "best")
    for file in (tmp_path / "run" / "checkpoints" / "best").iterdir():
        file.unlink()
    (tmp_path / "run" / "checkpoints" / "best").rmdir()
    with pytest.raises(UsageError, match="no checkpoint"):
        evaluate(tmp_path / "run", checkpoint="best")


def test_a_run_goes_on_with_its_own_annotations_only(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    own = tmp_path / "train.json"
    own.write_bytes(smoke_set.train.read_bytes())
    what = recipe("baseline")
    train(what, train=own, images=smoke_set.images, out=tmp_path / "run")
    content = json.loads(own.read_text())
    content["annotations"].pop()
    own.write_text(json.dumps(content))
    with pytest.raises(DataError, match="started with other annotations for train"):
        resume(tmp_path / "run")
    own.write_bytes(smoke_set.train.read_bytes())
    with pytest.raises(DataError, match="started with no annotations for val"):
        train(what, train=own, images=smoke_set.images, val=smoke_set.val, out=tmp_path / "run", resume=True)


def test_averaged_weights_are_the_result_and_survive_a_resume(
    smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = recipe("baseline", "stages.*.weight_average=0.9", "evaluation.every_epochs=0.1")
    done = run(smoke_set, tmp_path / "whole", what)
    plain = run(smoke_set, tmp_path / "plain", recipe("baseline"))
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "plain")), "the average changes no step"
    average = load_file(tmp_path / "whole" / "checkpoints" / "last" / "average.safetensors")
    assert not torch.equal(average["box.classifier.weight"], weights(plain.run)["box.classifier.weight"])
    assert evaluate(tmp_path / "whole")["auto"]["bbox"].metrics == done.results["bbox"].metrics
    assert done.results["bbox"].metrics != plain.results["bbox"].metrics

    steps, original = 0, loop.step_losses

    def dying(*arguments: object):
        nonlocal steps
        steps += 1
        if steps > 4:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(loop, "step_losses", dying)
    with pytest.raises(Killed):
        run(smoke_set, tmp_path / "cut", what)
    monkeypatch.setattr(loop, "step_losses", original)
    again = resume(tmp_path / "cut")
    assert equal(average, load_file(tmp_path / "cut" / "checkpoints" / "last" / "average.safetensors"))
    assert again.results["bbox"].metrics == done.results["bbox"].metrics
