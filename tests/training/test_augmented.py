"""Short real runs from the command line with every augmentation, and what is refused before a run begins."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longtail.cli.main import main
from longtail.data.scenes import GeneratedSet
from longtail.training import loop

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


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_run_cut_off_and_resumed_draws_the_same_pictures(
    smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*PASTE, "images.resize=scale_jitter", "images.resize.size=[64, 64]", "images.colour=stepwise"]
    words = command(smoke_set, tmp_path / "whole", *options, "stages.*.schedule.images=24")
    assert main([*words, "workers=2"]) == 0
    steps, original = 0, loop.step_losses

    def dying(*arguments: object) -> dict[str, torch.Tensor]:
        nonlocal steps
        steps += 1
        if steps > 4:
            raise Killed
        return original(*arguments)

    words[words.index("--out") + 1] = str(tmp_path / "cut")
    monkeypatch.setattr(loop, "step_losses", dying)
    assert main(words) == 1
    monkeypatch.setattr(loop, "step_losses", original)
    assert main([*words, "--resume"]) == 0
    last = Path("checkpoints") / "last" / "model.safetensors"
    whole, cut = load_file(tmp_path / "whole" / last), load_file(tmp_path / "cut" / last)
    assert whole.keys() == cut.keys()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


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
