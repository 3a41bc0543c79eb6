"""Several sources as one table: classes by name, ids, masks, picture folders, and what is unknown where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.data import AnnotationTable
from longtail.data.convert import write_as
from longtail.data.formats import part_of, read_annotations
from longtail.data.join import in_one_folder, join_tables
from longtail.schema import DataError, UsageError

POLYGON = [[0, 0, 9, 0, 9, 9]]
RLE = {"size": [40, 60], "counts": [100, 5, 2295]}


def make(
    folder: Path,
    name: str,
    classes: dict[int, str],
    objects: list[tuple[int, int]],
    *,
    first: int = 1,
    lists: dict[int, tuple[list[int], list[int]]] | None = None,
    segmentation: Any = None,
    images: bool = True,
) -> AnnotationTable:
    """Three images and objects (image 0..2, category id); ``lists`` per image: negatives, not exhaustive."""
    entries = []
    for row in range(3):
        own = {"id": first + row, "file_name": f"{row}.jpg", "height": 40, "width": 60}
        if lists is not None:
            own["neg_category_ids"], own["not_exhaustive_category_ids"] = lists.get(row, ([], []))
        entries.append(own)
    annotations = [
        {"id": first + row, "image_id": first + image, "category_id": category, "bbox": [row, 1, 5, 5]}
        | ({} if segmentation is None else {"segmentation": segmentation})
        for row, (image, category) in enumerate(objects)
    ]
    categories = [{"id": identity, "name": text} for identity, text in classes.items()]
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": categories}))
    pictures = folder / name
    pictures.mkdir(exist_ok=True)
    for row in range(3):
        (pictures / f"{row}.jpg").touch()
    return read_annotations(path, images=pictures if images else None)


def known(table: AnnotationTable) -> set[tuple[str, str, str]]:
    """(source, picture, class with + present, - absent, ? incomplete)."""
    found = set()
    for row, name in enumerate(table.file_names):
        source = Path(table.sources[int(table.source_of_image[row])].name).stem if len(table.sources) > 1 else ""
        for label in table.label[table.rows_of(row)].tolist():
            found.add((source, name, "+" + table.category_names[label]))
        for mark, lists in (("-", table.negatives), ("?", table.not_exhaustive)):
            if lists is not None:
                found |= {(source, name, mark + table.category_names[label]) for label in lists.of(row).tolist()}
    return found


def test_classes_by_name_and_ids_kept(tmp_path: Path) -> None:
    a = make(tmp_path, "a", {1: "cat", 2: "dog"}, [(0, 1), (2, 2)])
    b = make(tmp_path, "b", {7: "dog", 8: "cat"}, [(1, 7), (1, 8)], first=100)
    joined = join_tables([a, b])
    assert joined.category_names == ["cat", "dog"]
    assert joined.category_ids.tolist() == [1, 2]
    assert joined.label.tolist() == [0, 1, 1, 0]
    assert joined.image_ids.tolist() == [1, 2, 3, 100, 101, 102]
    assert joined.annotation_ids.tolist() == [1, 2, 100, 101]
    assert joined.image_index.tolist() == [0, 2, 4, 4]
    assert joined.image_start.tolist() == [0, 1, 1, 2, 2, 4, 4]
    assert joined.boxes_xywh.tolist() == [*a.boxes_xywh.tolist(), *b.boxes_xywh.tolist()]
    assert joined.source_of_image is not None and joined.source_of_image.tolist() == [0, 0, 0, 1, 1, 1]
    assert [Path(source.images or "").name for source in joined.sources] == ["a", "b"]
    assert not joined.federated, "both are complete for the same classes"
    assert joined.notes == () and joined.masks is None
    part = part_of(joined, 1)
    assert part.file_names == b.file_names and part.source_of_image is not None
    assert part.source_of_image.tolist() == [1, 1, 1]


def test_clashing_ids_are_renumbered_and_told(tmp_path: Path) -> None:
    a = make(tmp_path, "a", {1: "cat"}, [(0, 1)])
    b = make(tmp_path, "b", {1: "dog"}, [(1, 1)])
    joined = join_tables([a, b])
    assert joined.image_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert joined.annotation_ids.tolist() == [1, 2]
    assert joined.category_ids.tolist() == [1, 2]
    assert [note.split(":")[0] for note in joined.notes[:3]] == [
        "class ids of the sources stand for different classes",
        "image ids occur in more than one source",
        "annotation ids occur in more than one source",
    ]


def test_aliases(tmp_path: Path) -> None:
    a = make(tmp_path, "a", {1: "motorbike"}, [(0, 1)])
    b = make(tmp_path, "b", {1: "motorcycle", 2: "moped"}, [(1, 1), (1, 2)], first=10)
    joined = join_tables([a, b], aliases={"motorcycle": "motorbike", "moped": "motorbike"})
    assert joined.category_names == ["motorbike"] and joined.label.tolist() == [0, 0, 0]
    with pytest.raises(UsageError, match="no source has a class 'bike'"):
        join_tables([a, b], aliases={"bike": "motorbike"})
    with pytest.raises(UsageError, match="nothing to join"):
        join_tables([])
    assert join_tables([a]) is a
    assert join_tables([a], aliases={"motorbike": "m"}).category_names == ["m"]


def test_names_that_occur_twice_are_matched_with_their_ids(tmp_path: Path) -> None:
    a = make(tmp_path, "a", {1: "bow", 2: "bow"}, [(0, 1), (0, 2)])
    b = make(tmp_path, "b", {2: "bow", 1: "bow"}, [(0, 2), (0, 1)], first=10)
    assert join_tables([a, b]).label.tolist() == [0, 1, 1, 0]


def test_classes_a_source_does_not_have_are_unknown_not_absent(tmp_path: Path) -> None:
    a = make(tmp_path, "a", {1: "cat", 2: "dog"}, [(0, 1)])
    b = make(tmp_path, "b", {2: "dog", 3: "cow"}, [(0, 3)], first=10)
    joined = join_tables([a, b])
    assert joined.federated
    expected = {("a", "0.jpg", "+cat"), ("a", "0.jpg", "-dog"), ("b", "0.jpg", "+cow"), ("b", "0.jpg", "-dog")}
    expected |= {("a", f"{row}.jpg", f"-{name}") for row in (1, 2) for name in ("cat", "dog")}
    expected |= {("b", f"{row}.jpg", f"-{name}") for row in (1, 2) for name in ("cow", "dog")}
    assert known(joined) == expected
    assert "unknown, not absent" in joined.notes[-1]


def test_lists_of_one_source_are_kept_and_the_others_made(tmp_path: Path) -> None:
    lists = {0: ([2], [1]), 1: ([], [2])}
    a = make(tmp_path, "a", {1: "cat", 2: "dog"}, [(0, 1)], lists=lists)
    b = make(tmp_path, "b", {1: "dog", 2: "cat"}, [(0, 1)], first=10)
    joined = join_tables([b, a])
    assert joined.category_names == ["dog", "cat"]
    expected = {("a", "0.jpg", "+cat"), ("a", "0.jpg", "-dog"), ("a", "0.jpg", "?cat"), ("a", "1.jpg", "?dog")}
    expected |= {("b", "0.jpg", "+dog"), ("b", "0.jpg", "-cat")}
    expected |= {("b", f"{row}.jpg", f"-{name}") for row in (1, 2) for name in ("cat", "dog")}
    assert known(joined) == expected
    three = join_tables([joined, make(tmp_path, "c", {9: "dog", 8: "cat"}, [], first=20)])
    assert [Path(source.name).stem for source in three.sources] == ["b", "a", "c"]
    assert {each for each in known(three) if each[0] != "c"} == expected


@pytest.mark.parametrize("first", [POLYGON, RLE, None])
@pytest.mark.parametrize("second", [POLYGON * 2, RLE])
def test_masks(tmp_path: Path, first: Any, second: Any) -> None:
    a = make(tmp_path, "a", {1: "cat"}, [(0, 1), (1, 1)], segmentation=first)
    b = make(tmp_path, "b", {1: "cat"}, [(0, 1), (2, 1)], first=10, segmentation=second)
    for tables in ((a, b), (b, a), (a, b, a)):
        masks = join_tables(list(tables)).masks
        assert masks is not None
        rows = [(table, row) for table in tables for row in range(2)]
        for place, (table, row) in enumerate(rows):
            assert masks.to_json(place) == (None if table.masks is None else table.masks.to_json(row))


def test_one_folder_for_all(tmp_path: Path) -> None:
    a = make(tmp_path, "a", {1: "cat"}, [(0, 1)])
    b = make(tmp_path, "b", {1: "cat"}, [(1, 1)], first=10)
    done = write_as(in_one_folder(join_tables([a, b])), tmp_path / "out.json", to="coco")
    assert done.images == tmp_path
    back = read_annotations(tmp_path / "out.json", images=done.images)
    assert back.file_names == ["a/0.jpg", "a/1.jpg", "a/2.jpg", "b/0.jpg", "b/1.jpg", "b/2.jpg"]
    with pytest.raises(DataError, match=r"c\.json does not say where"):
        in_one_folder(join_tables([a, make(tmp_path, "c", {1: "cat"}, [], first=20, images=False)]))


@settings(max_examples=15, deadline=None)
@given(
    objects=st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), max_size=5), min_size=2, max_size=3),
    clash=st.booleans(),
)
def test_every_object_keeps_its_picture_and_class(
    objects: list[list[tuple[int, int]]], clash: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("join")
    tables = [
        make(
            folder,
            f"s{number}",
            {(c + number) % 3 + 1: "xyz"[c] for c in range(3)},
            own,
            first=1 if clash else 9 * number + 1,
        )
        for number, own in enumerate(objects)
    ]
    joined = join_tables(tables)
    wanted = {
        each for number, table in enumerate(tables) for each in ((f"s{number}", *one[1:]) for one in known(table))
    }
    assert {each for each in known(joined) if each[2][0] == "+"} == wanted
    assert len(joined.label) == sum(len(own) for own in objects)
    assert len(set(joined.image_ids.tolist())) == joined.num_images
    assert np.array_equal(np.bincount(joined.image_index, minlength=joined.num_images), np.diff(joined.image_start))
