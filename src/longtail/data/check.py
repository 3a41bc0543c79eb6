"""Finds every defect of an annotation file and its pictures in one pass. Nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longtail.data.check_entries import Places, examine_entries
from longtail.data.check_masks import examine_masks
from longtail.data.check_pictures import MAX_PIXELS, Pictures, examine_pictures, picture_path, same_content
from longtail.data.entries import Content, read_content
from longtail.data.findings import Findings
from longtail.data.index import drop_if_stale
from longtail.data.report import Finding, listed
from longtail.data.rules import Severity


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
    content, digest = read_content(path, findings, masks=masks)
    if content is None:
        return report_of(path, {}, examined, findings)
    places = examine_entries(content, findings)
    if masks:
        examine_masks(content, places, findings)
        examined.append("masks")
    if images is not None:
        folders = [Path(images).resolve()] * len(content.images)
        pictures = Pictures(content.image_ids, places.names, places.sizes, folders)
        examine_pictures(pictures, findings, deep=deep, max_pixels=max_pixels)
        examined.append("every pixel" if deep else "headers of pictures")
    if against is not None:
        _compare(content, places, Path(against), _root(images), _root(against_images or images), findings)
        examined.append(f"against {against}")
    if deep and drop_if_stale(path, digest):
        findings.add("index-stale", -1, str(path))
    return report_of(path, counts_of(content), examined, findings)


def counts_of(content: Content) -> dict[str, int]:
    """Images, annotations and categories."""
    return {
        "images": len(content.images),
        "annotations": len(content.annotation_ids),
        "categories": len(content.categories),
    }


def _compare(
    content: Content, places: Places, path: Path, root: Path | None, other_root: Path | None, findings: Findings
) -> None:
    problems = Findings()
    other, _ = read_content(path, problems, masks=False)
    if other is None or other.missing:
        codes = [*problems, *("key-missing" for _ in (other.missing[:1] if other else []))]
        findings.add("against-unreadable", -1, str(path), f"{path}: {', '.join(codes)}")
        return
    others = examine_entries(other, problems)
    shared: dict[int, str] = {}
    if root == other_root:
        names = set(others.names) - {None}
        shared = {row: repr(name) for row, name in enumerate(places.names) if name in names}
    if root is not None and other_root is not None:
        own = {row: picture_path(root, name) for row, name in enumerate(places.names)}
        theirs = [picture_path(other_root, name) for name in others.names]
        same = same_content([p for p in own.values() if p is not None], [p for p in theirs if p is not None])
        for row, place in own.items():
            if place in same:
                shared.setdefault(row, f"{places.names[row]!r} = {same[place]}")
    findings.add_rows("split-leakage", sorted(shared), content.image_ids, lambda row: shared[row])
    known = _used(content, places)
    for row, name in _used(other, others).items():
        if name not in known.values():
            findings.add("category-only-against", row, other.categories[row].get("id"), repr(name))


def _used(content: Content, places: Places) -> dict[int, str]:
    rows = np.unique(places.label[places.label >= 0]).tolist()
    return {row: str(content.categories[row].get("name", content.categories[row].get("id"))) for row in rows}


def _root(folder: Path | str | None) -> Path | None:
    return None if folder is None else Path(folder).resolve()


def report_of(path: Path, counts: dict[str, int], examined: list[str], findings: Findings) -> CheckReport:
    """The findings in the order of the rules."""
    return CheckReport(str(path), counts, examined, listed(findings))


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | str) else repr(value)
