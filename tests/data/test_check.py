"""The checker on a corpus of broken files, each named with its code, and on a clean one."""

from __future__ import annotations

import copy
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as codec

from longtail.data import AnnotationTable
from longtail.data.check import check
from longtail.data.check_masks import run_lengths
from longtail.data.check_pictures import MAX_PIXELS
from longtail.data.mend import fix
from longtail.data.rules import RULE_OF, RULES, markdown_table
from longtail.data.scenes import GeneratedSet
from longtail.schema import DataError, UsageError

Content = dict[str, Any]
INF, NAN = float("inf"), float("nan")


def encoded(height: int = 40, width: int = 50) -> Content:
    """Run lengths of the box 2, 3, 10, 12."""
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[3:15, 2:12] = 1
    code = codec.encode(mask)
    return {"size": [height, width], "counts": code["counts"].decode()}


def clean() -> Content:
    """Two pictures, two classes, polygons and run lengths."""
    square = [[20, 10, 30, 10, 30, 25, 20, 25]]
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": 40, "width": 50},
            {"id": 5, "file_name": "sub/b ä.png", "height": 40, "width": 50},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [2, 3, 10, 12], "segmentation": encoded()},
            {"id": 2, "image_id": 7, "category_id": 9, "bbox": [20, 10, 10, 15], "segmentation": square},
            {"id": 3, "image_id": 5, "category_id": 3, "bbox": [20.5, 10, 9.5, 15], "segmentation": square},
            {"id": 4, "image_id": 5, "category_id": 9, "bbox": [2, 3, 10, 12], "segmentation": encoded(), "area": 120},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
    }


def save(folder: Path, content: Any, name: str = "a.json") -> Path:
    """The file, and its two pictures beside it."""
    (folder / "sub").mkdir(exist_ok=True)
    for row, picture in enumerate(("a.jpg", "sub/b ä.png")):
        noise = np.random.default_rng(row).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / picture)
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def first(**changes: Any) -> Callable[[Content], None]:
    """Changes the first annotation; ... removes a key."""

    def change(content: Content) -> None:
        entry = content["annotations"][0]
        entry.update(changes)
        for key in [key for key, value in changes.items() if value is ...]:
            del entry[key]

    return change


def put(kind: str, row: int, **changes: Any) -> Callable[[Content], None]:
    return lambda content: content[kind][row].update(changes)


def append(kind: str, entry: Any) -> Callable[[Content], None]:
    return lambda content: content[kind].append(entry)


def remove(kind: str, key: str) -> Callable[[Content], None]:
    return lambda content: content[kind][0].pop(key)


def lone_crowd(content: Content) -> None:
    for row in (0, 2):
        content["annotations"][row]["iscrowd"] = 1


def image(name: Any, id: Any = 70) -> Callable[[Content], None]:
    return append("images", {"id": id, "file_name": name, "height": 40, "width": 50})


def again(**changes: Any) -> Callable[[Content], None]:
    return lambda content: content["annotations"].append({**content["annotations"][1], "id": 50, **changes})


