"""What a model is given in mixed precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longtail.training.setup import join_processes


class Watching(nn.Module):
    """Keeps what it is given, and how its layer and autocast round."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.given: dict[str, Any] = {}

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        self.given = {"image": images[0], **targets[0]}
        self.given["made"] = self.layer(targets[0]["boxes"])
        return {"loss": self.given["made"].sum()}


def test_boxes_and_pictures_are_not_rounded() -> None:
    fabric = join_processes("cpu", precision="bf16-mixed")
    watching = Watching()
    model = fabric.setup(watching)
    boxes = torch.tensor([[1003.7, 601.3, 1010.2, 604.9]])
    picture = torch.rand(3, 4, 4)
    losses = model([picture], [{"boxes": boxes}])
    assert watching.given["boxes"].dtype == torch.float32
    assert torch.equal(watching.given["boxes"], boxes) and torch.equal(watching.given["image"], picture)
    assert watching.given["made"].dtype == torch.bfloat16, "layers still compute in half precision"
    assert losses["loss"].dtype == torch.float32


def test_full_precision_stays_what_it_was() -> None:
    watching = Watching()
    fabric = join_processes("cpu")
    fabric.setup(watching)([torch.rand(3, 4, 4)], [{"boxes": torch.rand(2, 4)}])
    assert watching.given["made"].dtype == torch.float32
    assert fabric.strategy.precision.precision == "32-true"
