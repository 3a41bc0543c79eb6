"""Annotation files: what is read, what is kept, what is refused."""

import gc
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from longtail.data import AnnotationTable
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


def set_first(key: str, value: Any, where: str = "annotations") -> Any:
    """A change to the first entry of a list of the file."""
    return lambda content: content[where][0].__setitem__(key, value)


def set_all(**values: Any) -> Any:
    return lambda content: [image.update(values) for image in content["images"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), r"key-missing"),
        (lambda c: c.update(annotations={}), r"key-missing"),
        (set_first("image_id", 6), r"11.*image-id-unknown"),
        (set_first("image_id", "5"), r"11.*image-id-unknown"),
        (set_first("image_id", [5]), r"11.*image-id-unknown"),
        (set_first("category_id", 77), r"11.*category-id-unknown"),
        (set_first("category_id", None), r"11.*category-id-unknown"),
        (lambda c: c["images"][1].update(id=70), r"70.*image-id-duplicate"),
        (lambda c: c["categories"][1].update(id=8), r"8.*category-id-duplicate"),
        (lambda c: c["annotations"][1].update(id=11), r"11.*annotation-id-duplicate"),
        (set_first("bbox", [1, 2, 3]), r"11: \[1, 2, 3\].*bbox-length"),
        (set_first("bbox", "1 2 3 4"), r"11.*bbox-type"),
        (set_first("bbox", ["1", "2", "3", "4"]), r"11.*bbox-type"),
        (set_first("bbox", [[1, 2], [3, 4]]), r"11.*bbox-length"),
        (set_first("bbox", [True, True, True, True]), r"11.*bbox-type"),
        (set_first("bbox", [1, None, 3, 4]), r"11.*bbox-type"),
        (lambda c: c["annotations"][0].pop("bbox"), r"11.*bbox-missing"),
        (set_first("bbox", [1, 2, float("nan"), 4]), r"json-nan.*bbox-nan"),
        (set_first("bbox", [1, 2, float("inf"), 4]), r"json-nan.*bbox-nan"),
        (set_first("bbox", [1, 2, 10**400, 4]), r"11.*bbox-type"),
        (set_first("bbox", [1, 2, -3, 4]), r"11.*bbox-negative"),
        (set_first("bbox", [1, 2, 3, 0]), r"11.*bbox-zero"),
        (set_first("area", "big"), r"11: .*area-invalid"),
        (set_first("area", float("nan")), r"json-nan.*area-invalid"),
        (set_first("area", -1), r"11: .*area-invalid"),
        (set_first("iscrowd", "0"), r"11: .*flag-invalid"),
        (set_first("ignore", [0]), r"11: .*flag-invalid"),
        (set_first("iscrowd", 2), r"11: .*flag-invalid"),
        (set_first("segmentation", [[1, 2, 3, 4, 5, float("nan")]]), "json-nan"),
        (lambda c: c["images"][0].pop("file_name"), r"70.*file-name-missing"),
        (set_first("file_name", 7, "images"), r"70.*file-name-missing"),
        (set_first("height", "tall", "images"), r"70.*image-size-invalid"),
        (set_first("width", -1, "images"), r"70.*image-size-invalid"),
        (set_first("width", 2**40, "images"), r"70.*image-size-invalid"),
        (lambda c: c["images"][0].pop("id"), r"image-id-invalid"),
        (set_first("id", True, "images"), r"image-id-invalid"),
        (set_first("id", 1.5), r"1.5.*annotation-id-invalid"),
        (lambda c: c["annotations"].__setitem__(0, [1]), r"annotations\[0\].*entry-invalid"),
        (
            set_all(neg_category_ids=[999], not_exhaustive_category_ids=[]),
            r"70: neg_category_ids.*image-lists-invalid",
        ),
        (
            set_all(neg_category_ids=[], not_exhaustive_category_ids=None),
            r"70: not_exhaustive_category_ids.*image-lists-invalid",
        ),
    ],
)
def test_what_cannot_be_used_is_named(change: Any, message: str, tmp_path: Path) -> None:
    content = small()
    change(content)
    path = save(tmp_path, content)
    before = path.read_bytes()
    with pytest.raises(DataError, match=message) as error:
        AnnotationTable.from_coco(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (set_first("segmentation", [[1, 2, 3, 4]]), "mask-points"),
        (set_first("segmentation", [[1, 2, 3, 4, 5, 6, 7]]), "mask-odd"),
        (set_first("segmentation", [[1, 2, 3, 4, 5, 6], []]), "mask-points"),
        (set_first("segmentation", [[1, 2, 3, 4, 5, 10**400]]), "mask-type"),
        (set_first("segmentation", [["1", "2", "3", "4", "5", "6"]]), "mask-type"),
        (set_first("segmentation", [1, 2, 3, 4, 5, 6]), "mask-type"),
        (set_first("segmentation", "mask"), "mask-type"),
        (set_first("segmentation", {"size": [30, 20]}), "mask-rle"),
        (set_first("segmentation", {"size": [30, 20], "counts": "ä"}), "mask-rle"),
        (set_first("segmentation", {"size": ["a", 2], "counts": [1]}), "mask-rle"),
        (set_first("segmentation", {"size": [2**40, 2], "counts": "01"}), "mask-rle"),
        (set_first("segmentation", {"size": [30, 20], "counts": [-5, 605]}), "mask-rle"),
        (set_first("segmentation", {"size": [30, 20], "counts": ["a"]}), "mask-rle"),
        (set_first("segmentation", {"size": [30, 20], "counts": [5, 10]}), "mask-rle"),
        (set_first("segmentation", {"size": [30, 20], "counts": "zzzz"}), "mask-rle"),
        (set_first("segmentation", {"size": [31, 20], "counts": [0, 620]}), "mask-size"),
    ],
)
def test_a_broken_mask_is_left_out_and_told(change: Any, code: str, tmp_path: Path) -> None:
    """Boxes can be trained on all the same; who needs masks finds the error in the table's findings."""
    content = small()
    change(content)
    table = AnnotationTable.from_coco(save(tmp_path, content))
    assert table.masks is not None
    row = table.annotation_ids.tolist().index(11)
    assert table.masks.kind[row] == 0
    assert table.masks.kind.any()
    found = {finding.code: finding for finding in table.findings}
    assert found[code].ids == [11]
    assert found[code].severity == "error"


