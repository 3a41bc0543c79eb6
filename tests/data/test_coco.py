"""Annotation files: what is read, what is kept, what is refused."""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.data import AnnotationTable, Classes, match_categories
from longtail.data.coco import write_coco
from longtail.data.scenes import GeneratedSet
from longtail.schema import DataError


def small() -> dict[str, Any]:
    """Three pictures, ids neither contiguous nor in order, the annotations not sorted by picture."""
    return {
        "images": [
            {"id": 70, "file_name": "b/ä.jpg", "height": 40, "width": 50},
            {"id": 5, "file_name": "a.jpg", "height": 30, "width": 20},
            {"id": 900, "file_name": "empty.jpg", "height": 10, "width": 10},
        ],
        "annotations": [
            {"id": 11, "image_id": 5, "category_id": 8, "bbox": [1.5, 2, 3, 4], "area": 7, "iscrowd": 0,
             "segmentation": [[1.5, 2, 4.5, 2, 4.5, 6]]},
            {"id": 3, "image_id": 70, "category_id": 2, "bbox": [0, 0, 10, 20], "iscrowd": 1,
             "segmentation": {"size": [40, 50], "counts": [0, 20, 1980]}},
            {"id": 4, "image_id": 5, "category_id": 2, "bbox": [5, 5, 5, 5], "area": 25, "ignore": 1},
            {"id": 9, "image_id": 70, "category_id": 8, "bbox": [1, 1, 2, 2], "area": 4},
        ],
        "categories": [{"id": 8, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 31, "name": "unseen"}],
    }  # fmt: skip


