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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many combinations of the full matrix trained, and how many were refused."""
    counts = [
        count
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call"
        for name, count in report.user_properties
        if name == "combinations"
    ]
    if counts:
        trained, refused = (sum(count[key] for count in counts) for key in ("trained", "refused"))
        terminalreporter.write_line(f"combinations: {trained} trained, {refused} refused")


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> dict[str, int]:
    """Counts of one test of the full matrix, shown in the summary; without its option the test is skipped."""
    if not request.config.getoption("--full-matrix", default=False):
        pytest.skip("python -m pytest -n 2 tests/combinations --full-matrix")
    counts = {"trained": 0, "refused": 0}
    request.node.user_properties.append(("combinations", counts))
    return counts
