"""What different region samplers choose among the same candidates of a trained detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from longtail.data.dataset import DetectionDataset
from longtail.models.preprocess import resize_boxes
from longtail.models.proposals import ProposalNetwork
from longtail.models.rcnn import RCNN
from longtail.sampling import RegionSampler
from longtail.training.progress import Progress, Silent


@dataclass(frozen=True, eq=False)
class Chosen:
    """Regions of one picture, boxes as corners in pixels of the original picture.

    Attributes:
        image_index: row of the picture.
        objects: (G, 4).
        positives: (P, 4) by sampler.
        negatives: (N, 4) by sampler.
        negative_iou: (N,) largest IoU of every negative with an object, by sampler.
    """

    image_index: int
    objects: NDArray[np.float64]
    positives: dict[str, NDArray[np.float64]]
    negatives: dict[str, NDArray[np.float64]]
    negative_iou: dict[str, NDArray[np.float64]]


@torch.no_grad()
def probe_regions(
    model: RCNN,
    proposer: ProposalNetwork,
    dataset: DetectionDataset,
    rows: NDArray[np.int64],
    samplers: Mapping[str, RegionSampler],
    *,
    device: torch.device,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Chosen]:
    """Runs the detector over pictures and lets every sampler choose among the proposals of training.

    Args:
        model: trained, with a region head; its own sampler is put back afterwards.
        proposer: the model's proposal network.
        dataset: pictures with objects, as they are at test time.
        rows: which of them.
        samplers: by name.
        device: where to compute.
        seed: of the draws; every sampler draws from the same source anew.
        progress: told of every picture.
    """
    progress = progress or Silent()
    model.eval().to(device)
    own = model.box.sampler
    progress.start("sample regions", len(rows))
    found = []
    for row in rows.tolist():
        image, target = dataset[row]
        original = image.shape[-2], image.shape[-1]
        moved = {"boxes": target["boxes"].to(device), "labels": target["labels"].to(device)}
        batch, scaled = model.preprocess([image.to(device)], [moved], resize=True)
        maps = model.backbone(batch.tensors)
        size = batch.tensors.shape[-2], batch.tensors.shape[-1]
        proposals = proposer.detect(batch, maps, top=proposer.top_in_losses).boxes
        positives, negatives, overlaps = {}, {}, {}
        for name, sampler in samplers.items():
            model.box.sampler = sampler
            generator = torch.Generator(device).manual_seed(seed + row)
            regions = model.box.sample(maps, size, proposals, scaled, [generator])
            count = regions.num_positive[0]
            boxes = regions.proposals[0]
            iou = box_iou(boxes[count:], scaled[0]["boxes"].to(boxes.dtype))
            best = iou.max(dim=1).values if iou.shape[1] else iou.new_zeros(len(iou))
            back = resize_boxes(boxes, batch.image_sizes[0], original).double().cpu().numpy()
            positives[name], negatives[name] = back[:count], back[count:]
            overlaps[name] = best.double().cpu().numpy()
        objects = target["boxes"].double().numpy()
        found.append(Chosen(row, objects, positives, negatives, overlaps))
        progress.advance(1)
    progress.finish()
    model.box.sampler = own
    return found
