"""Matching against torchvision and against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from longtail.models.matching import Matcher


def random_boxes(count: int, generator: torch.Generator, *, grid: bool = False) -> Tensor:
    """Boxes in 64 x 64 pixels; on a coarse grid they tie and coincide."""
    corner = torch.rand(count, 2, generator=generator) * 48
    extent = 4 + torch.rand(count, 2, generator=generator) * 28
    boxes = torch.cat([corner, corner + extent], dim=1)
    return (boxes / 8).round() * 8 + torch.tensor([0.0, 0, 4, 4]) if grid else boxes


def by_loops(matcher: Matcher, gt_boxes: Tensor, candidates: Tensor) -> tuple[list[float], list[int]]:
    """The rules of the docstring, one candidate after the other."""
    overlap = box_iou(gt_boxes, candidates).tolist()
    centres = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in candidates.tolist()]
    inside = [[x1 <= x <= x2 and y1 <= y <= y2 for x, y in centres] for x1, y1, x2, y2 in gt_boxes.tolist()]
    count, objects = len(centres), len(inside)
    iou, best, matched = [], [], []
    for n in range(count):
        column = [overlap[g][n] for g in range(objects)]
        iou.append(max(column))
        best.append(column.index(max(column)))
        matched.append(best[n] if iou[n] >= matcher.high else -1 if iou[n] < matcher.low else -2)
    if matcher.low_quality:
        for g in range(objects):
            top = max(overlap[g])
            for n in range(count):
                if overlap[g][n] == top >= matcher.min_low_quality:
                    matched[n] = best[n]
    if matcher.centre_in_gt != "off":
        before = list(matched)
        for n in range(count):
            if matched[n] >= 0 and not inside[matched[n]][n]:
                matched[n] = -1 if matcher.centre_in_gt == "negative" else -2
        kept = list(matched)
        for g in range(objects):
            if g in before and g not in kept:
                reachable = [(overlap[g][n], -n) for n in range(count) if inside[g][n] and overlap[g][n] > 0]
                if reachable and kept[-max(reachable)[1]] < 0:
                    matched[-max(reachable)[1]] = max(g, matched[-max(reachable)[1]])
    return iou, matched


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    objects=st.integers(1, 6),
    grid=st.booleans(),
    low_quality=st.booleans(),
    thresholds=st.sampled_from([(0.5, 0.5), (0.7, 0.3), (0.6, 0.0)]),
)
def test_equals_torchvision(
    seed: int, objects: int, grid: bool, low_quality: bool, thresholds: tuple[float, float]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    gt_boxes = random_boxes(objects, generator, grid=grid)
    candidates = torch.cat([random_boxes(40, generator, grid=grid), gt_boxes[:1]])
    overlap = box_iou(gt_boxes, candidates)
    expected = TorchvisionMatcher(*thresholds, allow_low_quality_matches=low_quality)(overlap)
    iou, matched = Matcher(*thresholds, low_quality=low_quality)(gt_boxes, candidates)
    assert torch.equal(matched, expected)
    assert torch.equal(iou, overlap.max(dim=0).values)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    objects=st.integers(1, 6),
    grid=st.booleans(),
    minimum=st.sampled_from([0.0, 0.3, 0.5]),
    centre=st.sampled_from(["off", "negative", "ignore"]),
)
def test_equals_loops(seed: int, objects: int, grid: bool, minimum: float, centre: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    gt_boxes = random_boxes(objects, generator, grid=grid)
    candidates = random_boxes(30, generator, grid=grid)
    matcher = Matcher(0.7, 0.3, low_quality=True, min_low_quality=minimum, centre_in_gt=centre)  # type: ignore[arg-type]
    iou, matched = matcher(gt_boxes, candidates)
    wanted_iou, wanted = by_loops(matcher, gt_boxes, candidates)
    torch.testing.assert_close(iou, torch.tensor(wanted_iou))
    assert matched.tolist() == wanted


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), centre=st.sampled_from(["negative", "ignore"]))
def test_centre_constraint_is_vacuous_from_half_overlap_on(seed: int, centre: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    gt_boxes = random_boxes(4, generator)
    candidates = torch.cat([random_boxes(30, generator), gt_boxes + torch.rand(4, 4, generator=generator) * 6])
    plain = Matcher(0.5, 0.5)(gt_boxes, candidates)[1]
    assert torch.equal(Matcher(0.5, 0.5, centre_in_gt=centre)(gt_boxes, candidates)[1], plain)  # type: ignore[arg-type]


def test_object_without_candidates_left_keeps_the_best_one_whose_centre_is_inside() -> None:
    gt_boxes = torch.tensor([[0.0, 0, 20, 20]])
    outside, inside, worse = [8.0, 0, 40, 20], [2.0, 2, 10, 10], [4.0, 4, 8, 8]
    candidates = torch.tensor([outside, inside, worse])
    assert Matcher(0.7, 0.3, low_quality=True)(gt_boxes, candidates)[1].tolist() == [0, -1, -1]
    constrained = Matcher(0.7, 0.3, low_quality=True, centre_in_gt="negative")(gt_boxes, candidates)[1]
    assert constrained.tolist() == [-1, 0, -1]
    ignored = Matcher(0.7, 0.3, low_quality=True, centre_in_gt="ignore")(gt_boxes, candidates)[1]
    assert ignored.tolist() == [-2, 0, -1]


def test_without_objects_everything_is_negative() -> None:
    iou, matched = Matcher(0.7, 0.3, low_quality=True)(torch.zeros(0, 4), torch.rand(5, 4))
    assert iou.tolist() == [0.0] * 5
    assert matched.tolist() == [-1] * 5
    assert matched.dtype == torch.int64


def test_without_candidates_nothing_is_matched() -> None:
    iou, matched = Matcher(0.7, 0.3, low_quality=True)(torch.tensor([[0.0, 0, 4, 4]]), torch.zeros(0, 4))
    assert len(iou) == len(matched) == 0


def test_thresholds_are_checked() -> None:
    with pytest.raises(ValueError, match="low <= high"):
        Matcher(0.3, 0.7)
    with pytest.raises(ValueError, match="centre_in_gt"):
        Matcher(0.7, 0.3, centre_in_gt="maybe")  # type: ignore[arg-type]
