"""Long-tailed parts: targets, the choice of pictures, ids, and the union of the VOC years."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.data import AnnotationTable, subset
from longtail.data.scenes import GeneratedSet
from longtail.data.statistics import Count
from longtail.data.subset_report import report_text, subset_report
from longtail.schema import DataError, UsageError


def table_of(labels: list[list[int]], folder: Path, *, lists: bool = False, crowd: bool = False) -> AnnotationTable:
    """One image per list of classes 0..4."""
    images = [
        {"id": 10 + row, "file_name": f"{row}.jpg", "height": 9, "width": 9}
        | ({"neg_category_ids": [], "not_exhaustive_category_ids": []} if lists else {})
        for row in range(len(labels))
    ]
    pairs = [(row, label) for row, own in enumerate(labels) for label in own]
    annotations = [
        {"id": 100 + place, "image_id": 10 + row, "category_id": label + 1, "bbox": [1, 1, 2, 2], "iscrowd": int(crowd)}
        for place, (row, label) in enumerate(pairs)
    ]
    path = folder / "in.json"
    categories = [{"id": label + 1, "name": "abcde"[label]} for label in range(5)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return AnnotationTable.from_coco(path)


def counts(table: AnnotationTable, count: Count) -> list[int]:
    statistics = table.statistics()
    return (statistics.image_counts if count == "images" else statistics.instance_counts).tolist()


def test_targets_fall_exponentially(tmp_path: Path) -> None:
    table = table_of([[0, 1, 2]] * 100 + [[0, 1, 1]] * 100 + [[0]] * 200, tmp_path)
    profile = subset.exponential_profile(table, imbalance=100)
    assert profile.targets.tolist() == [400, 40, 4, 0, 0]
    assert subset.exponential_profile(table, least=4, most=100).targets.tolist() == [100, 20, 4, 0, 0]
    assert subset.exponential_profile(table, least=90, most=1000).targets.tolist() == [400, 190, 90, 0, 0]
    assert subset.exponential_profile(table, imbalance=1).targets.tolist() == [400, 200, 100, 0, 0], "as it has"
    assert subset.exponential_profile(table, imbalance=1e9).targets.tolist()[2] == 1
    instances = subset.exponential_profile(table, imbalance=100, count="instances")
    assert instances.targets.tolist() == [400, 40, 4, 0, 0] and instances.count == "instances"
    one = table_of([[3]], tmp_path)
    assert subset.exponential_profile(one, imbalance=5).targets.tolist() == [0, 0, 0, 1, 0]
    assert subset.coco_lt_profile(one).targets.tolist() == [0, 0, 0, 1, 0]


def test_profiles_that_are_refused(tmp_path: Path) -> None:
    table = table_of([[0]], tmp_path)
    for wrong in ({}, {"imbalance": 2.0, "least": 1}, {"imbalance": 0.5}, {"least": 0}, {"imbalance": float("nan")}):
        with pytest.raises(UsageError):
            subset.exponential_profile(table, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs at least 1"):
        subset.exponential_profile(table, least=1, most=0)
    for empty in (table_of([[], []], tmp_path), table_of([[0]], tmp_path, crowd=True)):
        with pytest.raises(DataError, match="no objects to choose by"):
            subset.exponential_profile(empty, imbalance=2)


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=30).filter(any),
    imbalance=st.floats(1, 50),
    count=st.sampled_from(["images", "instances"]),
    seed=st.integers(0, 3),
)
def test_no_class_exceeds_and_nothing_more_fits(
    labels: list[list[int]], imbalance: float, count: Count, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    table = table_of(labels, tmp_path_factory.mktemp("subset"))
    profile = subset.exponential_profile(table, imbalance=imbalance, count=count)
    rows = subset.choose(table, profile, seed=seed)
    assert np.array_equal(rows, subset.choose(table, profile, seed=seed)), "the same for the same seed"
    reached = np.array(counts(table.select(rows), count))
    assert (reached <= profile.targets).all()
    for row, own in enumerate(labels):
        if row not in rows and own:
            more = np.bincount(own, minlength=5) if count == "instances" else np.bincount(list(set(own)), minlength=5)
            assert (reached + more > profile.targets).any(), "every image that is left out would be too much"
    rarest = np.flatnonzero(profile.targets)[np.argmin(profile.targets[profile.targets > 0])]
    if count == "images" and (profile.targets > 0).sum() == 1:
        assert reached[rarest] == profile.targets[rarest]


def test_the_rarest_target_is_visited_first(tmp_path: Path) -> None:
    table = table_of([[0]] * 50 + [[0, 1]] * 2 + [[0]] * 50, tmp_path)
    rows = subset.choose(table, subset.Profile(np.array([5, 2, 0, 0, 0]), "images"), seed=0)
    assert {50, 51} <= set(rows.tolist()) and len(rows) == 5


def test_seeds_differ(smoke_set: GeneratedSet) -> None:
    table = AnnotationTable.from_coco(smoke_set.train)
    profile = subset.exponential_profile(table, imbalance=20, most=20)
    assert not np.array_equal(subset.choose(table, profile, seed=0), subset.choose(table, profile, seed=1))


def test_lists_of_images(tmp_path: Path) -> None:
    table = table_of([[0], [1, 1], [2], []], tmp_path)
    part = subset.by_image_ids(table, [13, 11, 11])
    assert part.image_ids.tolist() == [11, 13] and part.annotation_ids.tolist() == [101, 102]
    with pytest.raises(DataError, match=r"does not have 2 of the 3 image ids, e\.g\. 'x', 99"):
        subset.by_image_ids(table, [10, "x", 99])


@pytest.mark.parametrize("lists", [False, True])
def test_lists_of_annotations(tmp_path: Path, lists: bool) -> None:
    table = table_of([[0, 1, 1], [2], [3, 0]], tmp_path, lists=lists)
    part = subset.by_annotation_ids(table, [104, 101])
    assert part.image_ids.tolist() == [10, 12]
    assert part.annotation_ids.tolist() == [101, 104]
    assert part.label.tolist() == [1, 3]
    assert part.image_start.tolist() == [0, 1, 2]
    assert part.notes[0].startswith("3 objects of these images are not in the list")
    if lists:
        assert part.not_exhaustive is not None
        assert part.not_exhaustive.of(0).tolist() == [0, 1]
        assert part.not_exhaustive.of(1).tolist() == [0]
    else:
        assert part.not_exhaustive is None and "background" in part.notes[0]
    assert subset.by_annotation_ids(table, table.annotation_ids.tolist()).notes == ()
    with pytest.raises(DataError, match="1 of the 1 annotation ids"):
        subset.by_annotation_ids(table, [1])


def test_files_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "ids"
    for text, ids in (("3\n\n-4\nx7\n", [3, -4, "x7"]), ('[3,\n "3"]', [3, "3"])):
        path.write_text(text)
        assert subset.read_ids(path) == ids
    for text, message in (("", "is empty"), ("[1,", "not a JSON list"), ("[1.5]", "whole numbers or texts")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            subset.read_ids(path)


def voc(folder: Path, year: str, stem: str, name: str, difficult: int) -> None:
    root = folder / year
    for each in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / each).mkdir(parents=True, exist_ok=True)
    (root / "JPEGImages" / f"{stem}.jpg").touch()
    (root / "ImageSets" / "Main" / "trainval.txt").write_text(f"{stem}\n")
    (root / "Annotations" / f"{stem}.xml").write_text(
        f"<annotation><size><width>9</width><height>9</height></size><object><name>{name}</name><difficult>{difficult}"
        "</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></object></annotation>"
    )


def test_union_of_the_voc_years(tmp_path: Path) -> None:
    voc(tmp_path, "VOC2007", "000001", "cat", 1)
    with pytest.raises(DataError, match="VOC2012"):
        subset.voc_0712(tmp_path)
    voc(tmp_path, "VOC2012", "2008_000001", "cat", 0)
    table = subset.voc_0712(tmp_path)
    assert table.file_names == ["000001.jpg", "2008_000001.jpg"]
    assert table.ignore.tolist() == [True, False]
    assert [Path(source.images or "").parent.name for source in table.sources] == ["VOC2007", "VOC2012"]


def test_report(tmp_path: Path) -> None:
    table = table_of([[0, 1, 1]] * 12 + [[2]], tmp_path)
    profile = subset.exponential_profile(table, imbalance=6)
    part = table.select(subset.choose(table, profile, seed=0))
    report = subset_report(table, part, profile, edges=(2, 4), bins=(1, 3))
    assert [each["group"] for each in report["groups"]] == ["rare", "frequent", "without an object"]
    assert report["groups"][0] == {
        "group": "rare", "classes": 1, "before": 1, "target": 1, "reached": 1, "at_target": 1,
    }  # fmt: skip
    assert report["bins"] == [{"from": 1, "to": 3, "classes": 1}, {"from": 3, "to": None, "classes": 2}]
    assert [(each["name"], each["reached"], each["target"]) for each in report["classes"][:3]] == [
        ("a", 5, 12), ("b", 5, 5), ("c", 1, 1),
    ]  # fmt: skip
    text = report_text(report)
    assert "6 of 13 images" in text and "[1, 3)  1   [3, -)  2" in text
