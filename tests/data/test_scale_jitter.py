"""Random scales and crops against loops over pixels: picture, boxes and masks stay together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from longtail.data.geometry import mask_boxes, nearest_places, resize_picture, resized_window, uniform
from longtail.data.scale_jitter import FixedSize, LargeScaleJitter, RandomSizeCrop
from longtail.data.transforms import crop_or_not, train_transform

FILL = (9, 8, 7)


def bounds(mask: Tensor) -> list[float]:
    """Of one mask, by looking at every pixel."""
    found = [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    if not found:
        return [0, 0, 0, 0]
    return [
        min(x for x, _ in found), min(y for _, y in found), max(x for x, _ in found) + 1, max(y for _, y in found) + 1
    ]  # fmt: skip


def painted(
    height: int, width: int, objects: int, *, seed: int, masks: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """A black picture with ellipses and rectangles; object k has the colour (100 + k, 50, 20 + k) and the label k."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for k in range(objects):
        cy, cx = (int(torch.randint(0, side, (), generator=generator)) for side in (height, width))
        ry, rx = (int(torch.randint(1, max(2, side // 3), (), generator=generator)) for side in (height, width))
        inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1 if k % 2 else ((y - cy).abs() < ry) & ((x - cx) < rx)
        image[:, inside] = torch.tensor([100 + k, 50, 20 + k], dtype=torch.uint8)[:, None]
    cut = torch.stack([image[0] == 100 + k for k in range(objects)] or [torch.zeros(height, width)]).to(torch.uint8)
    cut = cut[:objects]
    seen = cut.flatten(1).any(dim=1) > 0
    boxes = tv_tensors.BoundingBoxes(mask_boxes(cut[seen]), format="XYXY", canvas_size=(height, width))
    sample = {"boxes": boxes, "labels": torch.arange(objects)[seen]}
    if masks:
        sample["masks"] = tv_tensors.Mask(cut[seen])
    return tv_tensors.Image(image), sample


def check_against_pixels(
    image: Tensor, sample: dict[str, Tensor], before: dict[str, Tensor], *, shrunk: bool = False
) -> None:
    """Every object of a picture made by :func:`painted`, without interpolation, is where its colour is. In a shrunk
    picture thin parts of a mask may be gone that its box still holds."""
    height, width = image.shape[-2:]
    assert sample["boxes"].canvas_size == (height, width)
    assert len(sample["boxes"]) == len(sample["labels"])
    labels = sample["labels"].tolist()
    assert labels == [k for k in before["labels"].tolist() if (image[0] == 100 + k).any()], "kept: what is visible"
    for k, box, mask in zip(labels, sample["boxes"].tolist(), sample["masks"], strict=True):
        assert torch.equal(mask > 0, image[0] == 100 + k)
        tight = bounds(mask)
        assert box[0] - 1 <= tight[0] and box[1] - 1 <= tight[1] and box[2] + 1 >= tight[2] and box[3] + 1 >= tight[3]
        assert shrunk or all(abs(a - b) <= 1 for a, b in zip(box, tight, strict=True))
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height


def test_bounds_of_masks_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = (torch.rand(60, 7, 9, generator=generator) < torch.linspace(0, 0.4, 60)[:, None, None]).to(torch.uint8)
    assert mask_boxes(masks).tolist() == [bounds(mask) for mask in masks]
    assert mask_boxes(masks[:0]).shape == (0, 4)


def test_the_nearest_pixel_holds_the_new_centre() -> None:
    for old in range(1, 12):
        for new in range(1, 30):
            found = nearest_places(old, new, 0, new).tolist()
            assert found == [min(old - 1, int((place + 0.5) * old / new + 1e-9)) for place in range(new)]
            assert nearest_places(old, new, new // 2, new).tolist() == found[new // 2 :]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.booleans(),
    st.integers(0, 5), st.integers(0, 10_000), st.sampled_from([(0.1, 2.0), (0.8, 1.25), (1.0, 1.0), (3.0, 5.0)]),
)  # fmt: skip
def test_jitter_keeps_objects_where_their_pixels_are(
    height: int,
    width: int,
    to_height: int,
    to_width: int,
    pad: bool,
    objects: int,
    seed: int,
    scale: tuple[float, float],
) -> None:
    image, before = painted(height, width, objects, seed=seed)
    jitter = LargeScaleJitter((to_height, to_width), scale, pad=pad, fill=FILL, nearest=True)
    torch.manual_seed(seed)
    jittered, sample = jitter(image, before)
    if pad:
        assert jittered.shape == (3, to_height, to_width)
    else:
        assert jittered.shape[1] <= to_height and jittered.shape[2] <= to_width
    torch.manual_seed(seed)
    factor = min(to_height / height, to_width / width) * uniform(*scale)
    check_against_pixels(jittered, sample, before, shrunk=factor < 1)


def test_jitter_is_a_resize_and_a_crop_by_hand() -> None:
    image, before = painted(30, 20, 3, seed=4)
    jitter = LargeScaleJitter((24, 24), (0.5, 2.0), fill=FILL, nearest=True)
    corners = set()
    for seed in range(40):
        torch.manual_seed(seed)
        jittered, sample = jitter(image, before)
        torch.manual_seed(seed)
        factor = 24 / 30 * (0.5 + 1.5 * float(torch.rand((), dtype=torch.float64)))
        new = (round(30 * factor), round(20 * factor))
        top = int(torch.randint(0, max(0, new[0] - 24) + 1, ()))
        left = int(torch.randint(0, max(0, new[1] - 24) + 1, ()))
        corners.add((top, left))
        for y in range(24):
            for x in range(24):
                old = (int((y + top + 0.5) * 30 / new[0]), int((x + left + 0.5) * 20 / new[1]))
                inside = y + top < new[0] and x + left < new[1]
                wanted = image[:, old[0], old[1]].tolist() if inside else list(FILL)
                assert jittered[:, y, x].tolist() == wanted
        assert sample["masks"].shape[1:] == (24, 24)
    assert len(corners) > 10


def test_the_picture_is_interpolated_as_torchvision_does() -> None:
    image = tv_tensors.Image(torch.randint(0, 256, (3, 30, 20), dtype=torch.uint8))
    _, before = painted(30, 20, 2, seed=0)
    resized, _ = resized_window(image, before, (41, 33), (3, 5, 30, 20))
    whole = torch.nn.functional.interpolate(
        image.as_subclass(Tensor)[None].float(), (41, 33), mode="bilinear", antialias=True
    )
    assert (resized.float() - whole[0, :, 3:33, 5:25]).abs().max() <= 1


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 6)] * 4), st.integers(0, 1000))
def test_tiny_pictures_are_resized_like_large_ones(sides: tuple[int, int, int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *sides[:2]), dtype=torch.uint8, generator=generator)
    wanted = torch.nn.functional.interpolate(image[None].float(), sides[2:], mode="bilinear", antialias=True)[0]
    assert (resize_picture(image, sides[2:]).float() - wanted).abs().max() <= 1.01
    boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=sides[:2])
    ordinary = train_transform([1], 500, flip=0)(tv_tensors.Image(image), {"boxes": boxes, "labels": torch.zeros(0)})[0]
    size = ordinary.shape[1:]
    wanted = torch.nn.functional.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    assert (ordinary.float() - wanted).abs().max() <= 1.01


