"""Short real runs from the command line with every augmentation, and what is refused before a run begins."""

import json
from pathlib import Path

import pytest

from longtail.cli.main import main
from longtail.data.scenes import GeneratedSet

FAST = [
    "scale=tiny", "model.backbone=tiny32", "model.neck.channels=16", "model.regions.channels=32",
    "model.masks.channels=[8, 8]", "images.short_sides=[64]", "images.test_short_side=64",
    "stages.*.schedule.images=12", "stages.*.schedule.warmup_images=4",
]  # fmt: skip
PASTE = ["images.copy_paste=class_aware", "images.copy_paste.probability=1"]


def command(made: GeneratedSet, out: Path, *overrides: str) -> list[str]:
    return [
        "train",
        "rfs",
        *FAST,
        *overrides,
        "--train",
        str(made.train),
        "--images",
        str(made.images),
        "--out",
        str(out),
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=mask_rcnn", "images.resize=scale_jitter", "images.resize.size=[64, 96]", *PASTE],
        ["images.resize=scale_jitter", "images.resize.size=[96, 64]", "images.resize.pad=false", "workers=2"],
        ["images.colour=stepwise", *PASTE, "images.copy_paste.blur=1"],
        ["model=mask_rcnn", "images.resize={type: detr, before: [50, 60], crop: [30, 50]}", "images.transpose=0.5"],
        ["images.fixed_size=[48, 80]", "stages.end-to-end.colour=stepwise"],
    ],
)
def test_a_run_with_augmentation(smoke_set: GeneratedSet, tmp_path: Path, overrides: list[str]) -> None:
    assert main(command(smoke_set, tmp_path / "run", *overrides)) == 0
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert any(",loss," in row for row in rows)


def test_copy_paste_without_masks_is_refused_before_anything_is_written(
    smoke_set: GeneratedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(smoke_set.train.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    words = command(smoke_set, tmp_path / "run", *PASTE)
    words[words.index("--train") + 1] = str(tmp_path / "boxes.json")
    assert main(words) == 3
    assert "copy-paste needs a mask for every object" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