# (code, change of the clean file); every one is found without looking at pictures
CORPUS: list[tuple[str, Callable[[Content], Any]]] = [
    ("key-missing", lambda content: content.pop("annotations")),
    ("key-missing", lambda content: content.update(categories={})),
    ("entry-invalid", append("annotations", 5)),
    ("entry-invalid", append("images", None)),
    ("images-none", lambda content: content.update(images=[])),
    ("annotations-none", lambda content: content.update(annotations=[])),
    ("categories-none", lambda content: content.update(categories=[])),
    ("json-nan", first(area=NAN)),
    ("image-id-invalid", image("c.jpg", id=None)),
    ("image-id-invalid", image("c.jpg", id=[1])),
    ("image-id-invalid", image("c.jpg", id=10**30)),
    ("image-id-duplicate", image("c.jpg", id=7)),
    ("image-size-invalid", put("images", 0, height="40")),
    ("image-size-invalid", put("images", 0, width=-1)),
    ("image-size-missing", remove("images", "height")),
    ("image-lists-invalid", put("images", 0, neg_category_ids=[77])),
    ("file-name-missing", image(None)),
    ("file-name-missing", image("")),
    ("file-name-escapes", image("../a.jpg")),
    ("file-name-escapes", image("/etc/a.jpg")),
    ("file-name-escapes", image("x/../../a.jpg")),
    ("file-name-duplicate", image("a.jpg")),
    ("file-name-case", image("A.JPG")),
    ("file-name-unicode", image("sub/b a\u0308.png")),
    ("category-id-invalid", append("categories", {"id": 1.5, "name": "x"})),
    ("category-id-duplicate", append("categories", {"id": 3, "name": "x"})),
    ("category-name-duplicate", append("categories", {"id": 4, "name": "cat"})),
    ("category-name-missing", append("categories", {"id": 4})),
    ("category-unused", append("categories", {"id": 4, "name": "x"})),
    ("category-crowd-only", lone_crowd),
    ("annotation-id-invalid", first(id=[])),
    ("annotation-id-duplicate", first(id=2)),
    ("image-id-unknown", first(image_id=77)),
    ("image-id-unknown", first(image_id=...)),
    ("image-id-unknown", first(image_id=[7])),
    ("category-id-unknown", first(category_id=77)),
    ("category-id-unknown", first(category_id="3")),
    ("bbox-missing", first(bbox=...)),
    ("bbox-type", first(bbox="1 2 3 4")),
    ("bbox-type", first(bbox=[1, 2, "3", 4])),
    ("bbox-type", first(bbox=[1, 2, 10**400, 4])),
    ("bbox-type", first(bbox=[1, 2, None, 4])),
    ("bbox-length", first(bbox=[])),
    ("bbox-length", first(bbox=[1, 2, 3])),
    ("bbox-nan", first(bbox=[1, 2, NAN, 4])),
    ("bbox-nan", first(bbox=[1, 2, INF, 4])),
    ("bbox-negative", first(bbox=[10, 10, -5, 5])),
    ("bbox-zero", first(bbox=[10, 10, 0, 5])),
    ("bbox-outside", first(bbox=[50, 10, 5, 5])),
    ("bbox-outside", first(bbox=[-9, 10, 9, 5])),
    ("bbox-partly-outside", first(bbox=[-2, 3, 14, 12])),
    ("bbox-partly-outside", first(bbox=[40, 10, 12, 5])),
    ("bbox-duplicate", again()),
    ("area-invalid", first(area="7")),
    ("area-invalid", first(area=-7)),
    ("flag-invalid", first(iscrowd="0")),
    ("flag-invalid", first(ignore=2)),
    ("mask-missing", first(segmentation=[])),
    ("mask-missing", first(segmentation=...)),
    ("mask-type", first(segmentation="x")),
    ("mask-type", first(segmentation=[5, 5])),
    ("mask-type", first(segmentation=[[1, 2, "3", 4, 5, 6]])),
    ("mask-type", first(segmentation=[[1, 2, NAN, 4, 5, 6]])),
    ("mask-points", first(segmentation=[[1, 2, 3, 4]])),
    ("mask-points", first(segmentation=[[]])),
    ("mask-odd", first(segmentation=[[2, 3, 12, 3, 12, 15, 2]])),
    ("mask-rle", first(segmentation={"size": [40, 50], "counts": "\x7f~~"})),
    ("mask-rle", first(segmentation={"size": [40, 50], "counts": encoded()["counts"][:-2]})),
    ("mask-rle", first(segmentation={"size": [40, 50], "counts": [5, 10]})),
    ("mask-rle", first(segmentation={"size": [40, 50], "counts": [-5, 2005]})),
    ("mask-rle", first(segmentation={"counts": "ä"})),
    ("mask-empty", first(segmentation={"size": [40, 50], "counts": [2000]})),
    ("mask-size", first(segmentation=encoded(50, 40))),
    ("mask-box", first(bbox=[30, 3, 10, 12])),
    ("mask-box", first(segmentation=[[300, 300, 310, 300, 310, 310]])),
]  # fmt: skip


def codes(path: Path, **options: Any) -> set[str]:
    return {finding.code for finding in check(path, **options).findings}


def test_the_clean_file_has_no_findings(tmp_path: Path) -> None:
    report = check(save(tmp_path, clean()), images=tmp_path, deep=True)
    assert report.findings == [], report.text()
    assert report.ok(strict=True)
    assert report.counts == {"images": 2, "annotations": 4, "categories": 2}


def test_a_generated_set_has_no_errors(smoke_set: GeneratedSet) -> None:
    assert check(smoke_set.train, images=smoke_set.images, deep=True, against=smoke_set.val).ok()


