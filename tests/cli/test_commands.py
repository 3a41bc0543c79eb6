"""The commands that train and detect, with the training functions replaced: what they hand over and print."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from longtail.cli.main import main
from longtail.evaluation import EvaluationResult
from longtail.schema import Recipe
from longtail.training import api
from longtail.training.progress import FileProgress, Silent


def result(kind: str = "bbox", protocol: str = "lvis") -> EvaluationResult:
    return EvaluationResult(
        protocol=protocol,
        iou_type=kind,
        metrics={"AP": 0.3, "APr": 0.1, "APc": None, "APf": 0.5},
        classes_behind={"AP": {"classes": 3, "with_objects": 2}, "APr": {"classes": 1, "with_objects": 1}},
        per_class={},
        notes=[],
        settings={},
    )


@dataclass
class Calls:
    """What the replaced functions were called with."""

    positional: tuple[Any, ...] = ()
    named: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        assert self.named is not None
        return self.named[name]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()

    def train(recipe: Recipe, **named: Any) -> api.RunResult:
        calls.positional, calls.named = (recipe,), named
        named["out"].mkdir(parents=True, exist_ok=True)
        return api.RunResult(named["out"], {"bbox": result()} if named["val"] else {})

    monkeypatch.setattr(api, "train", train)
    return calls


WORDS = ["train", "rfs", "--train", "t.json", "--images", "pictures"]


def test_train_hands_over_everything(tmp_path: Path, trained: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    more = ["scale=tiny", "--val", "v.json", "--out", str(out), "--weights", "w", "--device", "cpu", "--seed", "5"]
    assert main([*WORDS, *more, "--resume", "--quiet", "model=faster_rcnn"]) == 0
    recipe = trained.positional[0]
    assert (recipe.name, recipe.scale, recipe.seed, recipe.model.type) == ("rfs", "tiny", 5, "faster_rcnn")
    assert (trained["train"], trained["images"]) == (["t.json"], ["pictures"])
    assert (trained["val"], trained["val_images"]) == (["v.json"], None)
    assert (trained["out"], trained["weights"]) == (out, Path("w"))
    assert (trained["resume"], trained["device"]) == (True, "cpu")
    assert isinstance(trained["progress"], Silent)
    captured = capsys.readouterr()
    assert "protocol lvis" in captured.out
    assert "30.0" in captured.out
    assert str(out / "report.html") in captured.out
    assert (out / "report.html").is_file()
    assert captured.err == ""


def test_train_without_validation(tmp_path: Path, trained: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert (trained["val"], trained["val_images"], trained["resume"]) == (None, None, False)
    assert "nothing was evaluated" in capsys.readouterr().out


def test_train_json_and_progress_file(tmp_path: Path, trained: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "--val", "v.json", "--val-images", "other", "--out", str(tmp_path / "run"), "--json"]
    assert main([*words, "--progress-file", str(tmp_path / "p.json")]) == 0
    assert isinstance(trained["progress"], FileProgress)
    assert trained["val_images"] == ["other"]
    content = json.loads(capsys.readouterr().out)
    assert content["results"]["bbox"]["metrics"]["APr"] == 0.1
    assert content["run"] == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("more", "text"),
    [([], "--out DIR"), (["--out", "o", "--val-images", "v"], "--val DATA"), (["--out", "o", "x"], "x")],
)
def test_train_refuses_what_is_incomplete(
    more: list[str], text: str, trained: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, *more]) == 2
    assert text in capsys.readouterr().err
    assert trained.named is None


def test_interrupted_training_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: object, **named: Any) -> None:
        (named["out"] / "recipe.yaml").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "train", train)
    assert main([*WORDS, "--out", str(tmp_path), "--quiet"]) == 130
    assert "--resume continues it" in capsys.readouterr().err


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()

    def evaluate(*positional: Any, **named: Any) -> dict[str, dict[str, EvaluationResult]]:
        calls.positional, calls.named = positional, named
        return {name: {kind: result(kind, name) for kind in ("bbox", "segm")} for name in named["protocols"]}

    monkeypatch.setattr(api, "evaluate", evaluate)
    return calls


def test_eval_changes_settings_under_a_name_of_their_own(evaluated: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    change = "model.inference.adjust.tau=0.5"
    assert main(["eval", "run", change, "--quiet"]) == 2
    assert "--split NAME" in capsys.readouterr().err
    assert evaluated.named is None
    assert main(["eval", "run", change, "--split", "half", "--quiet"]) == 0
    assert (evaluated["overrides"], evaluated["split"]) == ([change], "half")


def test_eval_prints_a_table_per_protocol(evaluated: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "run", "--protocol", "lvis, fixed", "--checkpoint", "best", "--quiet"]) == 0
    assert evaluated.positional == (Path("run"),)
    assert (evaluated["protocols"], evaluated["split"], evaluated["checkpoint"]) == (["lvis", "fixed"], "val", "best")
    out = capsys.readouterr().out
    assert out.index("protocol lvis") < out.index("protocol fixed")
    assert out.count("boxes") == out.count("masks") == 4
    assert "2/3" in out
    assert "run/eval/val-lvis" in out
    assert "run/eval/val-fixed" in out


def test_eval_on_other_data_has_a_split_of_its_own(evaluated: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "run", "--data", "d/test.json.gz", "--images", "i", "--json", "--quiet"]) == 0
    assert (evaluated["split"], evaluated["data"], evaluated["images"]) == ("test", "d/test.json.gz", Path("i"))
    assert json.loads(capsys.readouterr().out)["results"]["auto"]["segm"]["metrics"]["AP"] == 0.3
    assert main(["eval", "run", "--data", "test.json", "--images", "i", "--split", "mine", "--quiet"]) == 0
    assert evaluated["split"] == "mine"


def test_eval_renews_the_report_of_a_run(tmp_path: Path, evaluated: Calls) -> None:
    (tmp_path / "recipe.yaml").write_text("name: rfs\n")
    assert main(["eval", str(tmp_path), "--quiet"]) == 0
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--protocol", "lviss"], "did you mean 'lvis'"),
        (["--protocol", ","], "names none"),
        (["--images", "x"], "--data"),
    ],
)
def test_eval_refuses_nonsense(
    more: list[str], text: str, evaluated: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "run", *more]) == 2
    assert text in capsys.readouterr().err
    assert evaluated.named is None


@pytest.mark.parametrize("drawings", [True, False])
def test_predict_writes_and_draws(
    drawings: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    calls = Calls()

    def predict(*positional: Any, **named: Any) -> Path:
        calls.positional, calls.named = positional, named
        file: Path = named["out"] / "predictions.json"
        file.parent.mkdir()
        images = [{"id": 1, "file_name": "a.png"}]
        file.write_text(json.dumps({"images": images, "categories": [], "annotations": []}))
        return file

    monkeypatch.setattr(api, "predict", predict)
    Image.new("RGB", (500, 500)).save(tmp_path / "a.png")
    more = [] if drawings else ["--no-drawings"]
    assert main(["predict", "run", str(tmp_path), "--out", str(tmp_path / "out"), "--score", "0.5", *more]) == 0
    assert calls.positional == (Path("run"), tmp_path)
    assert (calls["score_threshold"], calls["out"]) == (0.5, tmp_path / "out")
    assert (tmp_path / "out" / "drawings" / "a.png").is_file() == drawings
    assert ("drawings" in capsys.readouterr().out) == drawings


def test_predict_refuses_a_score_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "run", "images", "--out", "o", "--score", "30"]) == 2
    assert "between 0 and 1" in capsys.readouterr().err


def test_shapes_and_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    assert main(["shapes", str(out), "--preset", "smoke", "--seed", "3", "--json", "--quiet"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert Path(made["train"]).is_file()
    words = ["train", "rfs", "scale=tiny", "--train", made["train"], "--images", made["images"], "--dry-run"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "120 images" in text
    assert "12 classes" in text
    assert "480 steps of 4 images, 1920 images in all" in text
    assert "repeat_factor sampler" in text
    assert main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["stages"][0]["most_changed"][0]["factor"] > 1.2
    assert not plan["stages"][0]["no_effect"]
    assert main([*words, "stages.end-to-end.sampler.threshold=0.0001"]) == 0
    assert "warning: this sampler changes nothing" in capsys.readouterr().out


def test_shapes_refuses_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shapes", str(tmp_path / "a"), "--preset", "smoke", "--train-images", "10", "--quiet"]) == 2
    assert main(["shapes", str(tmp_path / "a"), "--preset", "smoke", "--sprites", str(tmp_path), "--quiet"]) == 2
    assert not (tmp_path / "a").exists()


def test_missing_data_is_a_data_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "rfs", "--train", str(tmp_path / "no.json"), "--images", str(tmp_path), "--dry-run"]
    assert main(words) == 3
    assert "no.json" in capsys.readouterr().err
