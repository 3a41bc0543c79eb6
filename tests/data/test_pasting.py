"""Pasting single cut-outs: where they land, how large they are, how their edges blend."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from longtail.data.copy_paste import CopyPaste, CutOut, DonorIndex, overlap
from longtail.data.geometry import mask_boxes


def pasting(**options: object) -> CopyPaste:
    """Never asked for donors."""
    settings = {"min_visible": 0.0, "nearest": True, "scale": (0.3, 2.0)}
    return CopyPaste(DonorIndex(np.zeros(1, np.int32), np.array([0, 1]), np.ones(1)), **settings | options)


def blank(height: int, width: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A black picture without objects."""
    sample = {
        "boxes": tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(height, width)),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": tv_tensors.Mask(torch.zeros(0, height, width, dtype=torch.uint8)),
    }
    return tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8)), sample


def donor(size: int, frame: tuple[int, int] = (20, 20)) -> CutOut:
    """A white cross."""
    mask = torch.zeros(size, size, dtype=torch.uint8)
    mask[size // 3 : -(size // 3)] = 1
    mask[:, size // 3 : -(size // 3)] = 1
    return CutOut(torch.full((3, size, size), 255, dtype=torch.uint8), mask, 2, frame)


def test_an_object_lies_inside_the_picture_or_covers_it() -> None:
    corners = set()
    for size in (9, 30):
        for seed in range(60):
            torch.manual_seed(seed)
            black, empty = blank(20, 20)
            image, sample = pasting(scale=(1, 1)).paste(black, empty, [donor(size)])
            assert not black.any() and not len(empty["masks"]), "what is handed in stays"
            assert torch.equal(sample["masks"][0] > 0, image[0] > 0)
            if size == 9:
                assert int(sample["masks"].sum()) == int(donor(9).mask.sum()), "an object that fits is whole"
                corners.add(tuple(sample["boxes"][0, :2].tolist()))
            else:
                assert sample["boxes"].tolist() == [[0, 0, 20, 20]]
    for places in ({x for x, _ in corners}, {y for _, y in corners}):
        assert min(places) == 0 and max(places) == 11


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.lists(st.integers(3, 30), max_size=5), st.floats(0, 1),
    st.sampled_from([0.0, 1.5]), st.integers(0, 10_000),
)  # fmt: skip
def test_any_objects_on_any_picture(
    height: int, width: int, sizes: list[int], min_visible: float, blur: float, seed: int
) -> None:
    copy_paste = pasting(scale=(0.1, 3.0), min_visible=min_visible, blur=blur, nearest=False)
    objects = [replace(donor(size), label=place) for place, size in enumerate(sizes)]
    torch.manual_seed(seed)
    image, sample = copy_paste.paste(*blank(height, width), objects)
    assert image.shape == (3, height, width)
    assert len({len(sample[name]) for name in ("boxes", "labels", "masks", "pasted")}) == 1
    labels = sample["labels"].tolist()
    assert labels == sorted(set(labels)) and set(labels) <= set(range(len(sizes)))
    assert sample["pasted"].all()
    assert torch.equal(sample["boxes"].as_subclass(Tensor), mask_boxes(sample["masks"]))
    assert sample["masks"].flatten(1).any(dim=1).all() and (sample["masks"].sum(dim=0) <= 1).all()
    if blur == 0 and min_visible == 0:
        assert torch.equal(sample["masks"].sum(dim=0) > 0, image[0] > 0)


def test_scale_is_relative_to_the_fit_of_the_donors_picture() -> None:
    _, sample = pasting(scale=(0.5, 0.5)).paste(*blank(80, 120), [donor(9, frame=(20, 40))])
    left, top, right, bottom = sample["boxes"][0].tolist()
    assert (right - left, bottom - top) == (14, 14)  # 9 pixels x min(80 / 20, 120 / 40) x 0.5, rounded


def test_a_soft_edge_blends_and_leaves_the_mask_sharp() -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        sharp, before = pasting().paste(*blank(40, 40), [donor(12)])
        torch.manual_seed(seed)
        soft, sample = pasting(blur=1.0).paste(*blank(40, 40), [donor(12)])
        assert torch.equal(before["masks"], sample["masks"])
        wanted = torch.nn.functional.pad(sharp[:1].float(), (9, 9, 9, 9))
        kernel = torch.exp(-(torch.arange(-3, 4.0) ** 2) / 2)
        kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
        wanted = torch.nn.functional.conv2d(wanted[None], kernel[None, None])[0, 0, 6:-6, 6:-6]
        left, top, right, bottom = (int(v) for v in sample["boxes"][0].tolist())
        if left > 3 and top > 3 and right < 37 and bottom < 37:
            assert (soft[0] - wanted).abs().max() <= 1, "white on black shows the share of the object itself"


def test_an_object_without_a_pixel_is_counted_and_not_pasted() -> None:
    nothing = CutOut.of(torch.zeros(3, 5, 5, dtype=torch.uint8), torch.zeros(5, 5, dtype=torch.uint8), 1)
    assert nothing.mask.shape == (0, 0)
    image, sample = pasting().paste(*blank(20, 20), [nothing])
    assert not image.any()
    assert len(sample["labels"]) == len(sample["pasted"]) == 0


def test_overlaps_are_those_of_a_loop() -> None:
    for start in range(-8, 12):
        for length in range(12):
            side, part = overlap(start, length, 6)
            inside = [(place, place - start) for place in range(start, start + length) if 0 <= place < 6]
            assert list(range(*side.indices(6))) == [place for place, _ in inside]
            assert list(range(*part.indices(length))) == [place for _, place in inside]