def save(folder: Path, content: Any, name: str = "a.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_columns(tmp_path: Path) -> None:
    table = AnnotationTable.from_coco(save(tmp_path, small()))
    assert table.image_ids.tolist() == [70, 5, 900]
    assert table.category_ids.tolist() == [2, 8, 31]
    assert table.category_names == ["dog", "cat", "unseen"]
    assert table.annotation_ids.tolist() == [3, 9, 11, 4]
    assert table.image_index.tolist() == [0, 0, 1, 1]
    assert table.label.tolist() == [0, 1, 1, 0]
    assert table.image_start.tolist() == [0, 2, 4, 4]
    assert table.area.tolist() == [200, 4, 7, 25], "a missing area is the box's"
    assert table.iscrowd.tolist() == [True, False, False, False]
    assert table.ignore.tolist() == [False, False, False, True]
    assert table.boxes_xyxy(table.rows_of(1)).tolist() == [[1.5, 2, 4.5, 6], [5, 5, 10, 10]]
    assert table.num_empty == 1
    assert not table.federated
    assert table.masks is not None
    assert table.masks.kind.tolist() == [2, 0, 1, 0]
    assert table.masks.decode([0], 40, 50).sum() == 20
    statistics = table.statistics(edges=(0, 1))
    assert statistics.image_counts.tolist() == [0, 2, 0], "crowds and ignored objects are not counted"
    assert statistics.instance_counts.tolist() == [0, 2, 0]
    assert statistics.group.tolist() == ["-", "f", "-"]
    assert statistics.image_frequency.tolist() == [0, 1, 0]


def test_gzip_text_ids_and_lvis_urls(tmp_path: Path) -> None:
    content = small()
    for image in content["images"]:
        image["coco_url"] = f"http://example.org/x/val2017/{image['id']}.jpg"
        del image["file_name"]
        image["id"] = f"i{image['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"i{annotation['image_id']}"
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    table = AnnotationTable.from_coco(path)
    assert table.image_ids.tolist() == ["i70", "i5", "i900"]
    assert table.file_names[0] == "val2017/70.jpg"


def test_negative_lists_are_kept_and_federated_needs_all_images(tmp_path: Path) -> None:
    content = small()
    for image in content["images"]:
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = [31, 8], []
    table = AnnotationTable.from_coco(save(tmp_path, content))
    assert table.federated
    assert table.negatives is not None
    assert table.negatives.of(2).tolist() == [2, 1]
    del content["images"][1]["neg_category_ids"]
    assert not AnnotationTable.from_coco(save(tmp_path, content)).federated


@pytest.mark.parametrize("federated", [False, True])
def test_written_back_it_reads_the_same(tmp_path: Path, federated: bool) -> None:
    content = small()
    if federated:
        for image in content["images"]:
            image["neg_category_ids"], image["not_exhaustive_category_ids"] = [31], [2]
    one = AnnotationTable.from_coco(save(tmp_path, content))
    other = AnnotationTable.from_coco(save(tmp_path, write_coco(one)))
    for name in ("image_ids", "category_ids", "annotation_ids", "image_index", "label", "boxes_xywh", "area",
                 "iscrowd", "ignore", "image_start", "heights", "widths"):  # fmt: skip
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name
    assert [one.masks.to_json(row) for row in range(4)] == [other.masks.to_json(row) for row in range(4)]
    assert one.federated == other.federated == federated


def broken(change: str) -> dict[str, Any]:
    content = copy.deepcopy(small())
    first = content["annotations"][0]
    match change:
        case "no images":
            del content["images"]
        case "unknown image":
            first["image_id"] = 6
        case "unknown class":
            first["category_id"] = 77
        case "image twice":
            content["images"][1]["id"] = 70
        case "class twice":
            content["categories"][1]["id"] = 8
        case "annotation twice":
            content["annotations"][1]["id"] = 11
        case "short box":
            first["bbox"] = [1, 2, 3]
        case "text box":
            first["bbox"] = "1 2 3 4"
        case "no box":
            del first["bbox"]
        case "nan":
            first["bbox"] = [1, 2, float("nan"), 4]
        case "negative":
            first["bbox"] = [1, 2, -3, 4]
        case "flat":
            first["bbox"] = [1, 2, 3, 0]
        case "two points":
            first["segmentation"] = [[1, 2, 3, 4]]
        case "odd polygon":
            first["segmentation"] = [[1, 2, 3, 4, 5, 6, 7]]
        case "text mask":
            first["segmentation"] = "mask"
        case "no counts":
            first["segmentation"] = {"size": [4, 4]}
        case "no name":
            del content["images"][0]["file_name"]
        case "bad height":
            content["images"][0]["height"] = "tall"
        case "no id":
            del content["images"][0]["id"]
        case "list":
            content["annotations"][0] = [1]
        case "bad negative":
            for image in content["images"]:
                image["neg_category_ids"], image["not_exhaustive_category_ids"] = [999], []
    return content  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no images", "no list 'images'"),
        ("unknown image", "annotation 11 has image_id 6"),
        ("unknown class", "annotation 11 has category_id 77"),
        ("image twice", "image id 70 occurs more than once"),
        ("class twice", "category id 8 occurs more than once"),
        ("annotation twice", "annotation id 11 occurs more than once"),
        ("short box", "annotation 11 has the bbox"),
        ("text box", "annotation 11 has the bbox"),
        ("no box", "annotation 11 has the bbox None"),
        ("nan", "annotation 11.*not finite"),
        ("negative", "annotation 11.*no area"),
        ("flat", "annotation 11.*no area"),
        ("two points", "annotation 11.*three points"),
        ("odd polygon", "annotation 11.*three points"),
        ("text mask", "annotation 11.*segmentation is"),
        ("no counts", "annotation 11.*counts"),
        ("no name", "image 70 has no file_name"),
        ("bad height", "image 70 has the height 'tall'"),
        ("no id", "image number 0 has no id"),
        ("list", "annotation number 0 is not an object"),
        ("bad negative", "image 70 has unknown category ids in neg_category_ids"),
    ],
)
def test_what_cannot_be_used_is_named(change: str, message: str, tmp_path: Path) -> None:
    path = save(tmp_path, broken(change))
    before = path.read_bytes()
    with pytest.raises(DataError, match=message) as error:
        AnnotationTable.from_coco(path)
    assert str(path) in str(error.value)
    assert path.read_bytes() == before


