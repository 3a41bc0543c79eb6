"""Adaptive training sample selection against a loop written from the paper's algorithm 1."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtail.models import ATSSMatcher


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inner = width * height
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def oracle(gt: list[list[float]], anchors: list[list[float]], per_level: list[int], top: int) -> list[int]:
    best = [-1.0] * len(anchors)
    matched = [-1] * len(anchors)
    for index, box in enumerate(gt):
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        candidates: list[int] = []
        start = 0
        for count in per_level:
            level = range(start, start + count)
            away = {n: ((anchors[n][0] + anchors[n][2]) / 2 - cx) ** 2 + ((anchors[n][1] + anchors[n][3]) / 2 - cy) ** 2
                    for n in level}  # fmt: skip
            candidates += sorted(level, key=lambda n: away[n])[:top]
            start += count
        ious = [overlap(box, anchors[n]) for n in candidates]
        threshold = statistics.mean(ious) + (statistics.stdev(ious) if len(ious) > 1 else 0.0)
        for n, iou in zip(candidates, ious, strict=True):
            x, y = (anchors[n][0] + anchors[n][2]) / 2, (anchors[n][1] + anchors[n][3]) / 2
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if iou >= threshold and inside and iou > best[n]:
                best[n], matched[n] = iou, index
    return matched


def scene(seed: int, objects: int, per_level: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def boxes(count: int, side: float) -> Tensor:
        centre = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 100
        half = (0.5 + torch.rand(count, 2, generator=generator, dtype=torch.float64)) * side / 2
        return torch.cat([centre - half, centre + half], dim=1)

    sides = [12.0 * 2**level for level in range(len(per_level))]
    anchors = torch.cat([boxes(count, side) for count, side in zip(per_level, sides, strict=True)])
    return boxes(objects, 30.0), anchors


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    objects=st.integers(1, 5),
    per_level=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    top=st.integers(1, 12),
)
def test_equals_the_loop(seed: int, objects: int, per_level: list[int], top: int) -> None:
    gt, anchors = scene(seed, objects, per_level)
    iou, matched = ATSSMatcher(top)(gt, anchors, per_level)
    assert matched.tolist() == oracle(gt.tolist(), anchors.tolist(), per_level, top)
    expected = [max(overlap(box, anchor) for box in gt.tolist()) for anchor in anchors.tolist()]
    torch.testing.assert_close(iou, torch.tensor(expected, dtype=torch.float64))


def test_some_anchors_are_positive() -> None:
    gt, anchors = scene(1, 4, [400, 100])
    matched = ATSSMatcher()(gt, anchors, [400, 100])[1]
    assert {-1, 0, 1, 2, 3} == set(matched.tolist())


def test_by_hand() -> None:
    """Three anchors along a line: the middle one is the object itself, the others overlap it by a third."""
    gt = torch.tensor([[10.0, 0, 30, 10]])
    anchors = torch.tensor([[0.0, 0, 20, 10], [10, 0, 30, 10], [20, 0, 40, 10]])
    # mean (1/3 + 1 + 1/3) / 3 = 0.556, unbiased deviation 0.385: only 1 reaches 0.940
    assert ATSSMatcher(3)(gt, anchors, [3])[1].tolist() == [-1, 0, -1]
    # alone in its level, each is its own candidate; centres (10, 5) and (30, 5) lie on the border, not inside
    assert ATSSMatcher(1)(gt, anchors[:1], [1])[1].tolist() == [-1]


def test_an_anchor_that_two_objects_want_goes_to_the_closer_fit() -> None:
    anchors = torch.tensor([[0.0, 0, 20, 20]])
    gt = torch.tensor([[0.0, 0, 30, 30], [0, 0, 22, 20]])
    assert ATSSMatcher(1)(gt, anchors, [1])[1].tolist() == [1]


def test_without_objects_or_anchors() -> None:
    iou, matched = ATSSMatcher()(torch.zeros(0, 4), torch.rand(5, 4), [3, 2])
    assert iou.tolist() == [0.0] * 5
    assert matched.tolist() == [-1] * 5
    assert ATSSMatcher()(torch.rand(2, 4), torch.zeros(0, 4), [0])[1].shape == (0,)


def test_top_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="top must be at least 1"):
        ATSSMatcher(0)
