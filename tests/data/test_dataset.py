"""Pictures and targets: exact boxes and masks, one policy for EXIF, errors that name the file."""

import copy
import json
import random
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.data import AnnotationTable
from longtail.data.dataset import DetectionDataset, Draw, draw_seed, seeded
from longtail.data.formats import read_annotations
from longtail.data.join import join_tables
from longtail.data.scenes import GeneratedSet
from longtail.data.transforms import train_transform
from longtail.schema import DataError


def one_picture(folder: Path, picture: Image.Image, name: str = "a.png", size: tuple[int, int] | None = None, **extra):
    picture.save(folder / name, **extra)
    width, height = size or picture.size
    content = {
        "images": [{"id": 1, "file_name": name, "height": height, "width": width}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 4, 5], "segmentation": [[2, 3, 6, 3, 6, 8, 2, 8]]}
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return AnnotationTable.from_coco(folder / "a.json")


def test_items_of_a_generated_set(smoke_set: GeneratedSet) -> None:
    table = AnnotationTable.from_coco(smoke_set.train)
    dataset = DetectionDataset(table, smoke_set.images, with_masks=True)
    image, target = dataset[3]
    assert image.dtype == torch.uint8
    assert type(image) is torch.Tensor
    assert image.shape == (3, 64, 64)
    rows = table.rows_of(3)
    assert torch.equal(target["boxes"], torch.from_numpy(table.boxes_xyxy(rows)))
    assert target["labels"].tolist() == table.label[rows].tolist()
    assert target["masks"].sum(dim=(1, 2)).tolist() == table.area[rows].tolist()
    assert target["original_size"] == (64, 64)
    assert target["image_index"] == 3
    assert target["dropped"] == 0


def test_crowds_and_ignored_objects_are_no_targets(tmp_path: Path) -> None:
    table = one_picture(tmp_path, Image.new("RGB", (20, 30)))
    content = json.loads((tmp_path / "a.json").read_text())
    for number, flag in ((2, "iscrowd"), (3, "ignore")):
        extra = copy.deepcopy(content["annotations"][0]) | {"id": number, flag: 1}
        content["annotations"].append(extra)
    (tmp_path / "a.json").write_text(json.dumps(content))
    table = AnnotationTable.from_coco(tmp_path / "a.json")
    assert len(table.label) == 3
    assert len(DetectionDataset(table, tmp_path)[0][1]["labels"]) == 1


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 20))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    table = one_picture(tmp_path, picture, "a.png", size=(20, 30), exif=exif)
    image, target = DetectionDataset(table, tmp_path)[0]
    assert image.shape == (3, 30, 20)
    assert image[0, 0, 19] == 255
    assert target["original_size"] == (30, 20)
    stored = one_picture(tmp_path, picture, "a.png", exif=exif)
    with pytest.raises(DataError, match=r"30 x 20 .* image 1 .* says 20 x 30"):
        DetectionDataset(stored, tmp_path)[0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(mode: str, tmp_path: Path) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.full((20, 24), 65535, dtype=np.uint16))
    else:
        picture = Image.new("RGB", (24, 20), (255, 255, 255)).convert(mode)
    name = "a.tif" if mode == "CMYK" else "a.png"
    image, _ = DetectionDataset(one_picture(tmp_path, picture, name), tmp_path)[0]
    assert image.shape == (3, 20, 24)
    assert (image == 255).all()


def test_pictures_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    table = one_picture(tmp_path, Image.new("RGB", (20, 30)))
    with pytest.raises(DataError, match=r"600 .*|20 x 30 pixels, more than 100"):
        DetectionDataset(table, tmp_path, max_pixels=100)[0]
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:40])
    with pytest.raises(DataError, match=r"a\.png \(image 1\) cannot be read"):
        DetectionDataset(table, tmp_path)[0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"no picture .*a\.png \(image 1"):
        DetectionDataset(table, tmp_path)[0]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "link/secret.png"])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "secret.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    table = AnnotationTable.from_image_list([name])
    with pytest.raises(DataError, match="leads out of the image folder"):
        DetectionDataset(table, tmp_path / "in")[0]


def test_missing_masks_are_named_with_the_remedy(tmp_path: Path) -> None:
    table = one_picture(tmp_path, Image.new("RGB", (20, 30)))
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"].append({"id": 8, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]})
    (tmp_path / "a.json").write_text(json.dumps(content))
    table = AnnotationTable.from_coco(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"annotation 8 has no segmentation.*faster_rcnn"):
        DetectionDataset(table, tmp_path, with_masks=True)[0]
    assert len(DetectionDataset(table, tmp_path)[0][1]["labels"]) == 2
    del content["annotations"][0]["segmentation"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="has no masks"):
        DetectionDataset(AnnotationTable.from_coco(tmp_path / "a.json"), tmp_path, with_masks=True)


