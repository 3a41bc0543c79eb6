"""``convert`` and ``subset`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longtail.cli.main import main
from longtail.data import AnnotationTable
from longtail.data.scenes import GeneratedSet


def test_convert_there_and_back(smoke_set: GeneratedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "yolo"
    assert main(["convert", str(smoke_set.train), str(out), "--to", "yolo", "--no-masks"]) == 0
    captured = capsys.readouterr()
    assert "120 images" in captured.out and str(out / "images") in captured.out
    assert "masks are not wanted" in captured.err
    assert main(["convert", str(smoke_set.train), str(out), "--to", "yolo"]) == 2
    assert "--force" in capsys.readouterr().err
    back = tmp_path / "back.json"
    assert main(["convert", str(out), str(back), "--images", str(smoke_set.images), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(back) and told["images"] == str(smoke_set.images)
    assert AnnotationTable.from_coco(back).num_images == told["counts"]["images"] == 120
    assert main(["convert", str(out), str(tmp_path / "x.json")]) == 3
    assert "there is no picture" in capsys.readouterr().err
    assert main(["convert", str(out), str(tmp_path / "x.json"), "--masks", "--no-masks"]) == 2


def test_subset(smoke_set: GeneratedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "part.json"
    words = ["subset", str(smoke_set.train), str(out), "--profile", "exponential", "--imbalance", "20", "--most", "20"]
    assert main([*words, "--images", str(smoke_set.images)]) == 0
    captured = capsys.readouterr()
    assert "of 120 images" in captured.out and f"images  {smoke_set.images}" in captured.out
    part = AnnotationTable.from_coco(out, images=smoke_set.images)
    assert part.category_names == AnnotationTable.from_coco(smoke_set.train).category_names
    assert max(part.statistics().image_counts) <= 20
    first = out.read_bytes()
    assert main(words) == 2, "nothing is overwritten"
    assert main([*words, "--force", "--json"]) == 0
    assert out.read_bytes() == first
    told = json.loads(capsys.readouterr().out)
    assert told["images"] is None and told["report"]["annotations"] == len(part.label)
    assert len(told["report"]["classes"]) == 12


def test_subset_by_ids_and_coco_lt(smoke_set: GeneratedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = tmp_path / "ids.txt"
    wanted = AnnotationTable.from_coco(smoke_set.train).image_ids.tolist()[3:5]
    ids.write_text("\n".join(map(str, wanted)))
    out = tmp_path / "a.json"
    assert main(["subset", str(smoke_set.train), str(out), "--image-ids", str(ids)]) == 0
    assert AnnotationTable.from_coco(out).image_ids.tolist() == wanted
    assert main(["subset", str(smoke_set.train), str(tmp_path / "b.json"), "--profile", "coco-lt"]) == 0
    assert "groups.edges=[19,399] groups.count=instances" in capsys.readouterr().out
    given = smoke_set.train.read_bytes()
    for wrong in (
        ["--image-ids", str(ids), "--profile", "coco-lt"],
        [],
        ["--profile", "coco-lt", "--imbalance", "3"],
        ["--profile", "exponential"],
        ["--profile", "coco-lt", "--seed", "-1"],
    ):
        assert main(["subset", str(smoke_set.train), str(tmp_path / "c.json"), *wrong]) == 2
    assert main(["subset", str(smoke_set.train), str(smoke_set.train), "--profile", "coco-lt", "--force"]) == 2
    assert smoke_set.train.read_bytes() == given


def test_union_of_the_voc_years(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for year, stem in (("VOC2007", "000001"), ("VOC2012", "2008_000001")):
        root = tmp_path / "kit" / year
        for each in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / each).mkdir(parents=True)
        (root / "JPEGImages" / f"{stem}.jpg").touch()
        (root / "ImageSets" / "Main" / "trainval.txt").write_text(stem)
        (root / "Annotations" / f"{stem}.xml").write_text(
            "<annotation><size><width>9</width><height>9</height></size><object><name>cat</name><difficult>1"
            "</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></object></annotation>"
        )
    out = tmp_path / "kit" / "voc0712.json"
    assert main(["subset", str(tmp_path / "kit"), str(out), "--profile", "voc07+12"]) == 0
    captured = capsys.readouterr()
    assert "all count from 1 now" in captured.err and f"images  {tmp_path / 'kit'}" in captured.out
    table = AnnotationTable.from_coco(out, images=tmp_path / "kit")
    assert table.file_names == ["VOC2007/JPEGImages/000001.jpg", "VOC2012/JPEGImages/2008_000001.jpg"]
    assert table.ignore.tolist() == [True, True]
    inside = str(tmp_path / "kit" / "VOC2007" / "x.json")
    assert main(["subset", str(tmp_path / "kit"), inside, "--profile", "voc07+12"]) == 2


def test_check_reads_every_format(smoke_set: GeneratedSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for to, folder in (("voc", "JPEGImages"), ("yolo", "images")):
        out = tmp_path / to
        assert main(["convert", str(smoke_set.train), str(out), "--to", to]) == 0
        (out / folder).symlink_to(smoke_set.images)
        assert (
            main(["check", str(out), "--against", str(smoke_set.val), "--against-images", str(smoke_set.images)]) == 0
        )
        text = capsys.readouterr().out
        assert f"{out}: 120 images" in text and "headers of pictures" in text and "against" in text
    file = next((tmp_path / "yolo" / "labels").rglob("*.txt"))
    file.write_text("0 2 2 2 2\n")
    assert main(["check", str(tmp_path / "yolo")]) == 3
    assert f"{file.name}, line 1" in capsys.readouterr().err
