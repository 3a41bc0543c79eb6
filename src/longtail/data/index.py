"""Annotation files that were read before, as columns in an Arrow file that is mapped into memory.

The index of a file lies in a cache folder, under a name made of the file's path. It is used if the file still has the
path, size, time of change and inode it had when it was read, and the index is whole; otherwise it is made again. It is
written beside its place and moved in, so that several processes may make it at the same time. A cache that cannot be
written costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.files import sync_folder
from longtail.data.masks import MaskColumn
from longtail.data.report import Finding
from longtail.data.table import LabelLists, id_array

VERSION = 1
LEAST_BYTES = 1 << 20
"""Smaller files are read again each time, which is as quick."""

SHAPES = {"boxes_xywh": 4, "masks.code_size": 2}
FLAGS = ("iscrowd", "ignore")
NAMES = ("file_names", "category_names")
Stamp = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """What :class:`~longtail.data.table.AnnotationTable` is made of.

    Attributes:
        arrays: its columns, by name.
        findings: warnings, and errors that do not keep the file from being read.
        sha256: of the file's bytes.
        note: what went wrong with the index, or nothing.
    """

    arrays: dict[str, Any]
    findings: tuple[Finding, ...]
    sha256: str
    note: str = ""


def cache_folder() -> Path:
    """``$LONGTAIL_CACHE``, or a folder ``longtail`` where the system keeps caches."""
    own = os.environ.get("LONGTAIL_CACHE")
    if own:
        return Path(own)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "longtail"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "longtail"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longtail"


def index_path(path: Path) -> Path:
    """Where the index of a file is kept."""
    name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return cache_folder() / f"{name}.arrow"


def stamp_of(path: Path) -> Stamp | None:
    """What tells a changed file from an unchanged one; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return {"path": str(path.resolve()), "size": found.st_size, "mtime_ns": found.st_mtime_ns, "inode": found.st_ino}


def open_index(path: Path) -> Columns | None:
    """The columns of a file that was read before; None if it has no index, or one of an earlier content."""
    stamp = stamp_of(path)
    if stamp is None or stamp["size"] < LEAST_BYTES or not index_path(path).is_file():
        return None
    found = _read(index_path(path))
    if found is None or found[0].get("version") != VERSION or found[0].get("stamp") != stamp:
        return None
    head, arrays = found
    findings = tuple(Finding(**finding) for finding in head["findings"])
    return Columns({**arrays, "source": str(path)}, findings, head["sha256"])


def keep_index(path: Path, columns: Columns, stamp: Stamp | None) -> Columns:
    """Writes the index of a file and returns the columns from it, mapped into memory.

    Args:
        path: the file.
        columns: what was read.
        stamp: of the file, before it was read; if it is another one now, no index is kept.
    """
    if stamp is None or stamp["size"] < LEAST_BYTES or stamp != stamp_of(path):
        return columns
    target = index_path(path)
    head = {
        "version": VERSION,
        "stamp": stamp,
        "sha256": columns.sha256,
        "findings": [
            {**asdict(finding), "ids": [_plain(value) for value in finding.ids]} for finding in columns.findings
        ],
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            os.close(handle)
            _write(Path(draft), columns.arrays, head)
            os.replace(draft, target)
            sync_folder(target.parent)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        return replace(columns, note=f"no index of {path} could be kept ({error}); it is read anew each time")
    return open_index(path) or columns


def drop_if_stale(path: Path, sha256: str) -> bool:
    """Removes the index of a file whose content is another one although its stamp is the same; says whether."""
    stored = open_index(path)
    if stored is None or stored.sha256 == sha256:
        return False
    index_path(path).unlink(missing_ok=True)
    return True


def _write(target: Path, arrays: Mapping[str, Any], head: dict[str, Any]) -> None:
    import pyarrow as pa

    flat = _flattened(arrays)
    columns = {}
    for name, values in flat.items():
        column = pa.array(values, type=pa.large_string()) if isinstance(values, list) else pa.array(values)
        columns[name] = pa.LargeListArray.from_arrays(pa.array([0, len(values)], type=pa.int64()), column)
    table = pa.table(columns).replace_schema_metadata({"longtail": json.dumps(head)})
    with pa.OSFile(str(target), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with target.open("rb") as written:
        os.fsync(written.fileno())


def _read(source: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Head and columns of an index; None if it is damaged."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(source)) as file:
            table = pa.ipc.open_file(file).read_all()
        head = json.loads(table.schema.metadata[b"longtail"])
        flat: dict[str, Any] = {}
        for name in table.column_names:
            values = table.column(name).chunk(0).values
            texts = pa.types.is_large_string(values.type)
            flat[name] = values.to_pylist() if texts else values.to_numpy(zero_copy_only=True)
        return head, _restored(flat)
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException):
        return None


def _flattened(arrays: Mapping[str, Any]) -> dict[str, NDArray[Any] | list[str]]:
    """Columns without structure: one-dimensional arrays of numbers, and lists of texts."""
    flat: dict[str, NDArray[Any] | list[str]] = {}
    for name, value in arrays.items():
        if name == "source" or value is None:
            continue
        if isinstance(value, MaskColumn):
            flat |= {f"masks.{key}": part.reshape(-1) for key, part in vars(value).items()}
        elif isinstance(value, LabelLists):
            flat |= {f"{name}.start": value.start, f"{name}.labels": value.labels}
        elif name in NAMES:
            flat[name] = value
        elif value.dtype == object or value.dtype.kind == "U":  # ids, numbers and texts mixed
            flat[f"{name}.json"] = [json.dumps(each) for each in value.tolist()]
        else:
            flat[name] = value.view(np.uint8) if name in FLAGS else value.reshape(-1)
    return flat


def _restored(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The structure back."""
    arrays: dict[str, Any] = {"masks": None, "negatives": None, "not_exhaustive": None}
    parts: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        shaped = value.reshape(-1, SHAPES[name]) if name in SHAPES else value
        owner, dot, key = name.partition(".")
        if key == "json":
            arrays[owner] = id_array([json.loads(text) for text in value])
        elif dot:
            parts.setdefault(owner, {})[key] = shaped
        else:
            arrays[name] = shaped.view(np.bool_) if name in FLAGS else shaped
    for owner, given in parts.items():
        arrays[owner] = MaskColumn(**given) if owner == "masks" else LabelLists(**given)
    if int(arrays["image_start"][-1]) != len(arrays["label"]) or len(arrays["file_names"]) != len(arrays["image_ids"]):
        raise ValueError("columns of different length")
    return arrays


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | str) else repr(value)
