"""The regions one step learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from longtail.replay.base import RegionRows


@dataclass(frozen=True)
class Regions:
    """The regions one step learns from, one entry per image, positives first.

    Shapes, image i with n_i regions of which ``num_positive[i]`` = p_i are positive:
        proposals (n_i, 4) corners in pixels of the batch; labels (n_i,) in 0..C, C = background; gt_index (p_i,) and
        gt_boxes (p_i, 4), the matched objects; is_object (n_i,), regions that are the objects' own boxes.
    """

    proposals: list[Tensor]
    labels: list[Tensor]
    gt_index: list[Tensor]
    gt_boxes: list[Tensor]
    num_positive: list[int]
    is_object: list[Tensor] = field(default_factory=list)

    def positives(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The positives' part of per-image ``values``."""
        return [value[:count] for value, count in zip(values, self.num_positive, strict=True)]

    def rows(self, features: Tensor) -> RegionRows:
        """Everything as rows with ``features`` (N, ...), for the replay parts."""
        counts = [len(labels) for labels in self.labels]
        image = torch.arange(len(counts), device=features.device)
        negatives = [boxes[count:] for boxes, count in zip(self.proposals, self.num_positive, strict=True)]
        none = [index.new_full((len(boxes),), -1) for index, boxes in zip(self.gt_index, negatives, strict=True)]
        return RegionRows(
            features=features,
            labels=torch.cat(self.labels),
            proposals=torch.cat(self.proposals),
            gt_boxes=torch.cat(_interleave(self.gt_boxes, negatives)),
            gt_index=torch.cat(_interleave(self.gt_index, none)),
            image_index=torch.cat([image[i].expand(count) for i, count in enumerate(counts)]),
        )

    def add(
        self,
        candidates: Tensor,
        num_proposals: int,
        matched: Tensor,
        target: Mapping[str, Any],
        positive: Tensor,
        negative: Tensor,
        num_classes: int,
    ) -> None:
        """Adds the chosen candidates of one more picture.

        Args:
            candidates: (M, 4), of which the first ``num_proposals`` are proposals and the rest objects' own boxes.
            matched: (M,) object of every candidate.
            target: of the picture, with ``boxes`` (G, 4) and ``labels`` (G,).
            positive, negative: indices of the chosen ones.
            num_classes: C, the label of the background.
        """
        gt_index = matched[positive]
        background = target["labels"].new_full((negative.shape[0],), num_classes)
        chosen = torch.cat((positive, negative))
        self.proposals.append(candidates[chosen])
        self.is_object.append(chosen >= num_proposals)
        self.labels.append(torch.cat((target["labels"][gt_index], background)))
        self.gt_index.append(gt_index)
        self.gt_boxes.append(target["boxes"].to(candidates.dtype)[gt_index])
        self.num_positive.append(positive.shape[0])


def _interleave(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    return [value for pair in zip(first, second, strict=True) for value in pair]
