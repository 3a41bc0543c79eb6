"""Matching of candidate boxes with objects (seam 2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import box_iou

NEGATIVE = -1
BETWEEN = -2

CentreInGT = Literal["off", "negative", "ignore"]


class Matcher:
    """Gives every candidate the object with which it overlaps most, or none.

    A candidate whose largest IoU is at least ``high`` is matched, below ``low`` it is negative, between them neither.
    With the defaults of the last three arguments this is torchvision's ``Matcher``.

    Args:
        high, low: IoU thresholds, 0 <= low <= high <= 1.
        low_quality: whether every object also claims the candidates that overlap it most (all of them if tied), even
            below ``high``. A claimed candidate is matched with *its* best object.
        min_low_quality: an object claims only if its best IoU is at least this.
        centre_in_gt: the centre constraint of Libra R-CNN's journal version (section 3.1): a candidate may be matched
            only with an object in which its centre lies; otherwise it becomes ``"negative"``, or neither
            (``"ignore"``). An object which loses all its candidates by this keeps the best one whose centre is inside
            it and which is not matched otherwise.
    """

    def __init__(
        self,
        high: float,
        low: float,
        *,
        low_quality: bool = False,
        min_low_quality: float = 0.0,
        centre_in_gt: CentreInGT = "off",
    ) -> None:
        if not 0 <= low <= high <= 1:
            raise ValueError(f"thresholds must be 0 <= low <= high <= 1, got low={low} and high={high}")
        if centre_in_gt not in ("off", "negative", "ignore"):
            raise ValueError(f"centre_in_gt must be 'off', 'negative' or 'ignore', got {centre_in_gt!r}")
        self.high = high
        self.low = low
        self.low_quality = low_quality
        self.min_low_quality = min_low_quality
        self.centre_in_gt = centre_in_gt

    def __call__(self, gt_boxes: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Match the candidates of one image.

        Args:
            gt_boxes: (G, 4) corners in pixels.
            candidates: (N, 4).

        Returns:
            iou: (N,) largest IoU of every candidate with any object, 0 where there is no object.
            matched: (N,) int64, index of the object; -1 = negative, -2 = neither.
        """
        count = candidates.shape[0]
        if gt_boxes.shape[0] == 0 or count == 0:
            return candidates.new_zeros(count), candidates.new_full((count,), NEGATIVE, dtype=torch.int64)
        overlap = box_iou(gt_boxes, candidates)  # (G, N)
        iou, best_object = overlap.max(dim=0)
        matched = torch.where(iou < self.high, BETWEEN, best_object)
        matched = torch.where(iou < self.low, NEGATIVE, matched)
        if self.low_quality:
            best_overlap = overlap.max(dim=1, keepdim=True).values
            claims = (overlap == best_overlap) & (best_overlap >= self.min_low_quality)
            matched = torch.where(claims.any(dim=0), best_object, matched)
        if self.centre_in_gt != "off":
            matched = self._constrain(gt_boxes, candidates, overlap, matched)
        return iou, matched

    def _constrain(self, gt_boxes: Tensor, candidates: Tensor, overlap: Tensor, matched: Tensor) -> Tensor:
        objects, count = overlap.shape
        centre = (candidates[:, :2] + candidates[:, 2:]) / 2
        inside = ((centre >= gt_boxes[:, None, :2]) & (centre <= gt_boxes[:, None, 2:])).all(dim=2)  # (G, N)
        own = inside.gather(0, matched.clamp(min=0)[None])[0]
        outcast = NEGATIVE if self.centre_in_gt == "negative" else BETWEEN
        kept = torch.where((matched >= 0) & ~own, outcast, matched)

        bereft = _owned(matched, objects) & ~_owned(kept, objects)
        best, candidate = overlap.masked_fill(~inside, -1.0).max(dim=1)
        # one slot beyond the candidates takes the objects that ask for nothing; the maximum decides between two
        # objects that ask for the same candidate, so that the outcome is the same on every device
        slot = torch.where(bereft & (best > 0), candidate, count)
        rescued = torch.full((count + 1,), -1, dtype=torch.int64, device=kept.device)
        rescued.scatter_reduce_(0, slot, torch.arange(objects, device=kept.device), "amax")
        return torch.where((kept < 0) & (rescued[:count] >= 0), rescued[:count], kept)


def _owned(matched: Tensor, objects: int) -> Tensor:
    """(G,) whether the object has a matched candidate."""
    owned = torch.zeros(objects + 1, dtype=torch.bool, device=matched.device)
    owned[torch.where(matched >= 0, matched, objects)] = True
    return owned[:objects]
