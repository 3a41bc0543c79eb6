"""docs/tables.md names every study file, what it runs and what it quotes, and no other."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path

import pytest

from longtail.schema.study import load_study

PAGE = (Path(__file__).parents[1] / "docs" / "tables.md").read_text(encoding="utf-8")
FOLDER = Path(str(resources.files("longtail").joinpath("studies")))
FILES = {path.stem for path in FOLDER.glob("*.yaml")}
ROWS = re.findall(r"^\| (.+?) \| `([a-z0-9.-]+)` \| (\d+) \| (.*?) ?\|$", PAGE, re.MULTILINE)
"""Table, study, rows that are run, labels of those that are quoted."""


def named() -> set[str]:
    """What the page calls a study: the second column, and the lists of small ones and of patterns."""
    lists = (
        PAGE.partition("## On generated and small sets")[2]
        + PAGE.partition("## Step-wise learning")[2].partition("##")[0]
    )
    return {study for _, study, _, _ in ROWS} | set(re.findall(r"`([a-z0-9.*-]+)`", lists))


def test_every_study_file_is_named() -> None:
    assert [file for file in sorted(FILES) if not any(fnmatch(file, name) for name in named())] == []


def test_every_study_named_exists() -> None:
    assert {name for name in named() if "*" not in name} <= FILES
    assert {name for name in named() if "*" in name} == {"stepwise-*"}


def test_every_study_of_a_table_is_in_a_table() -> None:
    assert {study for _, study, _, _ in ROWS} == {
        file for file in FILES if re.match(r"(rio-(table|figure)|loce-lvis|fasa-table|libra-table)", file)
    }


@pytest.mark.parametrize(("study", "run", "quoted"), [row[1:] for row in ROWS], ids=[row[1] for row in ROWS])
def test_a_table_runs_and_quotes_what_the_page_says(study: str, run: str, quoted: str) -> None:
    rows = load_study(FOLDER / f"{study}.yaml").rows
    assert sum(row.recipe is not None for row in rows) == int(run)
    assert [row.label for row in rows if row.recipe is None] == (quoted.split("; ") if quoted else [])
