"""Lets this folder import ``combination_parts`` and the contracts' ``contract_parts``; ``--full-matrix``."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "contracts")]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-matrix", action="store_true", help="every combination, not only pairs (`pytest tests/combinations`)"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How many combinations of the full matrix trained, and how many were refused."""
    counts = getattr(config, "combinations", None)
    if counts is not None:
        terminalreporter.write_line(f"combinations: {counts['trained']} trained, {counts['refused']} refused")


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> dict[str, int]:
    """Counts of the full matrix; without its option the test is skipped."""
    config = request.config
    if not config.getoption("--full-matrix", default=False):
        pytest.skip("python -m pytest tests/combinations --full-matrix")
    counts: dict[str, int] = getattr(config, "combinations", None) or {"trained": 0, "refused": 0}
    config.combinations = counts  # type: ignore[attr-defined]
    return counts
