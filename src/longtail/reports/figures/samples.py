"""Samples of every class with and without virtual features (FASA, figure 1a)."""

from __future__ import annotations

import numpy as np

from longtail.reports.drawings import GROUP_COLOURS
from longtail.reports.figures.canvas import Drawing, panels
from longtail.reports.samples import Samples
from longtail.reports.tables import GROUP_NAMES


def draw_samples(samples: Samples) -> Drawing:
    """Objects that the stage saw, as a line, and with the virtual features added, as points by group; classes from the
    most frequent on."""
    order = np.argsort(-samples.statistics.instance_counts, kind="stable")
    order = order[samples.statistics.instance_counts[order] > 0]
    group = samples.statistics.group[order]
    objects, virtual = samples.objects[order], samples.virtual[order]
    rank = np.arange(1, len(order) + 1)
    canvas, (axes,) = panels(1)
    axes.plot(rank, objects, color="black", linewidth=1, label="objects seen")
    for letter, name in GROUP_NAMES.items():
        own = group == letter
        if own.any():
            total = (objects + virtual)[own]
            axes.scatter(rank[own], total, s=8, color=GROUP_COLOURS[letter], label=f"and virtual, {name}")
    axes.set(yscale="log", xlabel="class, most frequent first", ylabel="samples in training")
    axes.legend(fontsize=7)
    names = samples.statistics.names
    rows = [
        [names[c], letter, int(seen), float(drawn)]
        for c, letter, seen, drawn in zip(order.tolist(), group.tolist(), objects, virtual, strict=True)
    ]
    return Drawing("samples", canvas, ("class", "group", "objects", "virtual"), rows)
