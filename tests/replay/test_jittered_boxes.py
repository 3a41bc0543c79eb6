"""Boxes around objects, by hand and pattern by pattern."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from longtail.replay import jitter_boxes


def test_pattern_by_pattern() -> None:
    boxes = torch.tensor([[10.0, 20.0, 40.0, 80.0], [0.0, 0.0, 6.0, 12.0]], dtype=torch.float64)
    noise = torch.rand(4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = jitter_boxes(boxes, noise)
    assert found.shape == (32, 4)
    for g, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for k in range(16):
            signs = [1 if digit == "1" else -1 for digit in f"{k:04b}"]
            sides = (x2 - x1, y2 - y1, x2 - x1, y2 - y1)
            expected = [
                edge + sign * float(noise[j, k]) * side / 6
                for j, (edge, sign, side) in enumerate(zip((x1, y1, x2, y2), signs, sides, strict=True))
            ]
            assert found[16 * g + k].tolist() == pytest.approx(expected, rel=1e-12)


def test_cut_off_at_the_last_pixels() -> None:
    found = jitter_boxes(torch.tensor([[0.0, 0.0, 30.0, 20.0]]), torch.ones(4, 16), size=(20, 30))
    assert found.min() == 0
    assert found[:, 2].max() == 29
    assert found[:, 3].max() == 19
    outside = jitter_boxes(torch.tensor([[29.2, 2.0, 30.0, 8.0]]), torch.zeros(4, 16), size=(20, 30))
    assert (outside[:, 2] == outside[:, 0]).all()


def test_overlap_is_as_the_specification_measured() -> None:
    box = torch.tensor([[100.0, 100.0, 200.0, 160.0]])
    noise = torch.rand(500, 4, 16, generator=torch.Generator().manual_seed(0))
    iou = torch.cat([box_iou(box, jitter_boxes(box, one)) for one in noise])
    assert iou.mean().item() == pytest.approx(0.73, abs=0.01)
    assert (iou <= 0.5).float().mean() < 0.001
    inwards = jitter_boxes(box, torch.ones(4, 16))[0b1100]
    assert box_iou(box, inwards[None]).item() == pytest.approx(4 / 9)


def test_no_objects() -> None:
    assert jitter_boxes(torch.zeros(0, 4), torch.rand(4, 16), size=(5, 5)).shape == (0, 4)
