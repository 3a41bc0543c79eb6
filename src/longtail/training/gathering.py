"""Detections of all processes on the first one, column by column."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from longtail.evaluation import DetectionTable
from longtail.losses.state import gather_on_first, sum_over_ranks


def gather_detections(own: DetectionTable) -> DetectionTable:
    """The detections of all processes, by picture, on the first process; an empty table on the others.

    Every process must call it; each picture is one process's. Columns travel as arrays, masks as one string of bytes
    with their lengths, so that nothing is pickled.
    """
    masks = bool(sum_over_ranks(torch.tensor(int(own.rles is not None))))
    image = gather_array(own.image_index)
    label, score, boxes = gather_array(own.label), gather_array(own.score), gather_array(own.boxes)
    rles = gather_masks(own.rles or []) if masks else None
    if dist.get_rank():
        return DetectionTable.empty()
    table = DetectionTable(image_index=image, label=label, score=score, boxes=boxes, rles=rles)
    return table.select(np.argsort(image, kind="stable"))


def gather_array(own: NDArray[Any]) -> NDArray[Any]:
    """Rows of all processes, in their order, on the first one; no rows on the others."""
    gathered: NDArray[Any] = gather_on_first(torch.from_numpy(np.ascontiguousarray(own))).numpy()
    return gathered


def gather_masks(own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compressed run-length masks of all processes, in their order, on the first one; none on the others."""
    sizes = gather_array(np.array([rle["size"] for rle in own], dtype=np.int64).reshape(-1, 2))
    lengths = gather_array(np.array([len(rle["counts"]) for rle in own], dtype=np.int64))
    text = gather_array(np.frombuffer(bytearray().join(rle["counts"] for rle in own), dtype=np.uint8)).tobytes()
    ends = np.cumsum(lengths).tolist()
    return [
        {"size": size, "counts": text[end - length : end]}
        for size, length, end in zip(sizes.tolist(), lengths.tolist(), ends, strict=True)
    ]
