"""Runs a detector over pictures and collects detections in columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from longtail.data.dataset import DetectionDataset
from longtail.data.loader import evaluation_loader
from longtail.evaluation import DetectionTable
from longtail.models.base import Detector
from longtail.models.postprocess import masks_to_rle
from longtail.models.two_stage import TwoStageDetector
from longtail.training.gathering import gather_detections
from longtail.training.progress import Progress


def detect_all(
    model: Detector,
    dataset: DetectionDataset,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    progress: Progress,
    rank: int = 0,
    world_size: int = 1,
    detections_per_image: int | None = None,
) -> DetectionTable:
    """Detections of every picture of ``dataset``, in the frame of the original pictures, ordered by picture.

    Each process takes its share of the pictures; the first one returns the whole table, the others an empty one.
    ``detections_per_image`` replaces the detector's own limit (protocols without a cap want many).
    """
    loader = evaluation_loader(dataset, batch_size=batch_size, workers=workers, rank=rank, world_size=world_size)
    was_training, inference = model.training, model.inference
    model.eval()
    if detections_per_image is not None:
        model.inference = replace(inference, detections_per_image=detections_per_image, pre_nms_cap=None)
    columns: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, list[dict[str, object]] | None]] = []
    progress.start("detect", len(dataset))
    with torch.inference_mode():
        for images, targets in loader:
            pictures = [image.to(device) for image in images]
            if isinstance(model, TwoStageDetector) and "proposals" in targets[0]:
                found = model.detect(pictures, proposals=[target["proposals"].to(device) for target in targets])
            else:
                found = model.detect(pictures)
            for detections, target in zip(found, targets, strict=True):
                boxes = detections["boxes"].float()
                height, width = target["original_size"]
                rles = None
                if "masks" in detections:
                    rles = masks_to_rle(detections["masks"], boxes, (height, width))
                corners = boxes.cpu().numpy().astype(np.float64)
                corners[:, 2:] -= corners[:, :2]
                columns.append(
                    (
                        int(target["image_index"]),
                        detections["labels"].cpu().numpy(),
                        detections["scores"].float().cpu().numpy().astype(np.float64),
                        corners,
                        rles,
                    )
                )
            progress.advance(len(images) * world_size)
    progress.finish()
    model.train(was_training)
    model.inference = inference
    columns.sort(key=lambda column: column[0])
    own = as_table(columns, masks=any(column[4] is not None for column in columns))
    return gather_detections(own) if world_size > 1 else own


def as_table(
    columns: list[tuple[int, np.ndarray, np.ndarray, np.ndarray, list[dict[str, object]] | None]], *, masks: bool
) -> DetectionTable:
    """Joins the detections of single pictures: (image row, labels, scores, boxes xywh, masks or None)."""
    return DetectionTable(
        image_index=np.concatenate([np.full(len(c[1]), c[0], np.int64) for c in columns] or [np.zeros(0, np.int64)]),
        label=np.concatenate([c[1] for c in columns] or [np.zeros(0, np.int64)]).astype(np.int64),
        score=np.concatenate([c[2] for c in columns] or [np.zeros(0)]),
        boxes=np.concatenate([c[3] for c in columns] or [np.zeros((0, 4))]),
        rles=[rle for c in columns for rle in (c[4] or [])] if masks else None,
    )
