"""Regions that samplers choose: overlap of their negatives (Libra R-CNN, figure 3), and where they lie (figure 6)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longtail.reports.figures.canvas import Drawing, panels

BIN_WIDTH = 0.05


def draw_negative_overlap(overlaps: dict[str, NDArray[np.float64]], *, negative_iou: float) -> Drawing:
    """Share of every sampler's negatives by their largest IoU with an object.

    Args:
        overlaps: (N,) values in [0, ``negative_iou``) by sampler.
        negative_iou: IoU below which a candidate is negative.
    """
    edges = np.arange(0, negative_iou + BIN_WIDTH / 2, BIN_WIDTH)
    canvas, (axes,) = panels(1, width=6.0)
    width = BIN_WIDTH * 0.9 / len(overlaps)
    rows: list[list[object]] = []
    for place, (name, values) in enumerate(overlaps.items()):
        share = np.histogram(values.clip(max=edges[-1]), bins=edges)[0] / max(1, len(values))
        above = float((values > BIN_WIDTH).mean()) if len(values) else 0.0
        label = f"{name} ({100 * above:.0f} % above {BIN_WIDTH})"
        axes.bar(edges[:-1] + width * (place + 0.5), 100 * share, width, label=label)
        rows += [[name, float(left), float(part)] for left, part in zip(edges[:-1], share, strict=True)]
    axes.set(xlabel="largest IoU of a negative with an object", ylabel="% of the sampler's negatives")
    axes.legend(fontsize="small")
    return Drawing("negatives", canvas, ("sampler", "iou_from", "share"), rows)


def draw_sampled_regions(
    picture: Image.Image,
    objects: NDArray[np.float64],
    negatives: dict[str, NDArray[np.float64]],
    positives: dict[str, NDArray[np.float64]],
    *,
    most: int = 100,
) -> Drawing:
    """The picture once per sampler, with objects (green), positives (blue) and negatives (red).

    Args:
        picture: in the frame of the boxes.
        objects, negatives, positives: corners in pixels.
        most: boxes drawn of either kind at most.
    """
    canvas, plots = panels(len(negatives))
    rows: list[list[object]] = []
    for axes, name in zip(plots, negatives, strict=True):
        axes.imshow(picture)
        kinds: Sequence[tuple[str, NDArray[np.float64], str]] = (
            ("negative", negatives[name][:most], "#d62728"),
            ("positive", positives[name][:most], "#1f77b4"),
            ("object", objects, "#2ca02c"),
        )
        for kind, boxes, colour in kinds:
            for x1, y1, x2, y2 in boxes.tolist():
                axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=colour, linewidth=0.7)
                rows.append([name, kind, x1, y1, x2, y2])
        axes.set(title=name, xticks=[], yticks=[], xlim=(0, picture.width), ylim=(picture.height, 0))
    return Drawing("regions", canvas, ("sampler", "kind", "x1", "y1", "x2", "y2"), rows)
