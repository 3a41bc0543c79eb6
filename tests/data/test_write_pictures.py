"""Folders of pictures by class, from CIFAR and from objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtail.cli.main import main
from longtail.data import AnnotationTable
from longtail.data.scenes import GeneratedSet
from longtail.data.sources import read_sources
from longtail.data.write_pictures import write_cifar, write_crops
from longtail.schema import UsageError


def test_cifar_becomes_a_folder(tmp_path: Path, cifar_hundred) -> None:
    data = cifar_hundred(tmp_path / "in", rows=30)
    made = write_cifar(tmp_path / "in", tmp_path / "out", imbalance=5, seed=1)
    assert made.counts["train"] == {"apple": 10, "bear": 4, "cup": 2}
    assert made.counts["val"] == {"apple": 10, "bear": 10, "cup": 10}
    table = AnnotationTable.from_image_folder(tmp_path / "out" / "train")
    assert np.bincount(table.label).tolist() == [10, 4, 2]
    for name in table.file_names:
        row = int(Path(name).stem)
        pixels = np.asarray(Image.open(tmp_path / "out" / "train" / name))
        assert np.array_equal(pixels, data[row].reshape(3, 32, 32).transpose(1, 2, 0))
    again = write_cifar(tmp_path / "in", tmp_path / "again", imbalance=5, seed=1)
    assert again.counts == made.counts
    kept = AnnotationTable.from_image_folder(tmp_path / "again" / "train").file_names
    assert list(kept) == list(table.file_names)
    with pytest.raises(UsageError, match="exists"):
        write_cifar(tmp_path / "in", tmp_path / "out")


def test_objects_are_cut_out(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    table = read_sources(smoke_set.val, smoke_set.images)
    made = write_crops(table, tmp_path / "crops", margin=0.0)
    assert sum(made.counts[""].values()) == len(table.label)
    for row in (0, len(table.label) - 1):
        x, y, w, h = table.boxes_xywh[row]
        name = f"{table.category_names[table.label[row]]}/{table.annotation_ids[row]}.png"
        own = Image.open(tmp_path / "crops" / name)
        frame = (int(np.floor(x)), int(np.floor(y)), int(np.ceil(x + w)), int(np.ceil(y + h)))
        source = Image.open(smoke_set.images / table.file_names[table.image_index[row]]).convert("RGB").crop(frame)
        assert np.array_equal(np.asarray(own), np.asarray(source))


def test_command(smoke_set: GeneratedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], cifar_hundred) -> None:
    words = ["pictures", str(smoke_set.val), str(tmp_path / "out"), "--images", str(smoke_set.images), "--quiet"]
    assert main(words) == 0
    assert "pictures of 12 classes" in capsys.readouterr().out
    assert main(words) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*words[:2], str(tmp_path / "b"), "--images", str(smoke_set.images), "--imbalance", "10"]) == 2
    assert "--imbalance is for CIFAR" in capsys.readouterr().err
    cifar_hundred(tmp_path / "cifar", rows=30)
    assert (
        main(["pictures", str(tmp_path / "cifar"), str(tmp_path / "lt"), "--imbalance", "2", "--quiet", "--json"]) == 0
    )
    assert '"apple": 10' in capsys.readouterr().out
