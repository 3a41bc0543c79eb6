"""What is left of a detector's precision when its errors are removed (Libra R-CNN, figure 8)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from longtail.evaluation.errors import ErrorAnalysis
from longtail.evaluation.removed_errors import KINDS, RECALLS, ErrorCurves
from longtail.reports.figures.canvas import Drawing, panels


def draw_errors(found: Mapping[str, tuple[ErrorCurves, ErrorAnalysis]]) -> Drawing:
    """Per run, precision over recall with the areas under the curves in the legend; last, the AP50 that every kind of
    error costs (TIDE), all runs side by side."""
    canvas, plots = panels(len(found) + 1)
    rows: list[list[object]] = []
    for axes, (run, (curves, _)) in zip(plots, found.items(), strict=False):
        below = np.zeros(len(RECALLS))
        areas = curves.areas()
        for kind in KINDS:
            line = axes.plot(RECALLS, curves.precision[kind], linewidth=0.8, label=f"[{100 * areas[kind]:.1f}] {kind}")
            axes.fill_between(RECALLS, curves.precision[kind], below, color=line[0].get_color(), alpha=0.35)
            below = curves.precision[kind]
            rows += [[run, kind, r, p] for r, p in zip(RECALLS.tolist(), curves.precision[kind].tolist(), strict=True)]
        axes.set(title=run, xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(fontsize="x-small", loc="lower left")
    kinds = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
    width = 0.8 / max(1, len(found))
    for place, (run, (_, errors)) in enumerate(found.items()):
        lost = [100 * errors.lost[kind] for kind in kinds]
        plots[-1].bar([x + place * width for x in range(len(kinds))], lost, width, label=run)
        rows += [[run, f"TIDE {kind}", "", value / 100] for kind, value in zip(kinds, lost, strict=True)]
    plots[-1].set_xticks([x + 0.4 - width / 2 for x in range(len(kinds))], kinds)
    plots[-1].set(title="AP50 lost (TIDE)", ylabel="points")
    plots[-1].legend(fontsize="x-small")
    return Drawing("errors", canvas, ("run", "kind", "recall", "precision"), rows)
