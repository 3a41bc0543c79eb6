"""Tables: label sets, selections, lists of pictures, writing back."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtail.data import AnnotationTable, Classes, match_categories
from longtail.data.coco import coco_content
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


@pytest.mark.parametrize("federated", [False, True])
def test_written_back_it_reads_the_same(tmp_path: Path, federated: bool) -> None:
    content = small()
    if federated:
        for image in content["images"]:
            image["neg_category_ids"], image["not_exhaustive_category_ids"] = [31], [2]
    one = AnnotationTable.from_coco(save(tmp_path, content))
    other = AnnotationTable.from_coco(save(tmp_path, coco_content(one)))
    for name in ("image_ids", "category_ids", "annotation_ids", "image_index", "label", "boxes_xywh", "area",
                 "iscrowd", "ignore", "image_start", "heights", "widths"):  # fmt: skip
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name
    assert [one.masks.to_json(row) for row in range(4)] == [other.masks.to_json(row) for row in range(4)]
    assert one.federated == other.federated == federated


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


def test_leaving_out_empty_images_copies_no_annotation(tmp_path: Path) -> None:
    table = AnnotationTable.from_coco(save(tmp_path, small()))
    kept = table.without_empty()
    assert kept.num_images == table.num_images - 1
    assert kept.masks is table.masks
    for name in ("annotation_ids", "label", "boxes_xywh", "area", "iscrowd", "ignore"):
        assert np.shares_memory(getattr(kept, name), getattr(table, name)), name
    assert kept.select(np.array([0])).masks is not table.masks


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


def test_repeated_names_need_the_id_and_others_only_the_name(tmp_path: Path) -> None:
    train = Classes([1, 2, 3], ["bat", "bat", "owl"], "training")
    content = small()
    content["categories"] = [{"id": 2, "name": "bat"}, {"id": 8, "name": "owl"}]
    other = AnnotationTable.from_coco(save(tmp_path, content))
    assert match_categories(train, other).tolist() == [1, 2]
    content["categories"][0]["name"] = content["categories"][1]["name"] = "owl"
    twice = AnnotationTable.from_coco(save(tmp_path, content))
    with pytest.raises(DataError, match=r"classes that training does not have .*name and id") as error:
        match_categories(train, twice)
    assert "a.json" in str(error.value), "two classes of one name never become one"


def test_writing_to_a_file(tmp_path: Path) -> None:
    path = save(tmp_path, small())
    table = AnnotationTable.from_coco(path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="another name"):
        table.write_coco(tmp_path / "." / "a.json")
    with pytest.raises(DataError, match="plain JSON"):
        table.write_coco(tmp_path / "b.json.gz")
    assert path.read_bytes() == before
    table.write_coco(tmp_path / "new" / "b.json")
    assert json.loads((tmp_path / "new" / "b.json").read_text()) == table.to_coco()
    first, second = table.to_coco()["images"][0], table.to_coco()["annotations"][1]
    assert first == {"id": 70, "file_name": "b/ä.jpg", "height": 40, "width": 50}
    assert second == {"id": 9, "image_id": 70, "category_id": 8, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0}
    assert AnnotationTable.from_coco(tmp_path / "new" / "b.json").to_coco() == table.to_coco()


def test_lists_of_pictures_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "album.jpg").mkdir()
    with pytest.raises(DataError, match="no pictures in the folder"):
        AnnotationTable.from_image_list(tmp_path)
    with pytest.raises(DataError, match="no pictures in the list"):
        AnnotationTable.from_image_list([])
    with pytest.raises(DataError, match="no picture and no folder"):
        AnnotationTable.from_image_list(tmp_path / "none")


def test_importing_the_tables_needs_no_torch() -> None:
    code = "import sys, longtail.data.coco, longtail.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