@pytest.mark.parametrize(("code", "change"), CORPUS, ids=[f"{i}-{code}" for i, (code, _) in enumerate(CORPUS)])
def test_every_defect_is_found(tmp_path: Path, code: str, change: Callable[[Content], Any]) -> None:
    content = clean()
    change(content)
    path = save(tmp_path, content)
    before = path.read_bytes()
    report = check(path)
    finding = next((finding for finding in report.findings if finding.code == code), None)
    assert finding is not None, report.text()
    assert finding.count >= 1
    assert finding.severity == RULE_OF[code].severity
    assert report.ok() == all(found.severity == "warning" for found in report.findings)
    json.dumps(report.to_dict(), allow_nan=False)
    report.text().encode("utf-8")
    check(path, images=tmp_path, deep=True, masks=False)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("code", "change"),
    [case for case in CORPUS if RULE_OF[case[0]].mend],
    ids=[f"{i}-{code}" for i, (code, _) in enumerate(CORPUS) if RULE_OF[code].mend],
)
def test_what_is_mended_is_clean(tmp_path: Path, code: str, change: Callable[[Content], Any]) -> None:
    content = clean()
    change(content)
    path, out = save(tmp_path, content), tmp_path / "out.json"
    before = path.read_bytes()
    report = fix(path, out)
    assert path.read_bytes() == before
    assert code in {code for _, code in report.done}
    assert check(out, images=tmp_path).ok(), check(out).text()
    assert not {found for found in codes(out) if RULE_OF[found].mend}
    assert report.left == [found.code for found in check(out).findings]
    table = AnnotationTable.from_coco(out)
    assert len(table.label) == report.kept
    assert report.kept + report.dropped == len(content["annotations"])


def test_what_fix_does_to_boxes(tmp_path: Path) -> None:
    content = clean()
    content["annotations"][0]["bbox"] = [30, 3, 10, 12]
    content["annotations"][3].update(bbox=[-2, 3, 14, 12])
    content["annotations"][1]["segmentation"].append([1, 2])
    fix(save(tmp_path, content), tmp_path / "out.json.gz")
    mended = json.loads(gzip.decompress((tmp_path / "out.json.gz").read_bytes()))["annotations"]
    assert mended[0]["bbox"] == [2, 3, 10, 12], "the mask's"
    assert mended[3]["bbox"] == [0, 3, 12, 12], "clipped"
    assert len(mended[1]["segmentation"]) == 1, "the sound polygon stays"


