"""Loss and gradient of the box losses (Libra R-CNN, figure 5)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from longtail.losses import BalancedL1Loss, L1Loss, LGRL1Loss, SmoothL1Loss
from longtail.losses.base import BoxLoss
from longtail.reports.figures.canvas import Drawing, panels

POINTS, FARTHEST = 301, 2.0


def usual_losses() -> dict[str, BoxLoss]:
    """The losses of the paper's figure; its balanced curves have gamma 1, as its caption says."""
    balanced: dict[str, BoxLoss] = {
        f"balanced L1, alpha {alpha}": BalancedL1Loss(alpha=alpha, gamma=1.0) for alpha in (0.2, 0.3, 0.5, 1.0)
    }
    return {
        "smooth L1": SmoothL1Loss(),
        "L1": L1Loss(),
        **balanced,
        "LGR-L1, alpha 0.5, gamma 1.5": LGRL1Loss(alpha=0.5, gamma=1.5),
    }


def curves(loss: BoxLoss) -> tuple[list[float], list[float], list[float]]:
    """Difference of one offset, in 0..2, the loss there and its derivative."""
    distance = torch.linspace(0, FARTHEST, POINTS, dtype=torch.float64, requires_grad=True)
    predicted = torch.stack([distance, *[torch.zeros_like(distance)] * 3], dim=1)
    values = loss.row_losses(predicted, torch.zeros_like(predicted))
    (slope,) = torch.autograd.grad(values.sum(), distance)
    return distance.tolist(), values.tolist(), slope.tolist()


def draw_box_losses(losses: Mapping[str, BoxLoss] | None = None) -> Drawing:
    """Losses on the left, gradients on the right."""
    canvas, (left, right) = panels(2)
    rows: list[list[object]] = []
    for name, loss in (losses or usual_losses()).items():
        x, value, slope = curves(loss)
        left.plot(x, value, label=name)
        right.plot(x, slope, label=name)
        rows += [[name, *point] for point in zip(x, value, slope, strict=True)]
    for axes, title in ((left, "loss"), (right, "gradient")):
        axes.set(xlabel="difference of an offset", ylabel=title)
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    return Drawing("box-losses", canvas, ("loss", "difference", "value", "gradient"), rows)
