"""CIFAR files of the tests."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def hundred(folder: Path, rows: int = 8) -> np.ndarray:
    """A small ``cifar-100-python``, with the keys as bytes, as Python 2 wrote them."""
    data = np.random.default_rng(0).integers(0, 256, (rows, 3072), dtype=np.uint8)
    labels = [row % 3 for row in range(rows)]
    for name in ("train", "test"):
        content = {b"data": data, b"fine_labels": labels, b"coarse_labels": [0] * rows, b"filenames": [b"x"] * rows,
                   b"batch_label": b"training batch 1 of 1"}  # fmt: skip
        write(folder / name, content)
    write(folder / "meta", {b"fine_label_names": [b"apple", b"bear", b"cup"], b"coarse_label_names": [b"all"]})
    return data


@pytest.fixture
def cifar_hundred() -> Callable[..., np.ndarray]:
    """Writes a small ``cifar-100-python`` into a folder and returns its pixels as they are in the file."""
    return hundred
