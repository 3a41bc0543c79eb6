"""From scores and box deltas to detections, and from mask probabilities to masks of the picture's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image, nms

#: boxes with a shorter side, in pixels, are no detections
MIN_SIDE = 1e-2


@dataclass(frozen=True)
class Inference:
    """What becomes a detection. Defaults are those of LVIS.

    Attributes:
        score_threshold: only higher scores count.
        nms_threshold: of two boxes of one class with a larger IoU, the better stays.
        detections_per_image: at most so many, the best ones.
        pre_nms_cap: so many best (region, class) pairs of an image enter non-maximum suppression at first; more only
            if fewer than ``detections_per_image`` are left of them, so that the cap changes no detection. With 1,203
            sigmoid classes a million pairs are above the threshold. None = all of them.
    """

    score_threshold: float = 1e-4
    nms_threshold: float = 0.5
    detections_per_image: int = 300
    pre_nms_cap: int | None = 10_000

    def __post_init__(self) -> None:
        if self.detections_per_image < 1 or (self.pre_nms_cap is not None and self.pre_nms_cap < 1):
            raise ValueError("detections_per_image and pre_nms_cap must be at least 1")


def select_detections(
    scores: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    coder: BoxCoder,
    image_size: tuple[int, int],
    inference: Inference,
) -> tuple[Tensor, Tensor, Tensor]:
    """The detections of one image.

    Args:
        scores: (N, C + 1) in 0..1, background last.
        deltas: (N, 4 C) class-specific or (N, 4) class-agnostic offsets from the proposals.
        proposals: (N, 4) corners in pixels.
        coder: what decodes the deltas.
        image_size: (height, width) in pixels, without padding.
        inference: thresholds and limits.

    Returns:
        boxes (D, 4) corners in pixels of that image, scores (D,) and labels (D,) in 0..C-1, highest score first.
    """
    num_classes = scores.shape[1] - 1
    flat = scores[:, :num_classes].flatten()
    candidates = torch.where(flat > inference.score_threshold)[0]
    cap = inference.pre_nms_cap
    while True:
        chosen = candidates
        if cap is not None and cap < candidates.shape[0]:
            # back in their order, so that pairs of equal score are not exchanged
            chosen = candidates[flat[candidates].topk(cap, sorted=False).indices.sort().values]
        region, label = chosen // num_classes, chosen % num_classes
        if deltas.shape[1] == 4:
            own = deltas[region]
        else:
            own = deltas.reshape(-1, num_classes, 4)[region, label]
        boxes = clip_boxes_to_image(coder.decode_single(own, proposals[region]), image_size)
        large = torch.where(((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(dim=1))[0]
        boxes, score, label = boxes[large], flat[chosen[large]], label[large]
        kept = nms_per_class(boxes, score, label, inference.nms_threshold)[: inference.detections_per_image]
        if cap is None or len(kept) == inference.detections_per_image or cap >= candidates.shape[0]:
            return boxes[kept], score[kept], label[kept]
        cap *= 4


def nms_per_class(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes (K, 4) that survive non-maximum suppression within their class, highest score first.

    Boxes of different classes are moved apart. In float32 that costs precision, an eighth of a pixel at a thousand
    classes, so it is done in float64; on a CPU many boxes are faster class by class, and exact.
    """
    if boxes.shape[0] == 0:
        return labels
    if boxes.device.type == "cpu" and boxes.shape[0] > 1000:
        kept: Tensor = batched_nms(boxes, scores, labels, threshold)
    else:
        apart = boxes.double()
        kept = nms(apart + (labels * (apart.max() + 1))[:, None], scores.double(), threshold)
    return kept


def paste_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Masks in the frame of a box, resampled and placed into the picture as torchvision does it.

    Args:
        probabilities: (D, m, m) in 0..1.
        boxes: (D, 4) corners in pixels of the picture.
        size: (height, width) of the picture.
        threshold: a pixel belongs to the mask if its probability is at least this, in (0, 1].

    Returns:
        (D, height, width) bool on the device of the probabilities.
    """
    height, width = size
    masks = torch.zeros((len(boxes), height, width), dtype=torch.bool, device=probabilities.device)
    side = probabilities.shape[-1]
    # a border of one zero pixel, and boxes enlarged accordingly, let masks fade out at the box
    padded = F.pad(probabilities, (1, 1, 1, 1))[:, None]
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((side + 2) / side)
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    corners = torch.cat([centre - half, centre + half], dim=1).to(torch.int64).tolist()
    for mask, probability, (x1, y1, x2, y2) in zip(masks, padded, corners, strict=True):
        extent = (max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1))
        pixels = F.interpolate(probability[None], size=extent, mode="bilinear", align_corners=False)[0, 0]
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, width), min(y2 + 1, height)
        if left < right and top < bottom:
            mask[top:bottom, left:right] = pixels[top - y1 : bottom - y1, left - x1 : right - x1] >= threshold
    return masks


def masks_to_rle(
    probabilities: Tensor, boxes: Tensor, size: tuple[int, int], *, threshold: float = 0.5, chunk: int = 50
) -> list[dict[str, Any]]:
    """Run-length encodings of pasted masks, as ``pycocotools`` writes them (``size`` and compressed ``counts``).

    Args:
        probabilities, boxes, size, threshold: as for :func:`paste_masks`.
        chunk: masks that exist in full size at the same time.
    """
    from pycocotools import mask as codec

    encoded: list[dict[str, Any]] = []
    for start in range(0, len(boxes), chunk):
        part = slice(start, start + chunk)
        masks = paste_masks(probabilities[part], boxes[part], size, threshold)
        # column by column, as the codec wants it
        columns = masks.transpose(1, 2).contiguous().to(torch.uint8).cpu().numpy()
        encoded += codec.encode(columns.transpose(2, 1, 0))
    return encoded


def select_queries(scores: Tensor, boxes: Tensor, inference: Inference) -> dict[str, Tensor]:
    """The best (query, class) pairs of one picture, highest score first.

    Args:
        scores: (Q, C) in 0..1.
        boxes: (Q, 4) corners in pixels.
        inference: thresholds and limits; non-maximum suppression, if its threshold is below 1, comes after the cap.
    """
    flat = scores.flatten()
    no_nms = inference.nms_threshold >= 1
    limit = inference.detections_per_image if no_nms else (inference.pre_nms_cap or len(flat))
    large = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(dim=1)
    allowed = (flat > inference.score_threshold) & large.repeat_interleave(scores.shape[1])
    best = flat.masked_fill(~allowed, -1.0).topk(min(limit, len(flat)))
    best_pairs = best.indices[best.values >= 0]
    query, label = best_pairs // scores.shape[1], best_pairs % scores.shape[1]
    own_boxes, own_scores = boxes[query], flat[best_pairs]
    if not no_nms:
        kept = nms_per_class(own_boxes, own_scores, label, inference.nms_threshold)[: inference.detections_per_image]
        own_boxes, own_scores, label = own_boxes[kept], own_scores[kept], label[kept]
    return {"boxes": own_boxes, "scores": own_scores, "labels": label}
