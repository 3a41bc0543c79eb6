"""The run's folder, progress, curves."""

import io
import json
import sys
import types
from pathlib import Path

import pytest

from longtail.data.files import write_json
from longtail.schema import UsageError, load_recipe
from longtail.training.metrics_log import MetricsLog, require_wandb
from longtail.training.progress import FileProgress, PlainProgress
from longtail.training.run_directory import RunDirectory


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    recipe = load_recipe("baseline", ["scale=tiny"])
    run.create(recipe)
    assert load_recipe(run.recipe) == recipe
    assert json.loads(run.environment.read_text())["packages"]["torch"]
    with pytest.raises(UsageError, match="not empty"):
        run.create(recipe)
    with pytest.raises(UsageError, match="not a run"):
        RunDirectory(tmp_path).require()


def test_json_is_complete_or_not_there(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_curves_are_rewound_to_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.csv")
    log.add("one", 10, 40, {"loss": 0.1})
    log.add("one", 20, 80, {"loss": 0.05})
    place = log.position()
    log.add("one", 30, 120, {"loss": 1 / 30})
    log.add("two", 10, 40, {"loss": 1.0})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("two,20,8")  # cut off in the middle of a line
    log = MetricsLog(tmp_path / "metrics.csv")
    log.rewind(place)
    rows = (tmp_path / "metrics.csv").read_text().split()
    assert rows == ["stage,step,images,metric,value", "one,10,40,loss,0.1", "one,20,80,loss,0.05"]
    log.rewind(0)
    assert (tmp_path / "metrics.csv").read_text() == "stage,step,images,metric,value\n"


def test_a_run_cut_off_before_its_recipe_was_written_can_begin_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.yaml.x7f3").write_text("name: bas")
    RunDirectory(tmp_path / "run").create(load_recipe("baseline", ["scale=tiny"]))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".hidden").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        RunDirectory(tmp_path / "other").create(load_recipe("baseline", ["scale=tiny"]))


def test_plain_progress_says_how_long_it_takes() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, interval=0)
    progress.start("train", 10, done=4)
    progress.advance(3, "loss 1.0")
    progress.advance(3)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("train: 7/10, 0:00 left, loss 1.0")
    assert lines[1].startswith("train: 10/10")


def test_file_progress_can_be_polled(tmp_path: Path) -> None:
    progress = FileProgress(tmp_path / "p.json", interval=0)
    progress.start("train", 10)
    progress.advance(4, "going")
    assert json.loads((tmp_path / "p.json").read_text()) == {"title": "train", "total": 10, "done": 4, "text": "going"}


def test_a_missing_tracker_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"longtail\[wandb\]"):
        require_wandb()


def test_curves_go_to_tensorboard_and_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    class Run:
        def log(self, values: dict) -> None:
            seen.append(values)

        def finish(self) -> None:
            seen.append("finished")

    fake = types.ModuleType("wandb")
    fake.init = lambda **arguments: seen.append(arguments["project"]) or Run()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = MetricsLog(tmp_path / "metrics.csv", tensorboard=tmp_path / "board", project="mine")
    log.add("one", 1, 4, {"loss": 0.5})
    log.close()
    assert seen == ["mine", {"one/loss": 0.5}, "finished"]
    assert any((tmp_path / "board").iterdir())
