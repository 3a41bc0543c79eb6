"""Defects in segmentations, and the bounds of sound ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.findings import Findings, is_number
from longtail.data.masks import RLE, MaskColumn

if TYPE_CHECKING:
    from longtail.data.check_entries import Places
    from longtail.data.entries import Content


def examine_masks(content: Content, places: Places, findings: Findings) -> NDArray[np.float64]:
    """Finds masks that do not fit their picture, and masks that disagree with their boxes.

    Returns:
        (A, 4) left, top, width, height of every sound mask inside its picture, NaN where there is none.
    """
    ids, bounds = content.annotation_ids, content.bounds.copy()
    if content.masks is None:
        return bounds
    rows = misfits(content.masks, places)
    for row in rows.tolist():
        height, width = places.sizes[places.image_row[row]].astype(int).tolist()
        own = content.masks.code_size[row].tolist()
        findings.add("mask-size", row, ids[row], f"{ids[row]!r}: {own}, the picture {[height, width]} (height, width)")
    bounds[rows] = np.nan
    with np.errstate(invalid="ignore", over="ignore"):
        _inside(places, bounds)
        overlap = iou(bounds, content.boxes)
        wrong = places.sound & np.isfinite(bounds).all(axis=1) & ~(overlap >= 0.5)
    findings.add_rows(
        "mask-box",
        np.flatnonzero(wrong).tolist(),
        ids,
        lambda row: f"{ids[row]!r}: bbox {content.boxes[row].tolist()}, mask {bounds[row].round(1).tolist()}",
    )
    return bounds


def misfits(masks: MaskColumn, places: Places) -> NDArray[np.int64]:
    """Rows of run-length encodings of another size than their picture."""
    sizes = places.sizes_of_annotations()
    known = (masks.kind == RLE) & (sizes > 0).all(axis=1)
    return np.flatnonzero(known & (masks.code_size != sizes).any(axis=1)).astype(np.int64)


def defect(given: Any) -> str:
    """The code of what is wrong with a segmentation by itself, or nothing."""
    if given is None or (isinstance(given, list) and not given):
        return "mask-missing"
    if isinstance(given, dict):
        return _code_defect(given)
    if not isinstance(given, list):
        return "mask-type"
    for polygon in given:
        code = polygon_defect(polygon)
        if code:
            return code
    return ""


def polygon_defect(polygon: Any) -> str:
    """The code of what is wrong with one polygon, or nothing."""
    if not isinstance(polygon, list):
        return "mask-type"
    kinds = set(map(type, polygon))
    if not kinds <= {float, int} or (int in kinds and not all(map(is_number, polygon))):
        return "mask-type"
    if not math.isfinite(math.fsum(polygon)):
        return "mask-type"
    if len(polygon) % 2:
        return "mask-odd"
    return "mask-points" if len(polygon) < 6 else ""


def _code_defect(given: dict[str, Any]) -> str:
    size, counts = given.get("size"), given.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and 0 < n < 2**31 for n in size):
        return "mask-rle"
    if isinstance(counts, str):
        lengths = run_lengths(counts)
    elif isinstance(counts, list) and all(type(n) is int and 0 <= n < 2**31 for n in counts):
        lengths = np.array(counts, dtype=np.int64)
    else:
        return "mask-rle"
    if lengths is None or int(lengths.sum()) != size[0] * size[1]:
        return "mask-rle"
    return "mask-empty" if not lengths[1::2].any() else ""


def run_lengths(text: str) -> NDArray[np.int64] | None:
    """The run lengths behind COCO's compressed text, or None if it is broken.

    Every character holds five bits (lowest first) and a flag "more follows"; numbers are signed, and from the fourth on
    they are differences to the last but one.
    """
    try:
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        return None
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = np.flatnonzero((codes & 32) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    digits = last - first + 1
    if digits.max() > 8:
        return None
    place = np.arange(len(codes)) - np.repeat(first, digits)
    values = np.add.reduceat((codes & 31) << (5 * place), first)
    values = np.where(codes[last] & 16, values - (np.int64(1) << (5 * digits)), values)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return None if (values < 0).any() else values


def iou(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) overlap of pairs of boxes (left, top, width, height)."""
    low = np.maximum(boxes[:, :2], others[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    union = boxes[:, 2:].prod(axis=1) + others[:, 2:].prod(axis=1) - common
    found: NDArray[np.float64] = np.divide(common, union, out=np.zeros_like(union), where=union > 0)
    return found


def _inside(places: Places, bounds: NDArray[np.float64]) -> None:
    """Clips bounds to their pictures where these have a size."""
    sizes = places.sizes_of_annotations()[:, ::-1]
    known = (sizes > 0).all(axis=1)
    near = np.clip(bounds[known, :2], 0, sizes[known])
    far = np.clip(bounds[known, :2] + bounds[known, 2:], 0, sizes[known])
    bounds[known] = np.concatenate((near, far - near), axis=1)