def test_fix_writes_over_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, clean())
    for out in (path, tmp_path / "a.jpg"):
        with pytest.raises(UsageError, match="exists"):
            fix(path, out)
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be mended"):
        fix(path, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_list_that_the_file_has_twice(tmp_path: Path) -> None:
    path = save(tmp_path, clean())
    text = path.read_text()
    path.write_text(text[:-1] + ', "categories": []}')
    assert codes(path) == {"key-repeated"}
    with pytest.raises(DataError, match="key-repeated"):
        AnnotationTable.from_coco(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert codes(tmp_path / "none.json") == {"file-missing"}
    text = json.dumps({**clean(), "info": "ä"}, ensure_ascii=False).encode()
    cases = {
        b"PK\x03\x04 and more": "file-archive",
        b"\x1f\x8b broken": "file-unreadable",
        gzip.compress(text)[:-20]: "file-unreadable",
        b"\xff\xfe\xfa": "file-unreadable",
        text[:200]: "json-syntax",
        b"": "json-syntax",
        b"[" * 200_000: "json-syntax",
        b"[]": "key-missing",
    }
    for number, (raw, code) in enumerate(cases.items()):
        path = tmp_path / f"{number}.json"
        path.write_bytes(raw)
        assert code in codes(path), code
        assert not check(path).ok()
    path.write_bytes('{"ä": 1, x'.encode())
    assert "at byte 10 of 11" in check(path).findings[0].message


def test_pictures(tmp_path: Path) -> None:
    content = clean()
    names = ("none.jpg", "sub/B a\u0308.png", "text.jpg", "turned.jpg", "\0", "\ud800", "half.jpg")
    content["images"] += [
        {"id": row, "file_name": name, "height": 40, "width": 50} for row, name in enumerate(names, 10)
    ]
    path = save(tmp_path, content)
    (tmp_path / "text.jpg").write_text("no picture")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 40)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "half.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    found = {finding.code: finding for finding in check(path, images=tmp_path).findings}
    assert set(found["picture-missing"].ids) >= {10}
    assert found["picture-spelling"].ids == [11]
    assert found["picture-broken"].ids == [12]
    assert found["picture-size"].ids == [13]
    assert "50 x 40" in found["picture-size"].message
    assert "40 x 50" in found["picture-size"].message
    deep = {finding.code: finding for finding in check(path, images=tmp_path, deep=True).findings}
    assert deep["picture-broken"].ids == [12, 16], "only decoding finds what is cut off"
    huge = {finding.code: finding for finding in check(path, images=tmp_path, max_pixels=1999).findings}
    assert huge["picture-huge"].count == 4
    nowhere = {finding.code: finding for finding in check(path, images=tmp_path / "nowhere").findings}
    assert nowhere["picture-missing"].count == len(content["images"])


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    path = save(root, clean())
    (root / "a.jpg").rename(tmp_path / "a.jpg")
    (root / "a.jpg").symlink_to(tmp_path / "a.jpg")
    assert codes(path, images=root) == {"file-name-escapes"}


def test_against_another_file(tmp_path: Path) -> None:
    path = save(tmp_path, clean())
    other = clean()
    other["images"][0]["file_name"] = "copy.jpg"
    other["images"][1]["file_name"] = "new.png"
    other["categories"].append({"id": 1, "name": "owl"})
    other["annotations"][0]["category_id"] = 1
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
    val = tmp_path / "val.json"
    val.write_text(json.dumps(other))
    found = {finding.code: finding for finding in check(path, images=tmp_path, against=val).findings}
    assert found["split-leakage"].ids == [7]
    assert found["category-only-against"].ids == [1]
    assert set(found) == {"split-leakage", "category-only-against"}
    assert "split-leakage" in codes(path, against=path)
    assert "split-leakage" not in codes(path, images=tmp_path, against=val, against_images=tmp_path / "sub")
    assert codes(path, against=tmp_path / "none.json") == {"against-unreadable"}


def test_files_of_boxes_miss_no_masks(tmp_path: Path) -> None:
    content = clean()
    for entry in content["annotations"]:
        entry["segmentation"] = []
    assert codes(save(tmp_path, content)) == set()
    content = clean()
    content["annotations"][0]["segmentation"] = "x"
    assert codes(save(tmp_path, content), masks=False) == set()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_run_lengths(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 40))
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((height, width)) < data.draw(st.floats(0, 1))
    code = codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    lengths = run_lengths(code["counts"].decode())
    assert lengths is not None
    again = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(width, height).T
    assert (again == mask).all()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["images", "annotations", "categories"]),
    st.sampled_from(["id", "file_name", "height", "bbox", "segmentation", "image_id", "category_id", "name", "area"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.sampled_from(["size", "counts"]), inner),
        max_leaves=9,
    ),
)
def test_nothing_makes_it_fail(tmp_path_factory: pytest.TempPathFactory, kind: str, key: str, value: Any) -> None:
    content = copy.deepcopy(clean())
    content[kind][0][key] = value
    path = tmp_path_factory.mktemp("any") / "a.json"
    path.write_text(json.dumps(content))
    report = check(path, images=path.parent, against=path)
    json.dumps(report.to_dict(), allow_nan=False)
    report.text().encode()


def test_many_annotations_take_little_time(tmp_path: Path) -> None:
    import time

    content = clean()
    content["annotations"] = [
        {**content["annotations"][row % 2], "id": row, "bbox": [20 + row / 1e6, 10, 10, 15], "segmentation": [[
            20, 10, 30, 10, 30.5, 25, 20, 25]]} for row in range(50_000)]  # fmt: skip
    path = save(tmp_path, content)
    start = time.perf_counter()
    report = check(path)
    assert report.ok(strict=True), report.text()
    assert time.perf_counter() - start < 10


def test_the_page_shows_the_rules() -> None:
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    assert markdown_table() in page
    assert len(RULE_OF) == len(RULES)


def test_the_loader_has_the_same_limit_and_torch_is_not_needed() -> None:
    from longtail.data import dataset

    assert dataset.MAX_PIXELS == MAX_PIXELS
    code = "import sys, longtail; longtail.check; import longtail.data.mend; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