def test_the_mean_factor_and_its_range() -> None:
    image, before = painted(40, 20, 1, seed=0)
    jitter = LargeScaleJitter((100, 100), (0.5, 1.0), pad=False)
    heights = []
    for seed in range(300):
        torch.manual_seed(seed)
        heights.append(jitter(image, before)[0].shape[1])
    assert 50 <= min(heights) < 53
    assert 97 < max(heights) <= 100
    assert abs(sum(heights) / 300 - 75) < 3


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(0, 5), st.booleans())
def test_a_fixed_size_without_interpolation(
    height: int, width: int, to_height: int, to_width: int, objects: int, corner: bool
) -> None:
    image, before = painted(height, width, objects, seed=height)
    torch.manual_seed(width)
    fixed, sample = FixedSize((to_height, to_width), fill=FILL, corner=corner)(image, before)
    assert fixed.shape == (3, to_height, to_width)
    check_against_pixels(fixed, sample, before)
    filled = int((fixed.permute(1, 2, 0) == torch.tensor(FILL, dtype=torch.uint8)).all(dim=2).sum())
    assert filled == to_height * to_width - min(height, to_height) * min(width, to_width)
    if corner and (to_height > height or to_width > width):
        assert fixed[:, -1, -1].tolist() == list(FILL)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5), st.integers(0, 1000))
