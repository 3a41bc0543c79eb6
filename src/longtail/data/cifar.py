"""Reads CIFAR-10 and CIFAR-100 as they are distributed for Python (Krizhevsky, 2009)."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.schema.errors import DataError

SIDE = 32
PARTS = {
    "cifar-100": {"train": ("train",), "val": ("test",), "names": "meta", "key": "fine_label_names"},
    "cifar-10": {
        "train": tuple(f"data_batch_{n}" for n in range(1, 6)),
        "val": ("test_batch",),
        "names": "batches.meta",
        "key": "label_names",
    },
}
ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


@dataclass(frozen=True, eq=False)
class Cifar:
    """One part of the set: ``pictures`` (N, 32, 32, 3) uint8 RGB, ``labels`` (N,) int64, ``names`` of the classes."""

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: list[str]


class ArraysOnly(pickle.Unpickler):
    """Unpickles containers, text, numbers and numpy arrays; anything else is refused, so that no code is run."""

    def find_class(self, module: str, name: str) -> Any:
        """The few functions that numpy arrays are made of, and the one that bytes are made of.

        Raises:
            DataError: the file names anything else.
        """
        if (module, name) == ("_codecs", "encode"):
            return latin1_bytes
        if (module, name) not in ADMITTED:
            raise DataError(f"a CIFAR file asks for {module}.{name}, which no such file needs; do not trust it")
        return super().find_class(module, name)


def latin1_bytes(text: str, encoding: str) -> bytes:
    """Bytes as Python 3 pickles them in the old protocols: as text, one character each.

    Raises:
        DataError: another encoding, whose codec could be any code.
    """
    if not isinstance(text, str) or encoding != "latin1":
        raise DataError(f"a CIFAR file asks for the codec {encoding!r}, which no such file needs; do not trust it")
    return text.encode("latin1")


def kind_of(path: Path) -> str | None:
    """``cifar-100`` or ``cifar-10`` for a folder or archive of that set, None for anything else."""
    if path.is_file():
        name = path.name.lower()
        found = [kind for kind in PARTS if name.startswith(kind) and name.endswith((".tar.gz", ".tar", ".tgz"))]
        return found[0] if found else None
    for kind, parts in PARTS.items():
        if all((path / str(name)).is_file() for name in (*parts["train"], *parts["val"], parts["names"])):
            return kind
    return None


def read_cifar(path: Path, split: str) -> Cifar:
    """Reads the training (``"train"``) or test part (``"val"``).

    Args:
        path: the folder ``cifar-100-python`` or ``cifar-10-batches-py``, or the archive it comes in.
        split: which part.

    Raises:
        DataError: no such set, or a file or archive that is damaged or holds something else.
    """
    kind = kind_of(path)
    if kind is None:
        raise DataError(
            f"{path} is no CIFAR set; give the folder cifar-100-python or cifar-10-batches-py, or its .tar.gz"
        )
    parts = PARTS[kind]
    if path.is_file():
        try:
            with tarfile.open(path) as archive:
                return assemble(lambda name: load(from_archive(archive, name, path), f"{path}:{name}"), parts, split)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            reason = str(error).partition("\n")[0].rstrip(":")  # tarfile lists every format that it tried
            raise DataError(f"{path} is damaged: {reason}; copy it again") from error
    return assemble(lambda name: load((path / name).read_bytes(), str(path / name)), parts, split)


def from_archive(archive: tarfile.TarFile, name: str, path: Path) -> bytes:
    """The content of one file, whichever folder of the archive it lies in."""
    member = next((each for each in archive.getmembers() if each.isfile() and Path(each.name).name == name), None)
    file = None if member is None else archive.extractfile(member)
    if file is None:
        raise DataError(f"{path} holds no file {name}; take the archive for Python, whole")
    return file.read()


def load(content: bytes, place: str) -> dict[str, Any]:
    """A pickled dictionary, its keys as text.

    Raises:
        DataError: the file is damaged.
    """
    try:
        found = ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{place} is damaged: {error}; copy it again") from None
    if not isinstance(found, dict):
        raise DataError(f"{place} holds no dictionary; it is no CIFAR file")
    return {as_text(key): value for key, value in found.items()}


def assemble(read: Callable[[str], dict[str, Any]], parts: dict[str, Any], split: str) -> Cifar:
    """Joins the files of one part."""
    meta = read(parts["names"])
    names = [as_text(name) for name in meta.get(parts["key"], ())]
    pictures, labels = [], []
    for name in parts[split]:
        content = read(name)
        data, own = as_array(content.get("data", ())), as_array(content.get("fine_labels", content.get("labels", ())))
        if data.ndim != 2 or data.shape[1] != 3 * SIDE**2 or data.dtype != np.uint8 or own.shape != data.shape[:1]:
            raise DataError(f"{name}: labels of shape {own.shape} for data of shape {data.shape} and type {data.dtype}")
        if len(own) and not np.issubdtype(own.dtype, np.integer):
            raise DataError(f"{name}: labels must be whole numbers, got {own[:3].tolist()}")
        pictures.append(data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        labels.append(own.astype(np.int64))
    label = np.concatenate(labels)
    if not names or label.min(initial=0) < 0 or label.max(initial=0) >= len(names):
        raise DataError(f"labels {label.min(initial=0)}..{label.max(initial=0)} for {len(names)} class names")
    return Cifar(np.concatenate(pictures), label, names)


def as_array(value: Any) -> NDArray[Any]:
    """Of type object, which nothing here admits, where rows differ in length."""
    try:
        return np.asarray(value)
    except ValueError:
        return np.array(None)


def as_text(value: Any) -> str:
    """Python 2 wrote bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
