"""``longtail proposals``: what it writes, from what, and for whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longtail.cli.main import main
from longtail.data.scenes import GeneratedSet

FAST = [
    "scale=tiny", "model.backbone=tiny32", "model.neck.channels=16", "model.regions.channels=32",
    "images.short_sides=[64]", "images.test_short_side=64", "groups.edges=[5, 25]", "stages.*.schedule.images=8",
    "stages.*.schedule.warmup_images=4", "model.inference.detections_per_image=10",
    "model.proposals.before_nms=[60, 60]", "model.proposals.after_nms=[30, 30]",
]  # fmt: skip


def test_the_command_writes_what_the_run_has_kept(
    smoke_set: GeneratedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other, fresh = tmp_path / "run", tmp_path / "written", tmp_path / "fresh"
    data = ["--train", str(smoke_set.train), "--images", str(smoke_set.images), "--val", str(smoke_set.val)]
    (tmp_path / "first.yaml").write_text(
        "model: {type: faster_rcnn}\nstages: [{name: proposals, proposals: only}]\nsummary: The network alone."
    )
    assert main(["train", str(tmp_path / "first.yaml"), *FAST, *data, "--out", str(run), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "no detections to evaluate" in said
    assert str(run / "report.html") in said

    assert main(["proposals", str(run), "--out", str(other), "--json", "--quiet"]) == 0
    written = json.loads(capsys.readouterr().out)["proposals"]
    assert written == [str(other / "train.arrow"), str(other / "val.arrow")]
    for name in ("train.arrow", "val.arrow"):
        assert (other / name).read_bytes() == (run / "proposals" / name).read_bytes()

    words = ["--train", str(smoke_set.val), "--images", str(smoke_set.images), "--quiet"]
    assert main(["proposals", str(run), "--out", str(fresh), *words]) == 0
    assert [file.name for file in fresh.iterdir()] == ["train.arrow"]
    assert (fresh / "train.arrow").read_bytes() == (run / "proposals" / "val.arrow").read_bytes()

    capsys.readouterr()
    assert main(["proposals", str(run), "--out", str(fresh), "--val", str(smoke_set.val)]) == 2
    assert "--train" in capsys.readouterr().err
    assert main(["proposals", str(run / "checkpoints" / "last"), "--out", str(fresh), "--quiet"]) == 2
    assert "--train" in capsys.readouterr().err

    cached = ["train", "baseline", *FAST, "stages.*.proposals=cached", f"model.proposals.cache={other}"]
    assert main([*cached, *data, "--out", str(tmp_path / "cached"), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["proposals", str(tmp_path / "cached"), "--out", str(tmp_path / "none"), "--quiet"]) == 2
    assert "table" in capsys.readouterr().err
    assert main([*cached[:-1], f"model.proposals.cache={fresh}", *data, "--out", str(tmp_path / "x"), "--quiet"]) == 3
    assert "no proposals of 120 of 120 pictures" in capsys.readouterr().err
