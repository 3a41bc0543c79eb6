"""NMS resampling of Forest R-CNN (Wu et al., ACM Multimedia 2020, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from longtail.models.proposals import LevelNMS, ProposalFilter


class ResamplingNMS(ProposalFilter):
    """More proposals for rare classes: in training, the threshold of the non-maximum suppression depends on the
    object a candidate lies on.

    A candidate belongs to the object it overlaps most if their IoU is at least ``match_iou``, otherwise to the
    background. Candidates of one level with the same threshold suppress one another, others do not. Detection has no
    objects; there it is :class:`LevelNMS` with the threshold of the background. The paper's linear variant, one
    suppression in which the threshold of the box that stays decides, is not here.

    Args:
        class_thresholds: (C,) IoU above which the weaker of two boxes goes, in [0, 1]; published 0.9 for rare, 0.8 for
            common and 0.7 for frequent classes.
        background_threshold: the same for the background; published 0.7.
        match_iou: in [0, 1]; published 0.3.
        min_size: boxes with a side shorter than this many pixels are dropped.

    Raises:
        ValueError: a threshold outside [0, 1].
    """

    def __init__(
        self,
        class_thresholds: Tensor,
        *,
        background_threshold: float = 0.7,
        match_iou: float = 0.3,
        min_size: float = 1e-3,
    ) -> None:
        every = torch.cat([class_thresholds.float().cpu(), torch.tensor([background_threshold])])
        if ((every < 0) | (every > 1)).any() or not 0 <= match_iou <= 1:
            raise ValueError(f"thresholds must lie in [0, 1], got {every.tolist()} and match_iou {match_iou}")
        # which threshold every class has and, last, the background
        self.thresholds, self.kind = torch.unique(every, return_inverse=True)
        self.match_iou = match_iou
        self.in_detection = LevelNMS(background_threshold, min_size=min_size)

    def __call__(
        self,
        boxes: Tensor,
        scores: Tensor,
        levels: Tensor,
        image_size: tuple[int, int],
        gt_boxes: Tensor | None = None,
        gt_labels: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`ProposalFilter.__call__`."""
        if gt_boxes is None or gt_labels is None or gt_labels.shape[0] == 0:
            return self.in_detection(boxes, scores, levels, image_size)
        overlap, nearest = box_iou(boxes, gt_boxes.to(boxes.dtype)).max(dim=1)
        kinds = self.kind.to(boxes.device)
        own = torch.where(overlap >= self.match_iou, kinds[gt_labels[nearest]], kinds[-1])
        large = ((boxes[:, 2:] - boxes[:, :2]) >= self.in_detection.min_size).all(dim=1)
        kept = []
        for kind, threshold in enumerate(self.thresholds.tolist()):
            candidates = torch.where(large & (own == kind))[0]
            best = batched_nms(boxes[candidates], scores[candidates], levels[candidates], threshold)
            kept.append(candidates[best])
        index = torch.cat(kept)
        return index[scores[index].argsort(descending=True, stable=True)]
