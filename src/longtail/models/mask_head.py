"""The mask branch of Mask R-CNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign, roi_align

from longtail.losses.cells import full_precision
from longtail.losses.state import shared_normalisers
from longtail.models.proposals import Maps
from longtail.models.regions import Regions


class MaskBranch(nn.Module):
    """Masks in the frame of a box (He et al., 2017): positives only in training, never replayed rows.

    Args:
        pool: RoIAlign, (P, K, h, w).
        head: convolutions on the pooled features.
        predictor: head's features -> mask logits (P, C, m, m), or (P, 1, m, m) if ``class_agnostic``.
        class_agnostic: one mask per box instead of one per class.
        weight: factor of the loss.
        chunk: detections per forward pass. With a thousand classes the logits of 300 detections take a gigabyte.
    """

    def __init__(
        self,
        *,
        pool: MultiScaleRoIAlign,
        head: nn.Module,
        predictor: nn.Module,
        class_agnostic: bool = False,
        weight: float = 1.0,
        chunk: int = 100,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.head = head
        self.predictor = predictor
        self.class_agnostic = class_agnostic
        self.weight = weight
        self.chunk = chunk

    def losses(
        self, maps: Maps, size: tuple[int, int], regions: Regions, targets: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """``loss_mask``: mean binary cross-entropy over the pixels of the positives' own maps (with several processes,
        the sum divided by this process's share of the pixels of all).

        Args:
            maps: feature maps.
            size: (height, width) of the padded batch in pixels.
            regions: of the (last) box stage.
            targets: ``masks`` (G, H, W) per image, in pixels of the batch.
        """
        boxes = regions.positives(regions.proposals)
        logits = self.predictor(self.head(self.pool(maps, boxes, [size])))
        count = sum(regions.num_positive)
        (normaliser,) = shared_normalisers([count], device=logits.device)  # all processes take part, positives or not
        if count == 0:
            return {"loss_mask": logits.sum() * 0}  # keeps every parameter in the graph
        own = full_precision(self._own_maps(logits, torch.cat(regions.positives(regions.labels))))
        wanted = torch.cat(
            [
                project_masks(target["masks"], index, box, own.shape[-1])
                for target, index, box in zip(targets, regions.gt_index, boxes, strict=True)
                if box.shape[0]
            ]
        )
        total = F.binary_cross_entropy_with_logits(own, wanted, reduction="sum")
        return {"loss_mask": total / (normaliser * own.shape[-1] ** 2) * self.weight}

    def predict(
        self, maps: Maps, size: tuple[int, int], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> list[Tensor]:
        """Mask probabilities (D, m, m) in the frame of every box, one entry per image.

        Args:
            boxes: (D, 4) per image, corners in pixels of the batch.
            labels: (D,) per image, in 0..C-1.
        """
        pooled = self.pool(maps, list(boxes), [size])
        parts = zip(torch.split(pooled, self.chunk), torch.split(torch.cat(list(labels)), self.chunk), strict=True)
        own = [self._own_maps(self.predictor(self.head(part)), label) for part, label in parts]
        probabilities = full_precision(torch.cat(own)).sigmoid()
        return list(torch.split(probabilities, [len(box) for box in boxes]))

    def _own_maps(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(P, m, m) the map of every box's class."""
        if self.class_agnostic:
            return logits[:, 0]
        return logits[torch.arange(labels.shape[0], device=labels.device), labels]


def project_masks(masks: Tensor, index: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Masks cut out along boxes and resampled to ``size`` x ``size``.

    Args:
        masks: (G, H, W) of the objects of one image, 0 or 1.
        index: (P,) the object of every box.
        boxes: (P, 4) corners in pixels.

    Returns:
        (P, size, size) in 0..1, without gradient.
    """
    rois = torch.cat([index[:, None].to(boxes), boxes], dim=1)
    cut: Tensor = roi_align(masks[:, None].to(boxes), rois, (size, size), 1.0)
    return cut[:, 0]
