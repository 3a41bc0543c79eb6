"""A run on several sources of several formats, resumed and evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longtail.build.samplers import stage_sampler
from longtail.cli.main import main
from longtail.data import AnnotationTable
from longtail.data.convert import convert
from longtail.data.scenes import GeneratedSet
from longtail.data.sources import pair_folders, read_sources, run_paths
from longtail.schema import DataError, UsageError, load_recipe
from longtail.training import api, loop

SHORT = [
    "scale=tiny",
    "model=faster_rcnn",
    "workers=0",
    "model.backbone=tiny32",
    "model.neck.channels=16",
    "model.regions.channels=32",
    "images.short_sides=[64]",
    "images.test_short_side=64",
    "stages.*.schedule.images=24",
    "stages.*.schedule.warmup_images=4",
]


def two_halves(smoke_set: GeneratedSet, folder: Path) -> tuple[Path, Path]:
    """The first 30 training images as a COCO file, the next 30 as a VOC folder with its pictures."""
    table = AnnotationTable.from_coco(smoke_set.train)
    first, second = folder / "first.json", folder / "second.json"
    table.select(np.arange(30)).write_coco(first)
    table.select(np.arange(30, 60)).write_coco(second)
    convert(second, folder / "voc", to="voc", split="train")
    (folder / "voc" / "JPEGImages").symlink_to(smoke_set.images)
    return first, folder / "voc"


def test_folders_are_paired(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    first, voc = two_halves(smoke_set, tmp_path)
    a, v = str(first), str(voc)
    assert pair_folders([a], ["x"]) == ["x"]
    assert pair_folders([v], []) == [None]
    assert pair_folders([f"{v}:train", a], ["x"]) == [None, "x"]
    assert pair_folders([v, a], ["x", "y"]) == ["x", "y"]
    assert pair_folders([a, v, a], ["x", "y"]) == ["x", None, "y"]
    assert pair_folders([a, a], ["x"]) == ["x", "x"]
    with pytest.raises(UsageError, match=r"first\.json does not say where its pictures are"):
        pair_folders([v, a], [])
    with pytest.raises(UsageError, match="3 annotation sources and 2 picture folders"):
        pair_folders([a, a, a], ["x", "y"])
    with pytest.raises(DataError, match="no image folder"):
        read_sources([a], [tmp_path / "none"])
    paths = run_paths([a, f"{v}:train"], "pictures", v, None)
    assert paths == {
        "train": [a, f"{v}:train"], "images": str(Path("pictures").resolve()), "val": v, "val_images": None,
    }  # fmt: skip
    assert run_paths(a, "pictures", a, None)["val_images"] == str(Path("pictures").resolve())


def test_weights_must_fit_the_sources(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    first, voc = two_halves(smoke_set, tmp_path)
    table = read_sources([first, voc], [smoke_set.images])
    stage = load_recipe("rfs", [*SHORT, "stages.end-to-end.source_weights=[3,1]"]).stages[0]
    sampler = stage_sampler(stage, table, seed=0)
    rows = sampler.epoch(0)
    assert abs((rows < 30).mean() - 0.75) < 0.02
    assert "75.0% (holds 50.0%): repeat factor" in sampler.describe()
    three = load_recipe("rfs", [*SHORT, "stages.end-to-end.source_weights=[3,1,1]"]).stages[0]
    with pytest.raises(UsageError, match="3 source_weights for 2 annotation sources"):
        stage_sampler(three, table, seed=0)
    with pytest.raises(UsageError, match="source_weights"):
        load_recipe("rfs", [*SHORT, "stages.end-to-end.source_weights=[3,0]"])
    plain = load_recipe("rfs", SHORT).stages[0]
    assert len(stage_sampler(plain, table, seed=0).epoch(0)) >= 60


def test_run_on_two_sources(
    smoke_set: GeneratedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, voc = two_halves(smoke_set, tmp_path)
    words = [*SHORT, "stages.end-to-end.source_weights=[3,1]", "--train", str(first), "--images", str(smoke_set.images),
             "--train", f"{voc}:train", "--quiet"]  # fmt: skip
    assert main(["train", "baseline", *words, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "60 images" in plan and "75.0% (holds 50.0%)" in plan
    out = tmp_path / "run"
    assert main(["train", "baseline", *words, "--val", f"{voc}:train", "--out", str(out)]) == 0
    data = json.loads((out / "data.json").read_text())
    assert data["paths"]["train"] == [str(first), f"{voc}:train"]
    assert [each["images"] for each in data["train"]["sources"]] == [30, 30]
    log = (out / "log.txt").read_text()
    assert "2 sources in a fixed ratio" in log and "75.0%" in log and "all count from 1 now" in log
    assert main(["eval", str(out), "--quiet"]) == 0
    assert main(["eval", str(out), "--quiet", "--data", f"{voc}:train"]) == 0
    assert (out / "eval" / "voc-train" / "metrics.json").is_file()

    steps = 0
    original = loop.step_losses

    def dying(*arguments: object) -> object:
        nonlocal steps
        steps += 1
        if steps > 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "step_losses", dying)
    recipe, cut = load_recipe("baseline", words[: words.index("--train")]), tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        api.train(
            recipe, train=[first, f"{voc}:train"], images=smoke_set.images, val=f"{voc}:train", out=cut, device="cpu"
        )
    monkeypatch.undo()
    api.resume(cut, device="cpu")
    annotation = next((voc / "Annotations").rglob("*.xml"))
    annotation.write_text(annotation.read_text().replace("<difficult>0<", "<difficult>1<"))
    with pytest.raises(DataError, match="is not what"):
        api.resume(cut, device="cpu")
    whole, again = weights(out), weights(cut)
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The last checkpoint's."""
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def test_results_are_read_back_with_masks(
    smoke_set: GeneratedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `eval` and `predict` write gives the same metrics when it is evaluated again, without pictures."""
    recipe = load_recipe("baseline", [*SHORT, "model=mask_rcnn", "model.masks.channels=[8, 8]"])
    out = tmp_path / "run"
    val = {"val": smoke_set.val, "val_images": smoke_set.images}
    api.train(recipe, train=smoke_set.train, images=smoke_set.images, out=out, device="cpu", **val)
    own = api.evaluate(out)["auto"]
    again = api.evaluate(out, detections=out / "eval" / "val" / "results.bbox.json", split="b")["auto"]
    assert again["bbox"].metrics == own["bbox"].metrics and set(again) == {"bbox"}
    again = api.evaluate(out, detections=out / "eval" / "val" / "results.segm.json", split="s")["auto"]
    assert again["segm"].metrics == own["segm"].metrics
    assert main(["predict", str(out), str(smoke_set.images), "--out", str(tmp_path / "p"), "--score", "0",
                 "--no-drawings", "--quiet"]) == 0  # fmt: skip
    file = tmp_path / "p" / "predictions.json"
    content = json.loads(file.read_text())
    names = set(AnnotationTable.from_coco(smoke_set.val).file_names)
    ids = {image["id"] for image in content["images"] if image["file_name"] in names}
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in ids]
    assert all("bbox" in each and "segmentation" in each for each in content["annotations"])
    file.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["eval", str(out), "--detections", str(file), "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["split"] == "predictions"
    for kind in ("bbox", "segm"):
        assert told["results"]["auto"][kind]["metrics"] == pytest.approx(own[kind].metrics)
