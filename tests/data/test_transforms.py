"""Augmentation keeps picture, boxes and masks together."""

import pytest
import torch
from torchvision import tv_tensors

from longtail.data import AnnotationTable
from longtail.data.dataset import DetectionDataset, Draw
from longtail.data.scenes import GeneratedSet
from longtail.data.transforms import train_transform


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
    image = tv_tensors.Image(torch.zeros(3, 20, 80, dtype=torch.uint8))
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[0.0, 0, 8, 8]]), format="XYXY", canvas_size=(20, 80))
    resized, sample = train_transform([40], 120, flip=0)(image, {"boxes": boxes, "labels": torch.zeros(1)})
    assert resized.shape == (3, 30, 120)
    assert sample["boxes"].tolist() == [[0, 0, 12, 12]]


def scene() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A dark 24 x 40 picture with one bright rectangle, its box and its mask."""
    image = torch.zeros(3, 24, 40, dtype=torch.uint8)
    image[:, 4:9, 6:30] = 255
    box = tv_tensors.BoundingBoxes(torch.tensor([[6.0, 4, 30, 9]]), format="XYXY", canvas_size=(24, 40))
    sample = {"boxes": box, "masks": tv_tensors.Mask((image[:1] > 0).to(torch.uint8)), "labels": torch.tensor([3])}
    return tv_tensors.Image(image), sample


def tight(mask: torch.Tensor) -> list[int]:
    rows, columns = torch.where(mask)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def test_transposing_and_flipping_turn_a_picture_all_eight_ways() -> None:
    transform = train_transform([24], 40, flip=0.5, vertical_flip=0.5, transpose=0.5)
    found = set()
    for seed in range(60):
        torch.manual_seed(seed)
        image, sample = transform(*scene())
        assert sample["boxes"].tolist()[0] == tight(image[0] > 0) == tight(sample["masks"][0])
        assert sample["boxes"].canvas_size == tuple(image.shape[-2:])
        found.add((tuple(image.shape), *sample["boxes"].tolist()[0]))
    assert len(found) == 8


@pytest.mark.parametrize("size", [(24, 40), (60, 64), (30, 30), (10, 12)])
def test_a_fixed_size_crops_and_fills_up(size: tuple[int, int]) -> None:
    transform = train_transform([24], 40, flip=0, fixed_size=size)
    places, lost = set(), 0
    for seed in range(40):
        torch.manual_seed(seed)
        image, sample = transform(*scene())
        assert image.shape == (3, *size)
        assert sample["masks"].shape[1:] == size
        assert len(sample["boxes"]) == len(sample["masks"]) == len(sample["labels"])
        if len(sample["labels"]):
            assert sample["boxes"].tolist()[0] == tight(image[0] > 0) == tight(sample["masks"][0])
            places.add(tuple(sample["boxes"].tolist()[0]))
        else:
            assert not (image > 0).any()
            lost += 1
    assert (len(places) > 1) == (size != (24, 40))
    assert (lost > 0) == (size == (10, 12))


@pytest.mark.parametrize("size", [(32, 32), (32, 2), (1, 9), (5, 3)])
def test_a_padded_crop_keeps_half_of_every_side(size: tuple[int, int]) -> None:
    height, width = size
    picture = tv_tensors.Image(torch.ones(3, height, width, dtype=torch.uint8))
    frame = tv_tensors.BoundingBoxes([[0.0, 0.0, width, height]], format="XYXY", canvas_size=size)
    sample = {"boxes": frame, "labels": torch.tensor([4])}
    moved = train_transform([max(size)], max(size), flip=0.0, padded_crop=4)
    seen = set()
    for seed in range(200):
        torch.manual_seed(seed)
        image, found = moved(picture, sample)
        assert image.shape == picture.shape
        assert found["labels"].tolist() == [4]
        left, top, right, bottom = found["boxes"][0].int().tolist()
        assert 2 * (right - left) >= width
        assert 2 * (bottom - top) >= height
        assert torch.equal(image[0, top:bottom, left:right], torch.ones(bottom - top, right - left, dtype=torch.uint8))
        assert int(image[0].sum()) == (bottom - top) * (right - left)
        seen.add((left or right - width, top or bottom - height))
    down, across = min(4, height // 2), min(4, width // 2)
    assert {x for x, _ in seen} == set(range(-across, across + 1))
    assert {y for _, y in seen} == set(range(-down, down + 1))
