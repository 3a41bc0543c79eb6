"""Mends what can be mended in an annotation file, into a new file."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.check_entries import Places, examine_entries
from longtail.data.check_masks import defect, examine_masks, polygon_defect
from longtail.data.entries import KEYS, Content, content_of
from longtail.data.findings import Findings
from longtail.data.rules import RULE_OF, RULES
from longtail.schema.errors import DataError, UsageError

PASSES = 5


@dataclass(frozen=True)
class FixReport:
    """What :func:`fix` did.

    Attributes:
        path, out: the file read, the file written.
        done: number of annotations by (how mended, code of the defect), e.g. ("drop", "bbox-zero").
        kept, dropped: annotations in the new file; annotations left out.
        left: codes of the errors and warnings that could not be mended.
    """

    path: str
    out: str
    done: dict[tuple[str, str], int]
    kept: int
    dropped: int
    left: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        done = [{"how": how, "code": code, "count": count} for (how, code), count in self.done.items()]
        return {**vars(self), "done": done}

    def text(self) -> str:
        """For people."""
        lines = [f"{how:<14} {count} {RULE_OF[code].what}" for (how, code), count in self.done.items()]
        lines.append(f"{self.out}: {self.kept} annotations kept, {self.dropped} dropped")
        if self.left:
            lines.append(f"not mended: {', '.join(self.left)}")
        return "\n".join(lines)


def fix(path: Path | str, out: Path | str, *, masks: bool = True) -> FixReport:
    """Writes a new annotation file (gzipped if its name ends in ``.gz``) with what can be mended; pictures are not
    looked at. The rules say what is done: boxes are clipped or taken from masks, broken polygons removed, ids given,
    and annotations dropped that are of no use.

    Args:
        masks: whether masks are needed; otherwise segmentations stay as they are.

    Raises:
        UsageError: ``out`` exists, or is the file itself.
        DataError: the file cannot be read, or has no lists of images, annotations and categories.
    """
    path, out = Path(path), Path(out)
    if out.exists() or out.resolve() == path.resolve():
        raise UsageError(f"{out} exists; --fix writes a new file, name another one")
    raw = _load(path)
    raw = {**raw, "annotations": list(raw["annotations"])}
    before = len(raw["annotations"])
    done: Counter[tuple[str, str]] = Counter()
    for _ in range(PASSES):
        findings = _one_pass(raw, done, masks)
        if not any(RULE_OF[code].mend for code in findings):
            break
    left = sorted(findings, key=[rule.code for rule in RULES].index)
    _write(raw, path, out)
    kept = len(raw["annotations"])
    return FixReport(str(path), str(out), dict(done), kept, before - kept, left)


def _load(path: Path) -> dict[str, Any]:
    """The whole object of a file, everything beside the three lists included.

    Raises:
        DataError: it cannot be read, or lacks a list.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        raw = json.loads(data.decode("utf-8-sig" if data[:3] == b"\xef\xbb\xbf" else json.detect_encoding(data)))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be mended: {error}; see `longtail check`") from None
    if not isinstance(raw, dict) or not all(isinstance(raw.get(key), list) for key in KEYS):
        raise DataError(f"{path} cannot be mended: it lacks one of the lists {', '.join(KEYS)}; see `longtail check`")
    return raw


def _one_pass(raw: dict[str, Any], done: Counter[tuple[str, str]], masks: bool) -> Findings:
    """Mends every finding once; an annotation that is dropped is counted under its first defect."""
    findings = Findings()
    content = content_of(raw, findings, masks=masks)
    places = examine_entries(content, findings)
    bounds = examine_masks(content, places, findings)
    annotations = [entry for entry in raw["annotations"] if isinstance(entry, dict)]
    gone: set[int] = set()
    changed: dict[int, dict[str, Any]] = {}
    for rule in RULES:
        for row in findings[rule.code].rows if rule.mend and rule.code in findings else []:
            if row in gone:
                continue
            entry = changed.get(row) or dict(annotations[row])
            how = rule.mend
            if how == "drop part":
                entry["segmentation"] = _sound_part(entry["segmentation"])
                if not entry["segmentation"] or rule.code == "mask-size":
                    how = "drop"
            elif how == "box from mask":
                entry["bbox"] = bounds[row].tolist()
            elif how == "clip":
                entry["bbox"] = _clipped(content, places, row)
            elif how == "area from box":
                entry.pop("area")  # readers take the box's
            elif how == "new id":
                entry["id"] = None  # given below, when all others are known
            done[how, rule.code] += 1
            if how == "drop":
                gone.add(row)
            else:
                changed[row] = entry
    entries = [changed.get(row, entry) for row, entry in enumerate(annotations) if row not in gone]
    number = max((entry["id"] for entry in entries if type(entry.get("id")) is int), default=0)
    for entry in entries:
        if "id" in entry and entry["id"] is None:
            number += 1
            entry["id"] = number
    strangers = len(raw["annotations"]) - len(annotations)
    if strangers:
        done["drop", "entry-invalid"] += strangers
    raw["annotations"] = entries
    return findings


def _sound_part(given: Any) -> Any:
    """The sound polygons of a segmentation, or None."""
    if not isinstance(given, list):
        return None if defect(given) else given
    return [polygon for polygon in given if not polygon_defect(polygon)] or None


def _clipped(content: Content, places: Places, row: int) -> list[float]:
    height, width = places.sizes[places.image_row[row]]
    box: NDArray[np.float64] = content.boxes[row]
    near = np.clip(box[:2], 0, (width, height))
    far = np.clip(box[:2] + box[2:], 0, (width, height))
    return [*near.tolist(), *(far - near).tolist()]


def _write(raw: dict[str, Any], path: Path, out: Path) -> None:
    try:
        text = json.dumps(raw, allow_nan=False).encode("ascii")
    except ValueError:
        raise DataError(f"{path} has NaN or Infinity outside bbox and area; correct what wrote them") from None
    with out.open("xb") as file:
        file.write(gzip.compress(text) if out.suffix == ".gz" else text)