def test_a_crop_of_random_size(height: int, width: int, objects: int, seed: int) -> None:
    image, before = painted(height, width, objects, seed=seed)
    torch.manual_seed(seed)
    cropped, sample = RandomSizeCrop(8, 20)(image, before)
    for side, old in zip(cropped.shape[1:], (height, width), strict=True):
        assert min(8, old) <= side <= min(20, old)
    check_against_pixels(cropped, sample, before)


def test_boxes_without_masks_are_clipped() -> None:
    image, before = painted(30, 30, 1, seed=0, masks=False)
    before["boxes"] = tv_tensors.BoundingBoxes(torch.tensor([[2.0, 3, 28, 29]]), format="XYXY", canvas_size=(30, 30))
    _, sample = resized_window(image, before, (60, 60), (10, 20, 30, 25))
    assert sample["boxes"].tolist() == [[0, 0, 25, 30]]
    _, sample = resized_window(image, before, (60, 60), (0, 0, 60, 4))
    assert len(sample["boxes"]) == len(sample["labels"]) == 0
    _, sample = resized_window(image, before, (15, 15), (0, 0, 15, 15))
    assert sample["boxes"].tolist() == [[1, 1.5, 14, 14.5]]


def test_a_cut_object_gets_the_bounds_of_its_mask_and_a_whole_one_keeps_its_box() -> None:
    image = tv_tensors.Image(torch.zeros(3, 20, 20, dtype=torch.uint8))
    masks = torch.zeros(3, 20, 20, dtype=torch.uint8)
    masks[0, 2:4, 2:18] = 1  # an L, of which the window holds the thin arm alone
    masks[0, 2:18, 2:4] = 1
    masks[1, 12:14, 12:14] = 1  # inside the window, with a generous box
    boxes = torch.tensor([[2.0, 2, 18, 18], [11, 11, 15, 15], [12, 12, 13, 13]])  # the last one has an empty mask
    before = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(20, 20)),
        "masks": tv_tensors.Mask(masks),
        "labels": torch.tensor([5, 6, 7]),
    }
    _, sample = resized_window(image, before, (20, 20), (0, 10, 20, 10))
    assert sample["boxes"].tolist() == [[0, 2, 8, 4], [1, 11, 5, 15], [2, 12, 3, 13]]
    _, sample = resized_window(image, before, (20, 20), (5, 5, 15, 15))
    assert sample["labels"].tolist() == [6, 7], "the L's box reaches into the window, its pixels do not"


def test_detrs_policy_crops_half_of_the_pictures() -> None:
    image, before = painted(60, 90, 2, seed=3)
    policy = crop_or_not([48, 64], 96, probability=0.5, before=[50, 60], crop=(30, 40))
    plain = 0
    for seed in range(200):
        torch.manual_seed(seed)
        resized, sample = policy(image, before)
        height, width = resized.shape[1:]
        assert min(height, width) in (48, 64) or max(height, width) == 96
        plain += (height, width) in ((48, 72), (64, 96))
        for box, mask in zip(sample["boxes"].tolist(), sample["masks"], strict=True):
            assert all(abs(a - b) <= 4 for a, b in zip(box, mask_boxes(mask[None])[0].tolist(), strict=True))
    assert 75 < plain < 130


def test_sizes_that_make_no_sense_are_refused() -> None:
    for wrong in (lambda: FixedSize((0, 4)), lambda: LargeScaleJitter((4, 4), (0, 1)), lambda: RandomSizeCrop(5, 4)):
        with pytest.raises(ValueError, match="pixel"):
            wrong()
