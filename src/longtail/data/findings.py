"""What has been found in an annotation file, by the code of its rule."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Found:
    """Cases of one rule: rows in the list they are from, their ids, and details of some of them."""

    rows: list[int] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    details: list[str] = field(default_factory=list)


class Findings(dict[str, Found]):
    """Cases by the code of their rule."""

    def add(self, code: str, row: int, id: Any, detail: str = "") -> None:
        """One case."""
        found = self.setdefault(code, Found())
        found.rows.append(row)
        found.ids.append(id)
        if detail and len(found.details) < 3:
            found.details.append(detail)

    def add_rows(
        self, code: str, rows: Iterable[int], ids: Sequence[Any], detail: Callable[[int], str] = lambda row: ""
    ) -> None:
        """Cases in some rows of a list with the given ids."""
        for row in rows:
            known = self.get(code)
            self.add(code, row, ids[row], detail(row) if known is None or len(known.details) < 3 else "")


def valid_id(value: Any) -> bool:
    """A whole number of 64 bits, or text."""
    return type(value) is str or (type(value) is int and -(2**63) <= value < 2**63)


def is_number(value: Any) -> bool:
    """A number that is not a truth value and fits a float."""
    return type(value) is float or (type(value) is int and abs(value) < 2**1000)


def file_name(image: dict[str, Any]) -> str | None:
    """As the loader finds it: ``file_name``, or the last two parts of ``coco_url``."""
    name = image.get("file_name")
    if name is None and isinstance(image.get("coco_url"), str):
        name = "/".join(image["coco_url"].split("/")[-2:])
    return name if isinstance(name, str) and name else None


def escapes(name: str) -> bool:
    """Whether a file name, taken literally, leads out of its folder."""
    return name.startswith("/") or posixpath.normpath(name).split("/")[0] == ".."
