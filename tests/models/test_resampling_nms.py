"""NMS resampling against greedy suppression with plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.models import LevelNMS, ResamplingNMS

SIZE = (100, 100)
THRESHOLDS = torch.tensor([0.9, 0.8, 0.7])  # rare, common, frequent


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inside = max(width, 0.0) * max(height, 0.0)
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


def oracle(
    boxes: list[list[float]], scores: list[float], levels: list[int], objects: list[list[float]], labels: list[int]
) -> list[int]:
    threshold = []
    for box in boxes:
        overlaps = [iou(box, other) for other in objects]
        best = max(range(len(objects)), key=lambda k: overlaps[k])
        threshold.append(THRESHOLDS.tolist()[labels[best]] if overlaps[best] >= 0.3 else THRESHOLDS.tolist()[2])
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        rivals = [k for k in kept if levels[k] == levels[i] and threshold[k] == threshold[i]]
        if all(iou(boxes[i], boxes[k]) <= threshold[i] for k in rivals):
            kept.append(i)
    return kept


def crowd(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Candidates close around three objects, and the objects with their classes."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(3, 2, generator=generator) * 60
    objects = torch.cat([corner, corner + 30], dim=1)
    centre = objects[torch.randint(0, 3, (count,), generator=generator)]
    boxes = centre + torch.randn(count, 4, generator=generator) * 3
    boxes = boxes + torch.randn(count, 1, generator=generator) * 6  # some lie on their object barely, some not at all
    scores = torch.rand(count, generator=generator)
    levels = torch.randint(0, 2, (count,), generator=generator)
    return boxes, scores, levels, objects, torch.randperm(3, generator=generator)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 60))
def test_agrees_with_loops(seed: int, count: int) -> None:
    boxes, scores, levels, objects, labels = crowd(seed, count)
    kept = ResamplingNMS(THRESHOLDS)(boxes, scores, levels, SIZE, objects, labels)
    inputs = (boxes, scores, levels, objects, labels)
    assert kept.tolist() == oracle(*(value.tolist() for value in inputs))


@pytest.mark.parametrize("seed", range(5))
def test_rare_objects_keep_more_candidates_than_frequent_ones(seed: int) -> None:
    boxes, scores, levels, objects, _ = crowd(seed, 300)
    sizes = [
        len(ResamplingNMS(THRESHOLDS)(boxes, scores, levels, SIZE, objects, torch.full((3,), label)))
        for label in (0, 1, 2)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_without_objects_or_differences_it_is_the_ordinary_suppression() -> None:
    boxes, scores, levels, objects, labels = crowd(1, 200)
    plain = LevelNMS(0.7)(boxes, scores, levels, SIZE)
    assert torch.equal(ResamplingNMS(THRESHOLDS)(boxes, scores, levels, SIZE), plain)
    assert torch.equal(ResamplingNMS(THRESHOLDS)(boxes, scores, levels, SIZE, objects[:0], labels[:0]), plain)
    same = ResamplingNMS(torch.full((3,), 0.7, dtype=torch.float64))
    assert torch.equal(same(boxes, scores, levels, SIZE, objects, labels), plain)


def test_boxes_without_area_are_dropped() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 5.0, 9.0]])
    kept = ResamplingNMS(THRESHOLDS)(
        boxes, torch.tensor([0.1, 0.9]), torch.zeros(2, dtype=torch.long), SIZE, boxes[:1], torch.tensor([0])
    )
    assert kept.tolist() == [0]


def test_refuses_thresholds_that_are_none() -> None:
    with pytest.raises(ValueError, match="thresholds"):
        ResamplingNMS(torch.tensor([1.2]))
    with pytest.raises(ValueError, match="match_iou"):
        ResamplingNMS(THRESHOLDS, match_iou=-0.1)
