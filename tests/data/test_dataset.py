"""Pictures and targets: exact boxes and masks, one policy for EXIF, errors that name the file."""

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.data import AnnotationTable
from longtail.data.dataset import DetectionDataset, Draw, draw_seed, seeded
from longtail.data.loader import PositionBatches, evaluation_loader, make_loader
from longtail.data.scenes import GeneratedSet
from longtail.data.transforms import train_transform
from longtail.sampling import RepeatFactorSampler, UniformSampler
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


def test_transforms_keep_boxes_and_masks_together(smoke_set: GeneratedSet) -> None:
    table = AnnotationTable.from_coco(smoke_set.train)
    transform = train_transform([64, 128], 200, flip=0.5, vertical_flip=0.5, brightness=0.3)
    dataset = DetectionDataset(table, smoke_set.images, transform=transform, with_masks=True)
    sizes, corners = set(), set()
    for seed in range(30):
        image, target = dataset[Draw(5, seed)]
        height, width = image.shape[-2:]
        sizes.add((height, width))
        assert target["masks"].shape[1:] == (height, width)
        for box, mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
            rows, columns = torch.where(mask)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert max(abs(a - float(b)) for a, b in zip(box, tight, strict=True)) <= 1e-4
        corners.add(tuple(round(v) for v in target["boxes"][0].tolist()))
    assert sizes == {(64, 64), (128, 128)}
    assert len(corners) >= 6, "flips and sizes vary"


def test_the_long_side_is_a_limit() -> None:
    from torchvision import tv_tensors

    image = tv_tensors.Image(torch.zeros(3, 20, 80, dtype=torch.uint8))
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[0.0, 0, 8, 8]]), format="XYXY", canvas_size=(20, 80))
    resized, sample = train_transform([40], 120, flip=0)(image, {"boxes": boxes, "labels": torch.zeros(1)})
    assert resized.shape == (3, 30, 120)
    assert sample["boxes"].tolist() == [[0, 0, 12, 12]]


def test_objects_that_lose_their_area_are_dropped_and_counted(tmp_path: Path) -> None:
    table = one_picture(tmp_path, Image.new("RGB", (20, 30)))
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"].append({"id": 2, "image_id": 1, "category_id": 1, "bbox": [25, 3, 4, 5]})
    (tmp_path / "a.json").write_text(json.dumps(content))
    table = AnnotationTable.from_coco(tmp_path / "a.json")
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


def stream(batches: PositionBatches) -> list[Draw]:
    return [draw for batch in batches for draw in batch]


def test_batches_walk_through_the_epochs_and_resume_anywhere() -> None:
    sampler = RepeatFactorSampler(
        np.array([0, 1, 2, 3, 3, 4]), np.array([0, 0, 0, 1], np.int32), 2, seed=3, threshold=0.7
    )
    whole = stream(PositionBatches(sampler, seed=3, batch_size=4, num_batches=12))
    expected = []
    epoch = 0
    while len(expected) < 48:
        rows = sampler.epoch(epoch)
        expected += [Draw(int(row), draw_seed(3, epoch, place)) for place, row in enumerate(rows)]
        epoch += 1
    assert whole == expected[:48]
    for start in range(13):
        rest = stream(PositionBatches(sampler, seed=3, batch_size=4, num_batches=12, start_batch=start))
        assert rest == whole[4 * start :]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_same_global_batches(world: int) -> None:
    sampler = UniformSampler(7, seed=1)
    whole = stream(PositionBatches(sampler, seed=1, batch_size=2 * world, num_batches=5))
    parts = [
        list(PositionBatches(sampler, seed=1, batch_size=2, num_batches=5, rank=rank, world_size=world))
        for rank in range(world)
    ]
    for number in range(5):
        merged = [parts[place % world][number][place // world] for place in range(2 * world)]
        assert merged == whole[2 * world * number : 2 * world * (number + 1)]


def test_loaders_give_the_same_with_and_without_workers(smoke_set: GeneratedSet) -> None:
    table = AnnotationTable.from_coco(smoke_set.train)
    dataset = DetectionDataset(table, smoke_set.images, transform=train_transform([40, 50], 90, brightness=0.2))
    batches = PositionBatches(UniformSampler(120, seed=0), seed=0, batch_size=3, num_batches=6)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    plain = list(make_loader(dataset, batches, workers=0))
    assert torch.equal(state, torch.get_rng_state()), "loading leaves the global generator alone"
    forked = list(make_loader(dataset, batches, workers=2))
    for (images, targets), (other_images, other_targets) in zip(plain, forked, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, other_images, strict=True))
        assert [t["draw_seed"] for t in targets] == [t["draw_seed"] for t in other_targets]
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(targets, other_targets, strict=True))
    assert all(target["boxes"].dtype == torch.float32 for _, targets in plain for target in targets)


def test_evaluation_sees_every_picture_once_over_all_processes(smoke_set: GeneratedSet) -> None:
    dataset = DetectionDataset(AnnotationTable.from_coco(smoke_set.val), smoke_set.images)
    seen = []
    for rank in range(3):
        for _, targets in evaluation_loader(dataset, batch_size=5, workers=0, rank=rank, world_size=3):
            seen += [target["image_index"] for target in targets]
    assert sorted(seen) == list(range(40))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="out of range"):
        PositionBatches(UniformSampler(3, seed=0), seed=0, batch_size=0, num_batches=1)
    with pytest.raises(ValueError, match="sides"):
        train_transform([], 10)
