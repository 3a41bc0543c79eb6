"""The stored index of an annotation file: equal to a fresh reading, and never trusted too far."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtail.data import AnnotationTable
from longtail.data import index as indices
from longtail.data.check import check
from longtail.data.masks import MaskColumn
from longtail.data.scenes import GeneratedSet
from longtail.data.table import LabelLists


@pytest.fixture(autouse=True)
def _small_files_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(indices, "LEAST_BYTES", 1)
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "cache"))


def assert_equal(one: Any, other: Any, place: str = "") -> None:
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, place
        np.testing.assert_array_equal(one, other, err_msg=place)
    elif isinstance(one, AnnotationTable | MaskColumn | LabelLists):
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name), f"{place}.{field.name}")
    else:
        assert one == other, place


def text_ids(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image["id"] = f"p{image['id']}" if image["id"] % 2 else image["id"]
    names = {
        image["id"] if isinstance(image["id"], int) else int(image["id"][1:]): image["id"]
        for image in content["images"]
    }
    for annotation in content["annotations"]:
        annotation["image_id"] = names[annotation["image_id"]]


def boxes_alone(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    for image in content["images"]:
        del image["neg_category_ids"]


def run_lengths(content: dict[str, Any]) -> None:
    height, width = content["images"][0]["height"], content["images"][0]["width"]
    for annotation in content["annotations"][::3]:
        annotation["segmentation"] = {"size": [height, width], "counts": [5, 3, height * width - 8]}
    content["annotations"][1]["iscrowd"] = 1


def shuffled(content: dict[str, Any]) -> None:
    np.random.default_rng(0).shuffle(content["annotations"])


def empty(content: dict[str, Any]) -> None:
    content["annotations"] = []


@pytest.mark.parametrize("change", [lambda content: None, text_ids, boxes_alone, run_lengths, shuffled, empty])
def test_the_index_gives_what_the_file_gives(
    change: Any, smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(smoke_set.train.read_text())
    change(content)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with monkeypatch.context() as patch:
        patch.setattr(indices, "LEAST_BYTES", 1 << 40)
        fresh = AnnotationTable.from_coco(path)
    assert indices.open_index(path) is None
    first = AnnotationTable.from_coco(path)
    assert indices.open_index(path) is not None
    second = AnnotationTable.from_coco(path)
    assert_equal(fresh, first)
    assert_equal(fresh, second)
    assert not second.boxes_xywh.flags.writeable
    assert not second.boxes_xywh.flags.owndata
    assert_equal(fresh, pickle.loads(pickle.dumps(second)))
    part = np.arange(0, fresh.num_images, 3)
    assert_equal(fresh.select(part), second.select(part))


def test_a_file_that_changes_is_read_again(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(smoke_set.train.read_bytes())
    before = AnnotationTable.from_coco(path)
    content = json.loads(path.read_text())
    content["annotations"].pop()
    path.write_text(json.dumps(content))
    assert len(AnnotationTable.from_coco(path).label) == len(before.label) - 1
    os.utime(path, ns=(1, 1))
    assert indices.open_index(path) is None
    AnnotationTable.from_coco(path)
    assert indices.open_index(path) is not None
    moved = path.rename(tmp_path / "b.json")
    assert indices.open_index(moved) is None
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_deep_finds_a_content_that_changed_behind_its_stamp(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(smoke_set.train.read_bytes())
    AnnotationTable.from_coco(path)
    stamp = path.stat().st_mtime_ns
    content = path.read_bytes()
    assert content.count(b'"width":64') > 1
    with path.open("r+b") as file:
        file.write(content.replace(b'"width":64', b'"width":65', 1))
    os.utime(path, ns=(stamp, stamp))
    assert indices.open_index(path) is not None, "nothing in the stamp shows it"
    assert "index-stale" not in {finding.code for finding in check(path).findings}
    found = check(path, images=smoke_set.images, deep=True)
    assert "index-stale" in {finding.code for finding in found.findings}
    assert indices.open_index(path) is None


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_damaged_index_is_made_again(keep: float, smoke_set: GeneratedSet, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(smoke_set.train.read_bytes())
    whole = AnnotationTable.from_coco(path)
    target = indices.index_path(path)
    content = target.read_bytes()
    fresh = target.with_suffix(".cut")  # the old file is still mapped
    fresh.write_bytes(content[: int(keep * len(content))])
    fresh.replace(target)
    assert indices.open_index(path) is None
    assert_equal(whole, AnnotationTable.from_coco(path))
    assert target.read_bytes() == content


def test_an_index_of_another_version_or_shape_is_not_used(
    smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(smoke_set.train.read_bytes())
    AnnotationTable.from_coco(path)
    with monkeypatch.context() as patch:
        patch.setattr(indices, "VERSION", 99)
        assert indices.open_index(path) is None
    original = indices._flattened
    monkeypatch.setattr(
        indices, "_flattened", lambda arrays: {**original(arrays), "label": original(arrays)["label"][:-1]}
    )
    indices.index_path(path).unlink()
    table = AnnotationTable.from_coco(path)
    assert indices.open_index(path) is None
    assert len(table.label) == 355


@pytest.mark.parametrize("reason", [OSError(errno.ENOSPC, "No space left on device"), PermissionError("not allowed")])
def test_a_cache_that_cannot_be_written_costs_time_only(
    reason: OSError, smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(smoke_set.train.read_bytes())

    def failing(target: Path, arrays: Any, head: Any) -> None:
        target.write_bytes(b"half")
        raise reason

    monkeypatch.setattr(indices, "_write", failing)
    table = AnnotationTable.from_coco(path)
    assert len(table.label) == 355
    assert "no index of" in table.notes[0]
    assert str(reason) in table.notes[0]
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "taken" / "below"))
    assert len(AnnotationTable.from_coco(path).label) == 355


def test_a_file_that_changes_while_it_is_read_leaves_no_index(
    smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longtail.data import coco

    path = tmp_path / "a.json"
    path.write_bytes(smoke_set.train.read_bytes())
    original = coco.read_content

    def slow(*arguments: Any, **options: Any) -> Any:
        found = original(*arguments, **options)
        os.utime(path, ns=(5, 5))
        return found

    monkeypatch.setattr(coco, "read_content", slow)
    AnnotationTable.from_coco(path)
    assert not (tmp_path / "cache").exists()


CHILD = """
import sys
from longtail.data import AnnotationTable, index
index.LEAST_BYTES = 1
for _ in range(3):
    table = AnnotationTable.from_coco(sys.argv[1])
    assert len(table.label) == 355 and not table.notes, table.notes
    index.index_path(__import__("pathlib").Path(sys.argv[1])).unlink(missing_ok=True)
"""


def test_several_processes_may_make_it_at_the_same_time(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(smoke_set.train.read_bytes())
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [child.communicate()[1] for child in children] == ["", "", ""]
    assert len(AnnotationTable.from_coco(path).label) == 355
    assert len(list((tmp_path / "cache").iterdir())) == 1, "no draft is left"


def test_warnings_are_kept_with_the_index(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    content = json.loads(smoke_set.train.read_text())
    content["annotations"].append({**content["annotations"][0], "id": 9999})
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    first, second = AnnotationTable.from_coco(path), AnnotationTable.from_coco(path)
    assert [finding.code for finding in first.findings] == ["bbox-duplicate"]
    assert second.findings == first.findings
    assert second.sha256 == first.sha256
    assert not second.masks.points.flags.owndata


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LONGTAIL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert indices.cache_folder() == tmp_path / "longtail"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert indices.cache_folder().parts[-3:] == ("Library", "Caches", "longtail")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert indices.cache_folder() == tmp_path / "local" / "longtail"
