"""Batches against torchvision's transform; generators."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2.functional import to_dtype

from longtail.models.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageBatcher,
    image_generators,
    resize_boxes,
    step_generator,
)

SIZES = [(40, 61), (90, 33), (64, 64)]


def pictures(*, floating: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in SIZES]
    return [to_dtype(image, torch.float32, scale=True) for image in images] if floating else images


def torchvision_batch(*, training: bool, targets: list[dict[str, torch.Tensor]] | None = None):  # type: ignore[no-untyped-def]
    transform = GeneralizedRCNNTransform(64, 96, list(IMAGENET_MEAN), list(IMAGENET_STD), _skip_resize=training)
    return transform.train(training)(pictures(floating=True), targets)


@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("resize", [False, True])
def test_batch_is_torchvisions(floating: bool, resize: bool) -> None:
    expected, _ = torchvision_batch(training=not resize)
    batch, targets = ImageBatcher(short_side=64, long_side=96)(pictures(floating=floating), resize=resize)
    assert batch.image_sizes == expected.image_sizes
    assert targets is None
    if floating:
        assert torch.equal(batch.tensors, expected.tensors)
    else:  # torchvision multiplies by the rounded 1/255
        torch.testing.assert_close(batch.tensors, expected.tensors, rtol=0, atol=2e-6)


def test_targets_follow_a_resized_picture() -> None:
    def targets() -> list[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(1)
        return [
            {
                "boxes": torch.tensor([[1.0, 2, 30, 31], [5.0, 5, 20, 22]]),
                "labels": torch.tensor([0, 1]),
                "masks": (torch.rand(2, *size, generator=generator) > 0.5).byte(),
            }
            for size in SIZES
        ]

    expected_batch, expected = torchvision_batch(training=False, targets=targets())
    given = targets()
    batch, got = ImageBatcher(short_side=64, long_side=96)(pictures(), given, resize=True)
    assert got is not None
    for mine, theirs, size in zip(got, expected, expected_batch.image_sizes, strict=True):
        torch.testing.assert_close(mine["boxes"], theirs["boxes"])
        assert torch.equal(mine["masks"], theirs["masks"])
        assert mine["input_size"] == size
    assert batch.image_sizes == expected_batch.image_sizes
    assert torch.equal(given[0]["boxes"], targets()[0]["boxes"])
    assert "input_size" not in given[0]


def test_pictures_of_the_right_size_are_left_alone() -> None:
    image = torch.rand(3, 64, 80)
    batcher = ImageBatcher(short_side=64, long_side=96)
    assert torch.equal(batcher([image], resize=True)[0].tensors, batcher([image], resize=False)[0].tensors)


def test_padding_is_zero_and_divisible() -> None:
    batch, _ = ImageBatcher(size_divisible=16)(pictures(), resize=False)
    assert batch.tensors.shape == (3, 3, 96, 64)
    assert (batch.tensors[0, :, 40:] == 0).all()
    assert (batch.tensors[0, :, :, 61:] == 0).all()


def test_channels_last() -> None:
    plain, _ = ImageBatcher()(pictures(), resize=False)
    batch, _ = ImageBatcher(channels_last=True)(pictures(), resize=False)
    assert batch.tensors.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.tensors, plain.tensors)


def test_normalisation_is_not_saved() -> None:
    assert ImageBatcher().state_dict() == {}


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have the shape \(3, H, W\), got \(40, 61\)"):
        ImageBatcher()([torch.rand(40, 61)], resize=False)
    with pytest.raises(ValueError, match="long_side at least short_side"):
        ImageBatcher(short_side=100, long_side=90)


def test_boxes_of_another_size() -> None:
    boxes = torch.tensor([[10.0, 20, 30, 40]])
    assert resize_boxes(boxes, (100, 50), (50, 100)).tolist() == [[20.0, 10, 60, 20]]
    assert resize_boxes(boxes, (100, 50), (100, 50)) is boxes


def test_generators_are_functions_of_the_seed() -> None:
    device = torch.device("cpu")
    targets = [{"draw_seed": 2**63 - 1}, {}, {"draw_seed": 5}]
    first, none, third = image_generators(targets, device)
    assert none is None
    again = image_generators(targets[2:], device)[0]
    assert torch.equal(torch.rand(4, generator=third), torch.rand(4, generator=again))
    step = step_generator(targets, device)
    assert not torch.equal(torch.rand(4, generator=first), torch.rand(4, generator=step))
    assert step_generator(targets[1:], device) is None
    assert step_generator([], device) is None
