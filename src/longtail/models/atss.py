"""Adaptive training sample selection: which anchors learn which object (seam 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from longtail.models.matching import NEGATIVE


class ATSSMatcher:
    """Gives every object the anchors near its centre that fit it well, by statistics of its own (Zhang et al., CVPR
    2020, algorithm 1).

    Candidates of an object are the ``top`` anchors of every level whose centres are nearest to its own. Those whose IoU
    with it reaches the mean plus the standard deviation of the candidates' IoUs, and whose centre lies inside it,
    become its positives. An anchor that several objects want goes to the one it overlaps most. All others are negative;
    none is left out.

    Args:
        top: candidates per level, at least 1. Published 9 for one anchor per place; the base model of the equalized
            focal loss has two and takes 18.
    """

    def __init__(self, top: int = 9) -> None:
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        self.top = top

    def __call__(self, gt_boxes: Tensor, anchors: Tensor, per_level: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Match the anchors of one image.

        Args:
            gt_boxes: (G, 4) corners in pixels.
            anchors: (N, 4), level by level.
            per_level: number of anchors of every level; their sum is N.

        Returns:
            iou: (N,) largest IoU of every anchor with any object, 0 where there is no object.
            matched: (N,) int64, index of the object; -1 = negative.
        """
        count = anchors.shape[0]
        if gt_boxes.shape[0] == 0 or count == 0:
            return anchors.new_zeros(count), anchors.new_full((count,), NEGATIVE, dtype=torch.int64)
        overlap = box_iou(gt_boxes, anchors)  # (G, N)
        centre = (anchors[:, :2] + anchors[:, 2:]) / 2
        gt_centre = (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2
        distance = (gt_centre[:, None] - centre).square().sum(dim=2)  # (G, N)
        nearest, offset = [], 0
        for level in torch.split(distance, list(per_level), dim=1):
            best = level.topk(min(self.top, level.shape[1]), dim=1, largest=False).indices
            nearest.append(best + offset)
            offset += level.shape[1]
        candidates = torch.cat(nearest, dim=1)  # (G, candidates)
        fit = overlap.gather(1, candidates)
        spread = fit.std(dim=1, keepdim=True) if fit.shape[1] > 1 else torch.zeros_like(fit)
        threshold = fit.mean(dim=1, keepdim=True) + spread
        place = centre[candidates]  # (G, candidates, 2)
        inside = ((place > gt_boxes[:, None, :2]) & (place < gt_boxes[:, None, 2:])).all(dim=2)
        wanted = torch.where((fit >= threshold) & inside, fit, -1.0)
        best_iou, best_object = torch.full_like(overlap, -1.0).scatter_(1, candidates, wanted).max(dim=0)
        return overlap.max(dim=0).values, torch.where(best_iou >= 0, best_object, NEGATIVE)
