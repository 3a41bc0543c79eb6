"""There and back again, and what each format does not hold is said with a number."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from longtail.data import AnnotationTable
from longtail.data.convert import convert, write_as
from longtail.data.formats import coco_file, read_annotations, recognise, require_own_pictures
from longtail.data.scenes import GeneratedSet
from longtail.schema import DataError, UsageError

WIDTH, HEIGHT = 60, 40


def annotation(row: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {"id": row, "image_id": 7, "category_id": 3, "bbox": box, **more}


def save(folder: Path, *annotations: dict[str, Any], **image: Any) -> Path:
    content = {
        "images": [
            {"id": 7, "file_name": "sub/a.png", "height": HEIGHT, "width": WIDTH, **image},
            {"id": 9, "file_name": "b.jpg", "height": HEIGHT, "width": WIDTH, **image},
        ],
        "annotations": list(annotations),
        "categories": [{"id": 3, "name": "a < b & 'c'"}, {"id": 5, "name": "d: [e]"}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "in.json"
    path.write_text(json.dumps(content))
    for name in ("pictures/sub/a.png", "pictures/b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)
    return path


def keyed(table: AnnotationTable) -> list[tuple[str, str, list[float]]]:
    names, labels = table.file_names, table.label.tolist()
    return [
        (names[image], table.category_names[labels[row]], table.boxes_xywh[row].tolist())
        for row, image in enumerate(table.image_index.tolist())
    ]


boxes = st.lists(
    st.tuples(st.floats(0, WIDTH - 2), st.floats(0, HEIGHT - 2), st.floats(1, WIDTH), st.floats(1, HEIGHT)).map(
        lambda b: [b[0], b[1], min(b[2], WIDTH - b[0]), min(b[3], HEIGHT - b[1])]
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=12, deadline=None)
@given(boxes=boxes)
def test_yolo_and_back(boxes: list[list[float]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("there")
    path = save(folder, *[annotation(row, box) for row, box in enumerate(boxes)])
    done = convert(path, folder / "out", to="yolo")
    assert done.notes == []
    (folder / "out" / "images").symlink_to(folder / "pictures")
    back = read_annotations(folder / "out")
    before = AnnotationTable.from_coco(path)
    assert back.category_names == before.category_names
    assert back.file_names == before.file_names
    np.testing.assert_allclose(back.boxes_xywh, before.boxes_xywh, atol=1e-6)
    assert [each[:2] for each in keyed(back)] == [each[:2] for each in keyed(before)]
    require_own_pictures(back)


@settings(max_examples=12, deadline=None)
@given(boxes=boxes)
def test_voc_and_back(boxes: list[list[float]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("there")
    path = save(folder, *[annotation(row, box) for row, box in enumerate(boxes)])
    convert(path, folder / "out", to="voc", split="val")
    (folder / "out" / "JPEGImages").symlink_to(folder / "pictures")
    back, before = read_annotations(f"{folder / 'out'}:val"), AnnotationTable.from_coco(path)
    assert back.file_names == before.file_names
    assert [each[:2] for each in keyed(back)] == [each[:2] for each in keyed(before)]
    corners, wanted = back.boxes_xyxy(), before.boxes_xyxy()
    assert np.abs(corners - wanted).max() <= 1
    thick = (before.boxes_xywh[:, 2:] >= 1).all(axis=1)
    assert np.abs(corners - wanted)[thick].max(initial=0) <= 0.5 + 1e-4
    assert (back.boxes_xywh[:, 2:] >= 1).all()


def test_generated_set_to_yolo_keeps_polygons(smoke_set: GeneratedSet, tmp_path: Path) -> None:
    before = AnnotationTable.from_coco(smoke_set.train)
    done = convert(smoke_set.train, tmp_path / "out", to="yolo")
    assert done.counts["annotations"] == len(before.label)
    back = read_annotations(tmp_path / "out", images=smoke_set.images)
    assert back.file_names == before.file_names
    assert (back.label == before.label).all()
    assert before.masks is not None
    single = (before.masks.kind == 1) & (np.diff(before.masks.polygon_start) == 1)
    lost = sum(int(note.split()[0]) for note in done.notes if "masks" in note)
    assert lost == int((~single & (before.masks.kind > 0)).sum())
    for row in np.flatnonzero(single)[:20].tolist():
        assert back.masks is not None
        np.testing.assert_allclose(back.masks.polygons(row)[0], before.masks.polygons(row)[0], atol=1e-6)


def test_what_yolo_does_not_hold(tmp_path: Path) -> None:
    square = [[0, 0, 9, 0, 9, 9, 0, 9]]
    path = save(
        tmp_path,
        annotation(1, [1, 1, 5, 5], iscrowd=1),
        annotation(2, [1, 1, 5, 5], ignore=1),
        annotation(3, [1, 1, 5, 5], segmentation=square * 2),
        annotation(4, [-2, 1, 5, 5]),
        annotation(5, [0, 0, 9, 12], segmentation=square),
        neg_category_ids=[5],
        not_exhaustive_category_ids=[],
    )
    done = convert(path, tmp_path / "out", to="yolo")
    assert done.notes == [
        "1 crowd regions are left out",
        "1 ignored (difficult) objects are left out",
        "1 masks have several polygons or are run lengths; their boxes are kept",
        "1 boxes give way to the hull of their polygon, which differs by up to 3.0 pixels",
        "1 objects reach out of their picture and end at its edge",
        "the lists of absent and of incomplete classes of 2 images are left out",
    ]
    back = read_annotations(tmp_path / "out", images=tmp_path / "pictures")
    np.testing.assert_allclose(back.boxes_xywh, [[1, 1, 5, 5], [0, 1, 3, 5], [0, 0, 9, 9]], atol=1e-6)
    assert (tmp_path / "out" / "labels" / "b.txt").read_text() == ""
    boxes_alone = convert(path, tmp_path / "boxes", to="yolo", masks=False)
    assert "2 masks are not wanted; their boxes are kept" in boxes_alone.notes
    assert read_annotations(tmp_path / "boxes", images=tmp_path / "pictures").masks is None


def test_what_voc_does_not_hold(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        annotation(1, [1, 1, 5, 5], iscrowd=1, segmentation=[[1, 1, 6, 1, 6, 6]]),
        annotation(2, [1, 1.4, 5, 5], ignore=1),
        annotation(3, [-5, 1, 9, 5]),
        neg_category_ids=[5],
        not_exhaustive_category_ids=[],
    )
    done = convert(path, tmp_path / "out", to="voc")
    assert done.notes == [
        "2 boxes are rounded to whole pixels",
        "1 of them reach out of their picture, or are thinner than a pixel, and are moved to it",
        "1 masks are left out; their boxes are kept",
        "1 crowd regions become difficult objects",
        "the lists of absent and of incomplete classes of 2 images are left out",
        "1 classes without objects are left out, for there is no list of classes",
    ]
    back = read_annotations(tmp_path / "out")
    assert back.ignore.tolist() == [True, True, False]
    assert back.boxes_xywh.tolist() == [[1, 1, 5, 5], [1, 1, 5, 5], [0, 1, 4, 5]]


def test_coco_out(tmp_path: Path) -> None:
    path = save(tmp_path, annotation(1, [1, 1, 5, 5], segmentation=[[1, 1, 6, 1, 6, 6]]))
    convert(path, tmp_path / "voc", to="voc")
    done = convert(tmp_path / "voc", tmp_path / "out.json")
    assert AnnotationTable.from_coco(done.path).file_names == ["b.jpg", "sub/a.png"]
    assert done.images == tmp_path / "voc" / "JPEGImages"
    copy = convert(path, tmp_path / "copy.json")
    assert json.loads(copy.path.read_text()) == AnnotationTable.from_coco(path).to_coco()
    bare = convert(path, tmp_path / "bare.json", masks=False)
    assert bare.notes == ["1 masks are left out, as asked for"]
    assert AnnotationTable.from_coco(bare.path).masks is None


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = save(tmp_path, annotation(1, [1, 1, 5, 5]))
    given = path.read_bytes()
    for out, to in ((path, "coco"), (tmp_path, "yolo"), (path / "x", "yolo")):
        with pytest.raises(UsageError, match="never changed"):
            convert(path, out, to=to, force=True)  # type: ignore[arg-type]
    out = tmp_path / "out"
    convert(path, out, to="yolo")
    with pytest.raises(UsageError, match="exists"):
        convert(path, out, to="yolo")
    (out / "labels" / "old.txt").write_text("")
    convert(path, out, to="yolo", force=True)
    assert not (out / "labels" / "old.txt").exists()
    (out / "mine.doc").write_text("")
    with pytest.raises(UsageError, match=r"holds more than an earlier result \(mine\.doc\)"):
        convert(path, out, to="yolo", force=True)
    with pytest.raises(UsageError, match="is a folder"):
        convert(path, out, force=True)
    (tmp_path / "out.json").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        convert(path, tmp_path / "out.json")
    convert(path, tmp_path / "out.json", force=True)
    with pytest.raises(UsageError, match="plain JSON"):
        convert(path, tmp_path / "out.json.gz")
    assert path.read_bytes() == given
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")], "no drafts stay behind"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    path = save(tmp_path, annotation(1, [1, 1, 5, 5]), height=0)
    for to in ("voc", "yolo"):
        with pytest.raises(DataError, match=r"2 problems.* size of the picture 'sub/a\.png' is not known"):
            convert(path, tmp_path / to, to=to)  # type: ignore[arg-type]
        assert not (tmp_path / to).exists()
        convert(path, tmp_path / to, to=to, images=tmp_path / "pictures")  # type: ignore[arg-type]
    path = save(tmp_path, annotation(1, [1, 1, 5, 5]), file_name="a.jpg")
    content = json.loads(path.read_text())
    content["images"][1]["file_name"] = "a.png"
    path.write_text(json.dumps(content))
    for to in ("voc", "yolo"):
        with pytest.raises(DataError, match="would share a"):
            convert(path, tmp_path / "out", to=to)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="bbox-outside"):
        convert(save(tmp_path, annotation(1, [100, 1, 5, 5])), tmp_path / "out", to="yolo")
    with pytest.raises(DataError, match="file-name-escapes"):
        convert(save(tmp_path, file_name="../a.jpg"), tmp_path / "out", to="voc")


def test_formats_are_recognised(tmp_path: Path) -> None:
    path = save(tmp_path / "coco", annotation(1, [1, 1, 5, 5]))
    (tmp_path / "plain").write_text(" \n" + path.read_text())
    (tmp_path / "zipped.gz").write_bytes(gzip.compress(path.read_bytes()))
    for each in (path, tmp_path / "plain", tmp_path / "zipped.gz"):
        assert recognise(each) == "coco"
        assert len(read_annotations(each).label) == 1
    convert(path, tmp_path / "a" / "VOC2007", to="voc")
    convert(path, tmp_path / "yolo", to="yolo")
    assert recognise(tmp_path / "a" / "VOC2007") == "voc"
    assert recognise(tmp_path / "yolo") == recognise(tmp_path / "yolo" / "data.yaml") == "yolo"
    for wrong, message in (
        (tmp_path / "none", "there is no annotation file"),
        (tmp_path / "a", "holds the VOC folders VOC2007"),
        (tmp_path / "coco", r"it holds .*in\.json"),
        (tmp_path / "a" / "VOC2007" / "Annotations" / "b.xml", "above its Annotations"),
        (tmp_path / "yolo" / "labels" / "sub" / "a.txt", "give a COCO or LVIS file"),
    ):
        with pytest.raises(DataError, match=message):
            recognise(wrong)


def test_splits_named_and_preferred(tmp_path: Path) -> None:
    path = save(tmp_path, annotation(1, [1, 1, 5, 5]))
    convert(path, tmp_path / "voc", to="voc", split="val")
    (tmp_path / "voc" / "ImageSets" / "Main" / "train.txt").write_text("b\n")
    assert read_annotations(tmp_path / "voc").num_images == 2
    assert read_annotations(tmp_path / "voc", prefer="train").num_images == 1
    assert read_annotations(f"{tmp_path / 'voc'}:val", prefer="train").num_images == 2
    with pytest.raises(UsageError, match="has the splits train, val; name one of them"):
        read_annotations(tmp_path / "voc", prefer="other")
    (tmp_path / "voc" / "ImageSets").rename(tmp_path / "lists")
    assert read_annotations(tmp_path / "voc", prefer="train").num_images == 2
    with pytest.raises(UsageError, match="without splits"):
        read_annotations(path, split="train")
    assert read_annotations(path).sources[0].images is None
    assert read_annotations(path, images=tmp_path / "pictures").sources[0].images == str(tmp_path / "pictures")
    with pytest.raises(DataError, match="there is no picture"):
        read_annotations(path, images=tmp_path / "voc")
    with pytest.raises(DataError, match="does not say where its pictures are"):
        require_own_pictures(read_annotations(path))
    with pytest.raises(DataError, match="no image folder"):
        require_own_pictures(read_annotations(tmp_path / "voc"))


def test_any_format_as_a_coco_file(tmp_path: Path) -> None:
    path = save(tmp_path, annotation(1, [1, 1, 5, 5]))
    with coco_file(path, images=tmp_path) as (file, images):
        assert (file, images) == (path, tmp_path)
    write_as(read_annotations(path), tmp_path / "voc", to="voc")
    with coco_file(tmp_path / "voc") as (file, images):
        assert AnnotationTable.from_coco(file).num_images == 2
        assert images == tmp_path / "voc" / "JPEGImages"
    assert not file.exists()