def test_files_that_are_no_json(tmp_path: Path) -> None:
    text = json.dumps(small())
    (tmp_path / "cut.json").write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"cut\.json is not valid JSON at byte \d+ of \d+"):
        AnnotationTable.from_coco(tmp_path / "cut.json")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(text.encode())[:50])
    with pytest.raises(DataError, match="cannot be read"):
        AnnotationTable.from_coco(tmp_path / "cut.json.gz")
    with pytest.raises(DataError, match="no annotation file"):
        AnnotationTable.from_coco(tmp_path / "none.json")
    with pytest.raises(DataError, match="JSON object"):
        AnnotationTable.from_coco(save(tmp_path, [1]))


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    train = AnnotationTable.from_coco(save(tmp_path, small()))
    content = small()
    content["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "never used"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = {8: 1, 2: 2}[annotation["category_id"]]
    for image in content["images"]:
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = [3, 1], [2]
    other = AnnotationTable.from_coco(save(tmp_path, content, "b.json"))
    label_map = match_categories(train, other)
    assert label_map.tolist() == [1, 0, -1]
    same = other.relabelled(label_map, train)
    assert same.label.tolist() == train.label.tolist()
    assert same.category_ids.tolist() == [2, 8, 31]
    assert same.negatives.of(0).tolist() == [1]
    assert same.not_exhaustive.of(1).tolist() == [0]
    with pytest.raises(DataError, match=r"b\.json has annotations of 1 classes that model does not have \('dog'\)"):
        match_categories(Classes([1], ["cat"], "model"), other)


def test_repeated_names_are_matched_by_name_and_id(tmp_path: Path) -> None:
    content = small()
    content["categories"][1]["name"] = "cat"
    table = AnnotationTable.from_coco(save(tmp_path, content))
    assert match_categories(table, table).tolist() == [0, 1, 2]


def test_selection_keeps_everything_together(tmp_path: Path) -> None:
    table = AnnotationTable.from_coco(save(tmp_path, small()))
    kept = table.without_empty()
    assert kept.image_ids.tolist() == [70, 5]
    assert kept.label.tolist() == table.label.tolist()
    last = table.select(np.array([1, 2]))
    assert last.image_ids.tolist() == [5, 900]
    assert last.annotation_ids.tolist() == [11, 4]
    assert last.image_index.tolist() == [0, 0]
    assert last.image_start.tolist() == [0, 2, 2]
    assert last.masks.to_json(0) == [[1.5, 2, 4.5, 2, 4.5, 6]]


def test_pictures_without_annotations(tmp_path: Path, smoke_set: GeneratedSet) -> None:
    table = AnnotationTable.from_image_list(smoke_set.images, categories=(["a"], [7]))
    assert table.num_images == 160
    assert table.file_names[0] == "train/000000.jpg"
    assert table.category_ids.tolist() == [7]
    one = AnnotationTable.from_image_list(smoke_set.images / "val" / "000003.jpg")
    assert one.file_names == ["000003.jpg"]
    assert AnnotationTable.from_image_list(["x.jpg", "y.jpg"]).num_images == 2
    with pytest.raises(DataError, match="no pictures"):
        AnnotationTable.from_image_list(tmp_path)


@given(
    counts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=8),
    edges=st.tuples(st.integers(0, 10), st.integers(10, 20)),
)
@settings(max_examples=60, deadline=None)
def test_groups_equal_the_loops(counts: list[tuple[int, int]], edges: tuple[int, int]) -> None:
    from longtail.data import ClassStatistics

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


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "images", "objects", "classes", "groups"),
    [
        ("coco_mini/train.json", 393, 3258, 80, (38, 41, 1)),
        ("muscima_tiles/train.json", 818, 26537, 98, (31, 49, 18)),
        ("hdbpmn/train.json", 541, 9773, 28, (5, 9, 14)),
    ],
)
def test_real_sets(name: str, images: int, objects: int, classes: int, groups: tuple, shared_data: Path) -> None:
    table = AnnotationTable.from_coco(shared_data / name)
    assert (table.num_images, len(table.label), table.num_classes) == (images, objects, classes)
    letters = table.statistics().group.tolist()
    assert tuple(letters.count(letter) for letter in "rcf") == groups
    assert table.federated


@pytest.mark.real_data
def test_lvis100(shared_data: Path) -> None:
    table = AnnotationTable.from_coco(shared_data / "lvis100" / "lvis_val_100.json.gz")
    assert (table.num_images, len(table.label), table.num_classes, table.num_empty) == (100, 977, 1230, 7)
    assert table.federated