def test_what_is_unusual_but_usable(tmp_path: Path) -> None:
    content = small()
    for annotation in content["annotations"]:
        del annotation["id"]
        annotation["iscrowd"] = None
    content["annotations"][0]["image_id"] = 5.0
    content["images"][2]["height"] = content["images"][2]["width"] = 0
    table = AnnotationTable.from_coco(save(tmp_path, content))
    assert table.annotation_ids.tolist() == [2, 4, 1, 3], "counted from 1 in the order of the file"
    assert table.image_ids.tolist() == [70, 5, 900]
    assert not table.iscrowd.any()
    empty = AnnotationTable.from_coco(save(tmp_path, {"images": [], "annotations": [], "categories": []}))
    assert (empty.num_images, empty.num_classes, len(empty.label), empty.federated) == (0, 0, 0, False)
    assert empty.boxes_xyxy().shape == (0, 4)
    assert empty.statistics().group.tolist() == []


def test_annotations_of_a_picture_keep_their_order(tmp_path: Path) -> None:
    content = small()
    box = {"bbox": [1, 1, 2, 2], "category_id": 2}
    content["annotations"] = [{"id": 500 - row, "image_id": (70, 5, 900)[row % 3], **box} for row in range(300)]
    table = AnnotationTable.from_coco(save(tmp_path, content))
    for image in range(3):
        assert table.annotation_ids[table.rows_of(image)].tolist() == [500 - row for row in range(image, 300, 3)]


def test_the_collector_runs_again_after_reading(tmp_path: Path) -> None:
    AnnotationTable.from_coco(save(tmp_path, small()))
    assert gc.isenabled()
    with pytest.raises(DataError):
        AnnotationTable.from_coco(save(tmp_path, []))
    assert gc.isenabled()
    gc.disable()
    try:
        AnnotationTable.from_coco(save(tmp_path, small()))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_pictures_are_looked_for_when_their_folder_is_given(tmp_path: Path) -> None:
    path = save(tmp_path, small())
    with pytest.raises(DataError, match="no image folder"):
        AnnotationTable.from_coco(path, images=tmp_path / "pictures")
    (tmp_path / "pictures" / "b").mkdir(parents=True)
    with pytest.raises(DataError, match=r"ä\.jpg \(image 70 of .*a\.json\), and 2 more of 3 are missing"):
        AnnotationTable.from_coco(path, images=tmp_path / "pictures")
    for name in ("b/ä.jpg", "a.jpg"):
        (tmp_path / "pictures" / name).touch()
    with pytest.raises(DataError, match=r"empty\.jpg \(image 900 of .*a\.json\); give the folder"):
        AnnotationTable.from_coco(path, images=tmp_path / "pictures")
    (tmp_path / "pictures" / "empty.jpg").touch()
    assert AnnotationTable.from_coco(path, images=tmp_path / "pictures").num_images == 3


def test_files_that_are_no_json(tmp_path: Path) -> None:
    text = json.dumps(small())
    (tmp_path / "cut.json").write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"cut\.json: .*not valid JSON: at byte \d+ of \d+.*json-syntax"):
        AnnotationTable.from_coco(tmp_path / "cut.json")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(text.encode())[:50])
    with pytest.raises(DataError, match="cannot be read"):
        AnnotationTable.from_coco(tmp_path / "cut.json.gz")
    broken = bytearray(gzip.compress(text.encode()))
    broken[30] ^= 0xFF
    (tmp_path / "broken.json.gz").write_bytes(broken)
    with pytest.raises(DataError, match="cannot be read"):
        AnnotationTable.from_coco(tmp_path / "broken.json.gz")
    (tmp_path / "umlauts.json").write_bytes(('{"images": ["' + "ä" * 50 + '",').encode())
    with pytest.raises(DataError, match="at byte 115 of 115"):
        AnnotationTable.from_coco(tmp_path / "umlauts.json")
    (tmp_path / "latin.json").write_bytes('{"images": "ä"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 text at byte 12 of 15.*file-unreadable"):
        AnnotationTable.from_coco(tmp_path / "latin.json")
    for name, raw in (("deep", b"[" * 200_000), ("long", b"[" + b"1" * 6000 + b"]")):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(DataError, match=r"key-missing|json-syntax"):
            AnnotationTable.from_coco(tmp_path / name)
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert AnnotationTable.from_coco(tmp_path / "bom.json").num_images == 3
    with pytest.raises(DataError, match="file-missing"):
        AnnotationTable.from_coco(tmp_path / "none.json")
    with pytest.raises(DataError, match="key-missing"):
        AnnotationTable.from_coco(save(tmp_path, [1]))


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
