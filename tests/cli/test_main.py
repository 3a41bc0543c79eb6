"""The command line as a whole: words in, exit codes and lines out."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from longtail import __version__
from longtail.cli import config
from longtail.cli.main import COMMANDS, main
from longtail.schema import DataError, LongtailError, UsageError


def ends(words: list[str]) -> int:
    """The exit code, however the command line ends."""
    try:
        return main(words)
    except SystemExit as error:
        return int(error.code or 0)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("longtail.schema.load_recipe", fail)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(["--help"]) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command.name} " in out
        assert command.summary in out


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends([name, "--help"]) == 0
    assert f"usage: longtail {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(["--version"]) == 0
    assert capsys.readouterr().out == f"longtail {__version__}\n"


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "commands:" in captured.err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian"], "did you mean train?"),
        (["config", "baseline", "--jsn"], "did you mean --json?"),
        (["config"], "RECIPE"),
        (["train", "baseline"], "--train"),
        (["eval", "run", "--checkpoint", "first"], "invalid choice"),
        (["--vresion"], "did you mean --version?"),
        (["config", "basline"], "did you mean 'baseline'?"),
        (["config", "baseline", "sede=1"], "did you mean 'seed'?"),
    ],
)
def test_usage_errors_are_one_line_with_a_hint(words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("longtail: ")
    assert captured.err.count("\n") == 1
    assert hint in captured.err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UsageError("no\nsense"), 2, "longtail: no sense\n"),
        (DataError("bad file"), 3, "longtail: bad file\n"),
        (LongtailError("failed"), 1, "longtail: failed\n"),
        (KeyboardInterrupt(), 130, "longtail: interrupted\n"),
        (ZeroDivisionError("by zero"), 1, "longtail: unexpected ZeroDivisionError: by zero; --traceback shows where\n"),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, error)
    assert main(["config", "baseline"]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", text)


@pytest.mark.parametrize("words", [["--traceback", "config", "baseline"], ["config", "--traceback", "baseline"]])
def test_traceback_lets_the_error_through(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(words)


def test_sigterm_ends_with_143_and_the_old_handler_returns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("longtail.schema.load_recipe", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert ends(["config", "baseline"]) == 143
    assert capsys.readouterr().err == "longtail: terminated\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_closed_pipe_is_no_traceback() -> None:
    code = "import sys; from longtail.cli.main import main; sys.exit(main(['config', 'baseline']))"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    errors = child.stderr.read()
    child.wait()
    child.stderr.close()
    assert b"Traceback" not in errors


def test_config_prints_what_loads_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from longtail.schema import load_recipe

    words = ["rfs", "scale=tiny", "stages.end-to-end.sampler.threshold=0.05", "seed=3"]
    assert main(["config", *words]) == 0
    file = tmp_path / "recipe.yaml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_recipe(file) == load_recipe("rfs", words[1:])
    assert config.COMMAND.name == "config"


def test_overrides_and_options_mix_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "rfs", "--json", "scale=tiny", "seed=3"]) == 0
    mixed = capsys.readouterr().out
    assert main(["config", "rfs", "scale=tiny", "seed=3", "--json"]) == 0
    assert mixed == capsys.readouterr().out


def test_recipes_lists_and_explains(capsys: pytest.CaptureFixture[str]) -> None:
    from longtail.schema import recipe_names

    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    for name in recipe_names():
        assert any(line.startswith(f"{name} ") for line in out.splitlines())
    assert main(["recipes", "rfs-cosine", "scale=tiny"]) == 0
    out = capsys.readouterr().out
    assert "repeat_factor (threshold 0.08" in out
    assert "cosine (scale 48.0" in out
    assert "objectness_softmax (loss_weight 2.5)" in out
    assert "1920 images in batches of 4" in out