def test_objects_that_lose_their_area_are_dropped_and_counted(tmp_path: Path) -> None:
    table = one_picture(tmp_path, Image.new("RGB", (20, 30)))
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"].append({"id": 2, "image_id": 1, "category_id": 1, "bbox": [15, 3, 4, 5]})
    (tmp_path / "a.json").write_text(json.dumps(content))
    table = AnnotationTable.from_coco(tmp_path / "a.json")
    boxes = table.boxes_xywh.copy()
    boxes[1, 0] = 25  # readers refuse what lies outside; augmentation may move it there
    table = replace(table, boxes_xywh=boxes)
    _, target = DetectionDataset(table, tmp_path, transform=train_transform([20], 40, flip=0))[0]
    assert target["dropped"] == 1
    assert len(target["boxes"]) == len(target["labels"]) == 1


def test_draws_depend_on_seed_epoch_and_position_alone(smoke_set: GeneratedSet) -> None:
    seeds = {draw_seed(s, e, p) for s in range(3) for e in range(10) for p in range(50)}
    assert len(seeds) == 1500
    assert all(0 <= seed < 2**63 for seed in seeds)
    table = AnnotationTable.from_coco(smoke_set.train)
    dataset = DetectionDataset(table, smoke_set.images, transform=train_transform([40, 50, 60], 100, brightness=0.5))
    torch.manual_seed(0)
    random.seed(0)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    one = dataset[Draw(4, 77)]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()  # noqa: NPY002
    torch.manual_seed(99)
    other = dataset[Draw(4, 77)]
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1]["boxes"], other[1]["boxes"])
    with seeded(5):
        first = (torch.rand(()).item(), random.random(), np.random.rand())  # noqa: NPY002
    with seeded(5):
        assert first == (torch.rand(()).item(), random.random(), np.random.rand())  # noqa: NPY002


def test_damaged_files_give_one_error_that_names_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "hello"
    table = one_picture(tmp_path, Image.effect_noise((20, 30), 80).convert("RGB"), "a.jpg", exif=exif)
    whole = (tmp_path / "a.jpg").read_bytes()
    dataset = DetectionDataset(table, tmp_path, max_pixels=10_000)
    generator = np.random.default_rng(0)
    messages = []
    for _ in range(200):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[generator.integers(0, 200, 4)] = generator.integers(0, 256, 4)
        (tmp_path / "a.jpg").write_bytes(damaged[: generator.integers(100, len(whole) + 1)].tobytes())
        try:
            dataset[0]
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all("a.jpg" in message for message in messages)


def header_only(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def test_the_limit_on_pixels_is_ours_alone(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "huge.png").write_bytes(header_only(20_000, 20_000))
    table = AnnotationTable.from_image_list(["huge.png"])
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(DataError, match=r"huge\.png \(image 1\) has 20000 x 20000 pixels, more than 178000000"):
        DetectionDataset(table, tmp_path)[0]
    with pytest.raises(DataError, match=r"has 20000 x 20000 pixels, more than 399999999"):
        DetectionDataset(table, tmp_path, max_pixels=399_999_999)[0]
    assert before == Image.MAX_IMAGE_PIXELS
    assert not [w for w in recwarn if "bomb" in str(w.message)]


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image 1 cannot be named"):
        DetectionDataset(AnnotationTable.from_image_list(["a\0b.jpg"]), tmp_path)[0]


def test_masks_of_another_size_are_named_where_the_file_gives_no_size(tmp_path: Path) -> None:
    one_picture(tmp_path, Image.new("RGB", (20, 30)))
    content = json.loads((tmp_path / "a.json").read_text())
    del content["images"][0]["height"]
    content["annotations"].append(content["annotations"][0] | {"id": 2})
    content["annotations"][1]["segmentation"] = {"size": [31, 20], "counts": [0, 620]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = DetectionDataset(AnnotationTable.from_coco(tmp_path / "a.json"), tmp_path, with_masks=True)
    with pytest.raises(DataError, match=r"a\.json: annotation 2: the mask is 31 x 20.* 30 x 20; correct or remove"):
        dataset[0]


def test_pictures_without_objects_are_kept(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    table = AnnotationTable.from_coco(tmp_path / "a.json")
    for with_masks in (False, True):
        dataset = DetectionDataset(table, tmp_path, transform=train_transform([12], 30), with_masks=with_masks)
        image, target = dataset[0]
        assert image.shape == (3, 12, 16)
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].dtype == torch.int64
        assert ("masks" in target) == with_masks
    assert target["masks"].shape == (0, 12, 16)


def test_pictures_of_several_sources(tmp_path: Path) -> None:
    tables = []
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (6, 4), (10 * number + 5, 0, 0)).save(tmp_path / name / "same.png")
        content = {
            "images": [{"id": 1, "file_name": "same.png", "height": 4, "width": 6}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        tables.append(read_annotations(tmp_path / f"{name}.json", images=tmp_path / name))
    joined = join_tables(tables)
    assert [int(DetectionDataset(joined)[row][0][0, 0, 0]) for row in range(2)] == [5, 15]
    assert int(DetectionDataset(joined.select(np.array([1])))[0][0][0, 0, 0]) == 15
    assert int(DetectionDataset(tables[1])[0][0][0, 0, 0]) == 15
    assert int(DetectionDataset(tables[1], tmp_path / "a")[0][0][0, 0, 0]) == 5, "what is given comes first"
    with pytest.raises(DataError, match="does not say where its pictures are"):
        DetectionDataset(AnnotationTable.from_coco(tmp_path / "a.json"))
