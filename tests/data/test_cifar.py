"""CIFAR's files, written here exactly as they are distributed."""

from __future__ import annotations

import codecs
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from longtail.data.cifar import kind_of, read_cifar
from longtail.schema import DataError


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def ten(folder: Path) -> None:
    data = np.zeros((2, 3072), np.uint8)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        write(folder / name, {b"data": data, b"labels": [0, 1], b"batch_label": b"x", b"filenames": [b"x", b"y"]})
    write(folder / "batches.meta", {b"label_names": [b"airplane", b"cat"], b"num_vis": 3072})


def test_pixels_labels_and_names(tmp_path: Path, cifar_hundred) -> None:
    folder = tmp_path / "cifar-100-python"
    data = cifar_hundred(folder)
    found = read_cifar(folder, "train")
    assert found.names == ["apple", "bear", "cup"]
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert found.pictures.shape == (8, 32, 32, 3)
    for row, y, x, channel in ((0, 0, 0, 0), (3, 5, 31, 1), (7, 31, 2, 2)):
        assert found.pictures[row, y, x, channel] == data[row, channel * 1024 + y * 32 + x]


def test_the_archive_gives_the_same(tmp_path: Path, cifar_hundred) -> None:
    folder = tmp_path / "cifar-100-python"
    cifar_hundred(folder)
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-100-python")
    one, other = read_cifar(folder, "val"), read_cifar(tmp_path / "cifar-100-python.tar.gz", "val")
    assert np.array_equal(one.pictures, other.pictures)
    assert one.names == other.names


def test_the_ten_classes_come_in_five_files(tmp_path: Path) -> None:
    ten(tmp_path)
    assert kind_of(tmp_path) == "cifar-10"
    assert read_cifar(tmp_path, "train").labels.tolist() == [0, 1] * 5
    assert read_cifar(tmp_path, "val").names == ["airplane", "cat"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch never",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), r"asks for \w+\.system.*do not trust"),
        ({b"data": Evil()}, "do not trust"),
        ([1, 2], "holds no dictionary"),
        (
            {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0]},
            r"labels of shape \(1,\) for data of shape \(2, 3072\)",
        ),
        ({b"data": np.zeros((1, 100), np.uint8), b"fine_labels": [0]}, "of shape"),
        ({b"data": np.zeros((1, 3072), np.float32), b"fine_labels": [0]}, "float32"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [7]}, "7 for 3 class names"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, 1.5]}, r"whole numbers, got \[0.0, 1.5\]"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": ["0", "1"]}, "train: labels must be whole numbers"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [True]}, "whole numbers, got"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [None]}, "whole numbers, got"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [[0], [1]]}, r"labels of shape \(2, 1\)"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [[0], [1, 2]]}, r"labels of shape \(\)"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": 5}, r"labels of shape \(\)"),
        ({b"data": [[1], [2, 3]], b"fine_labels": [0]}, r"data of shape \(\) and type object"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [2**63]}, "class names"),
    ],
)
def test_refuses(content: object, message: str, tmp_path: Path, cifar_hundred) -> None:
    cifar_hundred(tmp_path)
    write(tmp_path / "train", content)
    with pytest.raises(DataError, match=message):
        read_cifar(tmp_path, "train")


class Encoded:
    """Pickled as a call of ``_codecs.encode`` with some arguments."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self):
        return codecs.encode, self.arguments


@pytest.mark.parametrize("arguments", [("x", "rot13"), (b"x", "zlib"), ("x", "utf-8"), (b"x", "latin1")])
def test_no_codec_is_called_but_the_one_of_bytes(arguments: tuple, tmp_path: Path, cifar_hundred) -> None:
    cifar_hundred(tmp_path)
    write(tmp_path / "train", {b"data": Encoded(*arguments), b"fine_labels": [0]})
    with pytest.raises(DataError, match=r"train: a CIFAR file asks for the codec .*do not trust"):
        read_cifar(tmp_path, "train")


def test_damaged_and_missing(tmp_path: Path, cifar_hundred) -> None:
    cifar_hundred(tmp_path)
    whole = (tmp_path / "train").read_bytes()
    (tmp_path / "train").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train is damaged.*copy it again"):
        read_cifar(tmp_path, "train")
    (tmp_path / "meta").unlink()
    with pytest.raises(DataError, match="is no CIFAR set"):
        read_cifar(tmp_path, "train")
    assert kind_of(tmp_path) is None and kind_of(tmp_path / "nothing") is None
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match="holds no file meta"):
        read_cifar(tmp_path / "cifar-100-python.tar.gz", "train")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5])
def test_a_damaged_archive_is_named(kept: float, tmp_path: Path, cifar_hundred) -> None:
    folder, path = tmp_path / "cifar-100-python", tmp_path / "cifar-100-python.tar.gz"
    cifar_hundred(folder)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "cifar-100-python")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz is damaged.*copy it again"):
        read_cifar(path, "train")


def python2_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """The opcodes that Python 2 and its numpy wrote: byte strings (U, T), which Python 3 reads but never writes."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K" + bytes([len(data)]) + b"M\x00\x0ctcnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + data.nbytes.to_bytes(4, "little") + data.tobytes() + b"tb"
    )
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return b"\x80\x02}(U\x04data" + array + b"U\x0bfine_labels](" + numbers + b"eu."


def test_files_as_python_2_wrote_them(tmp_path: Path) -> None:
    data = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(python2_batch(data, [2, 0]))
    (tmp_path / "meta").write_bytes(b"\x80\x02}(U\x10fine_label_names](U\x05appleU\x04bearU\x03cupeu.")
    found = read_cifar(tmp_path, "train")
    assert found.names == ["apple", "bear", "cup"]
    assert found.labels.tolist() == [2, 0]
    assert np.array_equal(found.pictures.transpose(0, 3, 1, 2).reshape(2, 3072), data)
