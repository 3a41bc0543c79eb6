"""What the documents show works: Python is executed, commands are parsed, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from longtail.cli.command import Parser
from longtail.cli.main import COMMANDS
from longtail.schema import load_recipe, recipe_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, code) of every fenced block in a language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [
        (f"{page.relative_to(ROOT)}", code)
        for page in PAGES
        for code in pattern.findall(page.read_text(encoding="utf-8"))
    ]


def shown_commands() -> list[str]:
    """Every command line that begins with ``longtail``, in blocks and inline."""
    lines = [line for _, code in blocks("sh") for line in code.splitlines()]
    lines += [text for page in PAGES for text in re.findall(r"`(longtail [^`]+)`", page.read_text(encoding="utf-8"))]
    commands = [line.strip() for line in lines if line.strip().startswith("longtail ")]
    # placeholders in capitals stand for names
    return sorted({command for command in commands if not re.search(r"\b[A-Z]{3,}\b|\.\.\.", command)})


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python_runs(page: str, code: str) -> None:
    exec(compile(code, page, "exec"), {})


@pytest.mark.parametrize("line", shown_commands())
def test_commands_parse(line: str) -> None:
    words = shlex.split(line)[1:]
    command = next(command for command in COMMANDS if command.name == words[0])
    parser = Parser(prog=command.name)
    command.configure(parser)
    found = parser.parse(words[1:])
    if "recipe" in found:
        load_recipe(found.recipe, found.overrides)
    for name in (getattr(found, "recipes", None) or "").split(","):
        assert not name or name in recipe_names()


def test_some_commands_are_shown() -> None:
    assert len(shown_commands()) > 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_every_recipe_is_in_the_readme_and_has_a_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for name in recipe_names():
        assert f"`{name}`" in readme
        assert f"`{name}`" in index


def test_the_readme_has_two_set_up_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "pip install -e" in line]
    assert len(lines) == 2
    assert lines[0].endswith("longtail demo")
    assert lines[1].endswith("python -m pytest -n 2")
    assert all(line.startswith("python3 -m venv .venv && ") for line in lines)
