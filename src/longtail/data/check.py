"""Finds every defect of an annotation file and its pictures in one pass. Nothing is changed."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longtail.data.check_entries import Content, Findings, examine_entries
from longtail.data.check_masks import examine_masks
from longtail.data.check_pictures import MAX_PIXELS, examine_pictures, picture_path, same_content
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
    """

    code: str
    severity: Severity
    count: int
    ids: list[Any]
    message: str
    remedy: str


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check` found, in the order of the rules.

    Attributes:
        path: the file.
        counts: images, annotations and categories in it.
        examined: what was looked at: entries, and masks, pictures, pixels, the other file.
        findings: one per code.
    """

    path: str
    counts: dict[str, int]
    examined: list[str]
    findings: list[Finding]

    def ok(self, strict: bool = False) -> bool:
        """Whether there are no errors; if strict, no warnings either."""
        return not any(strict or finding.severity == "error" for finding in self.findings)

    def count(self, severity: Severity) -> int:
        """Findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        findings = [{**vars(finding), "ids": [_plain(value) for value in finding.ids]} for finding in self.findings]
        return {"path": self.path, "ok": self.ok(), "counts": self.counts, "examined": self.examined,
                "findings": findings}  # fmt: skip

    def text(self) -> str:
        """For people: a line or two per finding, then the sum."""
        lines = []
        for finding in self.findings:
            lines += [f"{finding.severity:<8} {finding.code:<22} {finding.message}", f"{'':<31} -> {finding.remedy}"]
        counted = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        lines += ["" for _ in lines[:1]]
        lines.append(f"{self.path}: {counted or 'not read'}; examined: {', '.join(self.examined)}")
        lines.append(f"{self.count('error')} kinds of errors, {self.count('warning')} kinds of warnings")
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")


def check(
    path: Path | str,
    *,
    images: Path | str | None = None,
    masks: bool = True,
    deep: bool = False,
    against: Path | str | None = None,
    against_images: Path | str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> CheckReport:
    """Examines a COCO or LVIS annotation file, plain or ``.gz``.

    Args:
        path: the file.
        images: folder of its pictures; None = they are not looked at.
        masks: whether masks are needed; otherwise broken segmentations are not looked for.
        deep: decode every picture completely.
        against: another annotation file, e.g. of the validation set: pictures in both, classes only there.
        against_images: folder of the other file's pictures, if another one.
        max_pixels: larger pictures are errors.

    Bad data raise nothing; they are what the report holds.
    """
    path, findings = Path(path), Findings()
    examined = ["entries"]
    raw = load(path, findings)
    if raw is None:
        return _report(path, {}, examined, findings)
    content = examine_entries(raw, findings)
    if masks:
        examine_masks(content, findings)
        examined.append("masks")
    if images is not None:
        examine_pictures(content, Path(images), findings, deep=deep, max_pixels=max_pixels)
        examined.append("every pixel" if deep else "headers of pictures")
    if against is not None:
        _compare(content, Path(against), _root(images), _root(against_images or images), findings)
        examined.append(f"against {against}")
    counts = {name: len(getattr(content, name)) for name in ("images", "annotations", "categories")}
    return _report(path, counts, examined, findings)


def load(path: Path, findings: Findings) -> dict[str, Any] | None:
    """The file's object; None, and a finding, if it cannot be read. Numbers that are not finite are found, too."""
    if not path.is_file():
        findings.add("file-missing", -1, str(path))
        return None
    tokens: list[str] = []

    def constant(token: str) -> float:
        tokens.append(token)
        return float(token.replace("Infinity", "inf"))

    text = ""
    try:
        raw = path.read_bytes()
        if raw[:4] in (b"PK\x03\x04", b"PK\x05\x06") or raw[:6] in (b"7z\xbc\xaf\x27\x1c", b"\xfd7zXZ\x00"):
            findings.add("file-archive", -1, str(path))
            return None
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        text = raw.decode("utf-8-sig" if raw[:3] == b"\xef\xbb\xbf" else json.detect_encoding(raw))
        content = json.loads(text, parse_constant=constant)
    except json.JSONDecodeError as error:
        place = len(text[: error.pos].encode("utf-8", "surrogatepass"))
        findings.add("json-syntax", -1, str(path), f"at byte {place} of {len(raw)}: {error.msg}")
        return None
    except RecursionError:
        findings.add("json-syntax", -1, str(path), "lists inside lists without end")
        return None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        findings.add("file-unreadable", -1, str(path), str(error))
        return None
    for token in tokens:
        findings.add("json-nan", -1, token)
    return content if isinstance(content, dict) else {}


def _compare(content: Content, path: Path, root: Path | None, other_root: Path | None, findings: Findings) -> None:
    problems = Findings()
    raw = load(path, problems)
    other = examine_entries(raw or {}, problems)
    unusable = [code for code in problems if code.startswith(("file-m", "file-a", "file-u", "json-s", "key-"))]
    if unusable:
        findings.add("against-unreadable", -1, str(path), f"{path}: {', '.join(unusable)}")
        return
    shared: dict[int, str] = {}
    if root == other_root:
        names = set(other.names) - {None}
        shared = {row: repr(name) for row, name in enumerate(content.names) if name in names}
    if root is not None and other_root is not None:
        own = {row: picture_path(root, name) for row, name in enumerate(content.names)}
        theirs = [picture_path(other_root, name) for name in other.names]
        same = same_content([p for p in own.values() if p is not None], [p for p in theirs if p is not None])
        for row, place in own.items():
            if place in same:
                shared.setdefault(row, f"{content.names[row]!r} = {same[place]}")
    findings.add_rows("split-leakage", sorted(shared), content.image_ids, lambda row: shared[row])
    known = _used(content)
    for row, name in _used(other).items():
        if name not in known.values():
            findings.add("category-only-against", row, other.categories[row].get("id"), repr(name))


def _used(content: Content) -> dict[int, str]:
    rows = np.unique(content.label[content.label >= 0]).tolist()
    return {row: str(content.categories[row].get("name", content.categories[row].get("id"))) for row in rows}


def _root(folder: Path | str | None) -> Path | None:
    return None if folder is None else Path(folder).resolve()


def _report(path: Path, counts: dict[str, int], examined: list[str], findings: Findings) -> CheckReport:
    listed = []
    for rule in RULES:
        found = findings.get(rule.code)
        if found is None:
            continue
        examples = "; ".join(found.details) or ", ".join(repr(value) for value in found.ids[:10])
        more = ", ..." if len(found.ids) > (len(found.details) or 10) else ""
        count = len(found.ids)
        message = f"{count} {RULE_OF[rule.code].what}: {examples}{more}"
        listed.append(Finding(rule.code, rule.severity, count, found.ids[:IDS], message, rule.remedy))
    return CheckReport(str(path), counts, examined, listed)


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | str) else repr(value)
