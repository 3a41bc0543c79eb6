"""Instances per class and bank updates of simulated epochs (RIO, figure 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from longtail.reports.drawings import GROUP_COLOURS
from longtail.reports.figures.canvas import Drawing, panels
from longtail.reports.simulation import BOTH, PLAIN, REPLAYED, SAMPLED, Simulation
from longtail.reports.tables import GROUP_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {PLAIN: "#7f7f7f", SAMPLED: "#1f77b4", REPLAYED: "#e8890c", BOTH: "#2ca02c"}


def draw_epochs(simulation: Simulation) -> Drawing:
    """(a) instances per class with the sampler; (b) by group; (c) bank updates; (d) instances per class with both."""
    canvas, axes = panels(4)
    kinds = list(simulation.labels)
    last = kinds[-1]
    per_class(axes[0], simulation, SAMPLED if SAMPLED in kinds else last)
    axes[0].set_title("(a) instances per class")
    groups = simulation.groups()
    width = 0.8 / len(kinds)
    for place, kind in enumerate(kinds):
        heights = [group["instances"][kind] for group in groups]
        at = np.arange(len(groups)) + (place - (len(kinds) - 1) / 2) * width
        axes[1].bar(at, heights, width, color=COLOURS[kind], label=simulation.labels[kind])
    axes[1].set(yscale="log", ylabel="instances per epoch", title="(b) all classes of a group")
    axes[1].set_xticks(range(len(groups)), [group["group"] for group in groups])
    axes[1].legend(fontsize=7)
    updates(axes[2], simulation)
    per_class(axes[3], simulation, last)
    axes[3].set_title("(d) instances per class")
    header, rows = simulation.rows()
    return Drawing("epochs", canvas, header, rows)


def per_class(axes: Axes, simulation: Simulation, kind: str) -> None:
    """Instances of every class, most frequent first: plain as a line, the other kind as points by group."""
    order = np.argsort(-simulation.statistics.instance_counts, kind="stable")
    order = order[simulation.statistics.instance_counts[order] > 0]
    rank = np.arange(1, len(order) + 1)
    group = simulation.statistics.group[order]
    values = simulation.instances[kind][order]
    for letter, name in GROUP_NAMES.items():
        rows = group == letter
        if rows.any():
            axes.scatter(rank[rows], values[rows], s=5, color=GROUP_COLOURS[letter], label=name)
    axes.plot(rank, simulation.instances[PLAIN][order], color="black", linewidth=1, label="plain")
    axes.set(yscale="log", xlabel="class, most frequent first", ylabel=f"per epoch, {simulation.labels[kind]}")
    axes.legend(fontsize=7)


def updates(axes: Axes, simulation: Simulation) -> None:
    """How often the bank of a targeted class is updated, sorted."""
    for kind, visits in simulation.visits.items():
        values = np.sort(visits[simulation.targeted])[::-1]
        axes.plot(np.arange(1, len(values) + 1), values, color=COLOURS[kind], label=simulation.labels[kind])
    axes.set(xlabel="targeted class, sorted", ylabel="updates per epoch", title="(c) bank updates")
    if simulation.visits:
        axes.legend(fontsize=7)
