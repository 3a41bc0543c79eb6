"""Runs that are stopped from outside, at the worst moments, and go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from longtail.data.scenes import GeneratedSet

RECIPE = """
name: two-stages
summary: End to end, then the classifier alone.
paper: none
extends: rfs
holdout: {fraction: 0.1}
stages:
  - name: end-to-end
    replay:
      - {type: object_memory, count: 3, capacity: 8, max_images: 1000, draw: random}
      - {type: virtual_features, grouping: none, warmup_images: 32}
    passes_after_epoch: [class_losses]
    passes_every: {images: 48}
  - name: classifier
    trainable: {only: [box.classifier], reinitialise: [box.classifier]}
    replay: [{type: object_memory, count: 3, max_images: 1000}]
    weight_average: 0.9
"""
CHANGES = [
    "scale=tiny",
    "model.backbone=tiny32",
    "model.neck.channels=16",
    "model.regions.channels=32",
    "model.masks.channels=[8, 8]",
    "images.short_sides=[64]",
    "images.test_short_side=64",
    "groups.edges=[5, 25]",
    "stages.*.schedule.images=160",
    "stages.*.schedule.warmup_images=4",
    "stages.*.schedule.accumulate=2",
    "workers=2",
]
DRIVER = """
import os, signal, sys
from longtail.training import checkpoint, class_losses, loop, whole_folder
from longtail.cli.main import main

place, left = sys.argv[1], int(sys.argv[2])
module, name = {
    "step": (loop, "step_losses"),
    "pass": (class_losses, "add_losses"),
    "hash": (whole_folder, "file_digest"),
    "rename": (os, "rename"),
    "stage": (checkpoint, "write_checkpoint"),
}[place]
original = getattr(module, name)

def counted(*arguments, **options):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(module, name, counted)
sys.exit(main(sys.argv[3:]))
"""


def words(made: GeneratedSet, folder: Path, name: str, *more: str) -> list[str]:
    return [
        "train", str(folder / "two.yaml"), *CHANGES,
        *("--train", str(made.train), "--images", str(made.images), "--val", str(made.val)),
        *("--out", str(folder / name), "--device", "cpu", *more),
    ]  # fmt: skip


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(child: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = child.communicate(timeout=120)
    return child.returncode, errors


def files(run: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "average.safetensors", "model.json")
    found = {name: (run / "checkpoints" / "last" / name).read_bytes() for name in names}
    results = json.loads((run / "eval" / "val" / "metrics.json").read_text())
    return found | {
        "metrics.csv": (run / "metrics.csv").read_bytes(),
        "class_losses.csv": (run / "class_losses.csv").read_bytes(),
        "end": (run / "stages" / "1-end-to-end" / "end" / "model.safetensors").read_bytes(),
        "results": json.dumps(results["bbox"]["metrics"]).encode(),
    }


def signal_in_training(child: subprocess.Popen[str], progress: Path, number: int) -> None:
    """Sends the signal to the whole process group, loader workers included, once this process has done some steps."""
    deadline, first = time.monotonic() + 60, None
    while time.monotonic() < deadline and child.poll() is None:
        try:
            state = json.loads(progress.read_text())
        except (OSError, ValueError):
            state = {}
        if str(state.get("title")).startswith("train"):
            first = state["done"] if first is None else first
            if state["done"] > first:
                break
        time.sleep(0.02)
    os.killpg(child.pid, number)


def test_signals_and_kills_change_nothing(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    """One run, stopped seven times: by both signals, and killed in a pass, in a step, while a checkpoint is hashed,
    between the two renames that put it in place, and between the stages."""
    (tmp_path / "two.yaml").write_text(RECIPE)
    whole = start("-m", "longtail", *words(smoke_set, tmp_path, "whole", "--quiet"))

    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        progress = tmp_path / f"progress-{code}.json"
        more = ("--resume", "--progress-file", str(progress))
        child = start("-m", "longtail", *words(smoke_set, tmp_path, "cut", *more))
        signal_in_training(child, progress, number)
        ended, errors = finish(child)
        assert ended == code, errors
        assert "finishing this step" in errors
        assert "Traceback" not in errors
        assert "--resume continues it" in errors
    for place, count in (("pass", 2), ("step", 7), ("hash", 6), ("rename", 2), ("stage", 1)):
        child = start("-c", DRIVER, place, str(count), *words(smoke_set, tmp_path, "cut", "--resume", "--quiet"))
        ended, errors = finish(child)
        assert ended == -signal.SIGKILL, (place, ended, errors)
    child = start("-m", "longtail", *words(smoke_set, tmp_path, "cut", "--resume", "--quiet"))
    assert finish(child) == (0, "")
    assert finish(whole) == (0, "")

    log = (tmp_path / "cut" / "log.txt").read_text()
    assert log.count("resuming stage") == 7
    assert "last is missing; using the one before it" in log
    for name, content in files(tmp_path / "whole").items():
        assert files(tmp_path / "cut")[name] == content, name


def test_a_run_killed_before_its_first_checkpoint_begins_again(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(RECIPE)
    child = start("-c", DRIVER, "hash", "1", *words(smoke_set, tmp_path, "cut", "--quiet"))
    assert finish(child)[0] == -signal.SIGKILL
    assert not (tmp_path / "cut" / "checkpoints" / "last").exists()
    child = start("-c", DRIVER, "stage", "1", *words(smoke_set, tmp_path, "cut", "--resume", "--quiet"))
    assert finish(child)[0] == -signal.SIGKILL
    assert (tmp_path / "cut" / "checkpoints" / "last" / "model.safetensors").is_file()
