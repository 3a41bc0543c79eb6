"""Findings as people and programs get them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.data.findings import Findings
from longtail.data.rules import RULE_OF, RULES, Severity

IDS = 20
"""A finding lists so many ids."""


@dataclass(frozen=True)
class Finding:
    """All cases of one rule.

    Attributes:
        code, severity, remedy: of the rule.
        count: number of cases.
        ids: the first ids (of images, annotations or categories, as the rule has it), at most 20.
        message: one sentence with examples.
        readable: whether the file can be read all the same.
    """

    code: str
    severity: Severity
    count: int
    ids: list[Any]
    message: str
    remedy: str
    readable: bool = False


def listed(findings: Findings) -> list[Finding]:
    """One :class:`Finding` per code, in the order of the rules."""
    found_by_rule = []
    for rule in RULES:
        found = findings.get(rule.code)
        if found is None:
            continue
        examples = "; ".join(found.details) or ", ".join(repr(value) for value in found.ids[:10])
        more = ", ..." if len(found.ids) > (len(found.details) or 10) else ""
        count = len(found.ids)
        message = f"{count} {RULE_OF[rule.code].what}: {examples}{more}"
        found_by_rule.append(
            Finding(rule.code, rule.severity, count, found.ids[:IDS], message, rule.remedy, rule.readable)
        )
    return found_by_rule


def refusal(path: Path | str, errors: Sequence[Finding]) -> str:
    """One line on why a file is refused: the first kind of error with ids and remedy, and how many more there are.

    Args:
        path: the file.
        errors: at least one.
    """
    first, *others = errors
    more = f"; {len(others)} more kinds of errors: {', '.join(other.code for other in others)}" if others else ""
    return f"{path}: {first.message} ({first.code}); {first.remedy}{more}. `longtail check {path}` lists everything"
