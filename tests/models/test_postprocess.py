"""Detections against torchvision's post-processing; the cap; pasting; run-length encodings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as codec
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image

from longtail.models.postprocess import (
    Inference,
    masks_to_rle,
    nms_per_class,
    paste_masks,
    select_detections,
)

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))
SIZE = (200, 260)


def random_head(regions: int, num_classes: int, seed: int, *, agnostic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(regions, 2, generator=generator) * 180
    proposals = torch.cat([corner, corner + 10 + torch.rand(regions, 2, generator=generator) * 60], dim=1)
    logits = torch.randn(regions, num_classes + 1, generator=generator) * 2
    deltas = torch.randn(regions, 4 if agnostic else 4 * num_classes, generator=generator)
    return logits, deltas, proposals


def torchvision_detections(
    logits: Tensor, deltas: Tensor, proposals: Tensor, inference: Inference
) -> tuple[Tensor, Tensor, Tensor]:
    """Torchvision with background first; class-agnostic deltas repeated."""
    heads = RoIHeads(
        None,
        None,
        None,
        0.5,
        0.5,
        512,
        0.25,
        None,
        inference.score_threshold,
        inference.nms_threshold,
        inference.detections_per_image,
    )
    num_classes = logits.shape[1] - 1
    own = deltas.repeat(1, num_classes) if deltas.shape[1] == 4 else deltas
    boxes, scores, labels = heads.postprocess_detections(
        logits.roll(1, dims=1), torch.cat([torch.zeros(len(own), 4), own], dim=1), [proposals], [SIZE]
    )
    return boxes[0], scores[0], labels[0] - 1


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("num_classes", [1, 7, 40])
@pytest.mark.parametrize("cap", [None, 400])
def test_equals_torchvision(agnostic: bool, num_classes: int, cap: int | None) -> None:
    inference = Inference(score_threshold=0.01, nms_threshold=0.5, detections_per_image=100, pre_nms_cap=cap)
    logits, deltas, proposals = random_head(200, num_classes, seed=num_classes, agnostic=agnostic)
    expected = torchvision_detections(logits, deltas, proposals, inference)
    got = select_detections(logits.softmax(dim=1), deltas, proposals, CODER, SIZE, inference)
    assert len(got[0]) > 30
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("bias", [-7.0, 0.0])
@pytest.mark.parametrize("cap", [10_000, 1_000, 300])
def test_cap_changes_no_detection_with_1203_sigmoid_classes(bias: float, cap: int) -> None:
    logits, deltas, proposals = random_head(60, 1203, seed=5)
    scores = (logits + bias).sigmoid()
    inference = Inference(pre_nms_cap=None)
    everything = select_detections(scores, deltas, proposals, CODER, SIZE, inference)
    capped = select_detections(scores, deltas, proposals, CODER, SIZE, replace(inference, pre_nms_cap=cap))
    assert len(everything[0]) == 300
    for mine, theirs in zip(capped, everything, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_cap_is_raised_where_too_few_survive() -> None:
    """All best pairs are one and the same box of one class: NMS leaves one of them."""
    proposals = torch.tensor([[10.0, 10, 60, 60]]).repeat(60, 1)
    proposals[50:] = torch.tensor([[100.0, 100, 150, 150]])
    scores = torch.cat([torch.linspace(0.9, 0.8, 50), torch.linspace(0.2, 0.1, 10)])[:, None].repeat(1, 2)
    inference = Inference(detections_per_image=2, pre_nms_cap=3)
    boxes, score, label = select_detections(scores, torch.zeros(60, 4), proposals, CODER, SIZE, inference)
    torch.testing.assert_close(score, torch.tensor([0.9, 0.2]))
    torch.testing.assert_close(boxes, proposals[[0, 50]])
    assert label.tolist() == [0, 0]


def test_nms_of_a_late_class_is_as_exact_as_that_of_the_first() -> None:
    """Moved apart in float32, boxes of class 1,202 would lose an eighth of a pixel and the pair its IoU of 0.5."""
    # areas 30.0 and 20.0: IoU just above and just below one half
    pair = torch.tensor([[1000.0, 1000, 1003.0, 1010], [1000.0, 1000, 1003.0, 1005.04]])
    scores, first = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    assert nms_per_class(pair, scores, first, 0.5).tolist() == [0]
    assert nms_per_class(pair, scores, first + 1202, 0.5).tolist() == [0]
    pair[1, 3] = 1004.96
    assert nms_per_class(pair, scores, first, 0.5).tolist() == [0, 1]
    assert nms_per_class(pair, scores, first + 1202, 0.5).tolist() == [0, 1]


def test_classes_do_not_suppress_each_other() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(3, 1)
    assert nms_per_class(boxes, torch.tensor([0.3, 0.9, 0.5]), torch.tensor([0, 1, 1]), 0.5).tolist() == [1, 0]


@pytest.mark.parametrize(("regions", "threshold"), [(0, 0.1), (5, 1.0)])
def test_nothing_to_detect(regions: int, threshold: float) -> None:
    logits, deltas, proposals = random_head(regions, 3, seed=0)
    inference = Inference(score_threshold=threshold)
    boxes, scores, labels = select_detections(logits.softmax(1), deltas, proposals, CODER, SIZE, inference)
    assert boxes.shape == (0, 4)
    assert scores.shape == labels.shape == (0,)
    assert labels.dtype == torch.int64


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Inference(detections_per_image=0)


def boxes_at_all_borders() -> Tensor:
    return torch.tensor(
        [
            [5.0, 6.0, 25.5, 30.2],
            [-12.0, 3.0, 9.7, 20.0],  # beyond the left border
            [30.0, 35.0, 70.0, 70.0],  # beyond the right and lower border
            [10.2, 10.2, 10.3, 10.3],  # below a pixel
            [0.0, 0.0, 48.0, 40.0],  # the whole picture
            [100.0, 100.0, 120.0, 120.0],  # outside
        ]
    )


@pytest.mark.parametrize("side", [4, 28])
def test_pasting_equals_torchvision(side: int) -> None:
    boxes = boxes_at_all_borders()
    probabilities = torch.rand(len(boxes), side, side, generator=torch.Generator().manual_seed(side))
    size = (40, 48)
    # torchvision cannot paste what lies outside
    expected = paste_masks_in_image(probabilities[:-1, None], boxes[:-1], size)[:, 0] >= 0.5
    got = paste_masks(probabilities, boxes, size)
    assert torch.equal(got[:-1], expected)
    assert expected.flatten(1).any(dim=1).sum() >= 4
    assert not got[-1].any()


def test_encodings_decode_to_the_pasted_masks() -> None:
    boxes = boxes_at_all_borders()
    probabilities = torch.rand(len(boxes), 14, 14, generator=torch.Generator().manual_seed(1))
    size = (40, 48)
    for chunk in (2, 50):
        encoded = masks_to_rle(probabilities, boxes, size, chunk=chunk)
        assert [tuple(rle["size"]) for rle in encoded] == [size] * len(boxes)
        decoded = codec.decode(encoded).transpose(2, 0, 1)
        assert np.array_equal(decoded.astype(bool), paste_masks(probabilities, boxes, size).numpy())


def test_no_masks_at_all() -> None:
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (10, 12)).shape == (0, 10, 12)
    assert masks_to_rle(torch.zeros(0, 28, 28), torch.zeros(0, 4), (10, 12)) == []
