"""Folders that are whole or absent: written beside their place, hashed, moved in, and checked before they are used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from longtail.data.files import sync_folder
from longtail.schema import DataError, UsageError

DIGESTS = "digests.json"
"""SHA-256 of every other file of the folder, by name."""


@dataclass(frozen=True)
class Located:
    """A sound folder.

    Attributes:
        folder: it.
        remark: why it is not the one asked for; empty if it is.
    """

    folder: Path
    remark: str = ""


def previous_of(target: Path) -> Path:
    """Where the folder that ``target`` replaced is kept."""
    return target.with_name(f"{target.name}.previous")


def draft_of(target: Path) -> Path:
    """Where ``target`` is written before it is moved into place."""
    return target.with_name(f".{target.name}.new")


def begin(target: Path) -> Path:
    """An empty draft in which to write ``target``."""
    folder = draft_of(target)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def commit(target: Path, *, keep_previous: bool) -> None:
    """Hashes the draft's files and moves it into ``target``'s place.

    Whenever the process ends on the way, ``target`` or the folder before it is there and whole.

    Args:
        target: the final place; :func:`begin` made its draft.
        keep_previous: whether the folder it replaces stays as ``<target>.previous``.
    """
    folder, previous = draft_of(target), previous_of(target)
    digests = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(target, previous)
    os.rename(folder, target)
    sync_folder(target.parent)
    if not keep_previous:
        shutil.rmtree(previous, ignore_errors=True)


def locate(target: Path) -> Located:
    """``target`` if it is whole, otherwise the folder it replaced.

    Raises:
        UsageError: there is neither.
        DataError: neither is whole; names the damaged file.
    """
    previous = previous_of(target)
    if (target / DIGESTS).is_file():
        damage = find_damage(target)
        if not damage:
            return Located(target)
    elif target.exists():
        damage = f"{target} is incomplete: it has no {DIGESTS}"
    else:
        damage = ""
    if (previous / DIGESTS).is_file():
        older = find_damage(previous)
        if not older:
            return Located(previous, f"{damage or f'{target} is missing'}; using the one before it, {previous}")
        damage = damage or older
    if damage:
        raise DataError(f"{damage}, and there is no sound one before it; use another checkpoint")
    raise UsageError(f"there is no checkpoint in {target}")


def find_damage(folder: Path) -> str:
    """What is wrong with a folder, or nothing."""
    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        for name, digest in digests.items():
            if file_digest(folder / name) != digest:
                return f"{folder / name} is damaged: its content is not what was saved"
    except (OSError, ValueError, AttributeError) as error:
        return f"{folder} is damaged: {error}"
    return ""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
