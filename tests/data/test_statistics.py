"""Counts and groups against loops."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.data import ClassStatistics
from longtail.data.table import AnnotationTable


@given(
    counts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=8),
    edges=st.tuples(st.integers(0, 10), st.integers(10, 20)),
)
@settings(max_examples=60, deadline=None)
def test_groups_equal_the_loops(counts: list[tuple[int, int]], edges: tuple[int, int]) -> None:
    images = [c for c, _ in counts]
    statistics = ClassStatistics(
        names=[str(k) for k in range(len(counts))],
        image_counts=np.array(images),
        instance_counts=np.array([c * (1 + e) for c, e in counts]),
        num_images=40,
        num_nonempty=30,
        edges=edges,
    )
    expected = ["-" if c == 0 else "r" if c <= edges[0] else "c" if c <= edges[1] else "f" for c in images]
    assert statistics.group.tolist() == expected
    again = ClassStatistics.from_dict(json.loads(json.dumps(statistics.to_dict())))
    assert again.group.tolist() == expected
    assert again.image_counts.tolist() == images
    assert [row[1] for row in again.rows()] == sorted(images, reverse=True)


def few(images: int = 0) -> ClassStatistics:
    return ClassStatistics(["a", "b", "c"], np.array([0, 3, images]), np.array([0, 40, 5]), 20, 10, (3, 6), "instances")


def test_groups_by_instances() -> None:
    assert few(2).group.tolist() == ["-", "f", "c"]
    assert few(0).group.tolist() == ["-", "f", "-"], "a class without a picture is in no group"
    assert few(2).image_frequency.tolist() == [0, 0.3, 0.2]
    assert few(2).rows()[0] == ("b", 3, 40, "f")


def test_senseless_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="ascend"):
        ClassStatistics(["a"], np.array([1]), np.array([1]), 1, 1, (100, 10))
    with pytest.raises(ValueError, match="one of each"):
        ClassStatistics(["a", "b"], np.array([1]), np.array([1]), 1, 1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans(), st.booleans()), max_size=25))
@settings(max_examples=40, deadline=None)
def test_counts_equal_the_loops(rows: list[tuple[int, int, bool, bool]]) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    count = len(rows)
    image = np.array([row[0] for row in rows], dtype=np.int32)
    table = AnnotationTable(
        source="x",
        image_ids=np.arange(6),
        file_names=["x.jpg"] * 6,
        heights=np.zeros(6, np.int32),
        widths=np.zeros(6, np.int32),
        category_ids=np.arange(4),
        category_names=list("abcd"),
        annotation_ids=np.arange(count),
        image_index=image,
        label=np.array([row[1] for row in rows], dtype=np.int32),
        boxes_xywh=np.ones((count, 4)),
        area=np.ones(count),
        iscrowd=np.array([row[2] for row in rows], dtype=np.bool_),
        ignore=np.array([row[3] for row in rows], dtype=np.bool_),
        masks=None,
        negatives=None,
        not_exhaustive=None,
        image_start=np.searchsorted(image, np.arange(7)),
    )
    found = table.statistics()
    kept = [(row[0], row[1]) for row in rows if not row[2] and not row[3]]
    for label in range(4):
        assert found.instance_counts[label] == sum(1 for row in kept if row[1] == label)
        assert found.image_counts[label] == len({row[0] for row in kept if row[1] == label})
    assert found.num_nonempty == len({row[0] for row in kept})
    assert table.num_empty == 6 - len({row[0] for row in rows})
