"""Masked feature distillation of step-wise learning (ICCV 2023, equation 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from longtail.losses.auxiliary import AuxiliaryLoss, Record


class MaskedFeatureDistillation(AuxiliaryLoss):
    """Keeps a student's feature maps close to its teacher's inside the boxes of head classes.

    With ``M`` the union of the head-class boxes on a map, ``term = sum(M * (f_S - f_T) ** 2) / (2 * sum(M))`` summed
    over channels and cells (0 where ``M`` is empty); the loss is the mean of ``term`` over every level and image.

    Args:
        head: (C,) bool, True for the classes whose boxes count.
        loss_weight: factor on the result.
        mask_space: frame of the boxes on the map. ``"image"`` (default): the picture's own extent within the padded
            batch. ``"padded"``: as the released code, relative to the whole padded map.
        mask_round: ``"code"`` (default): columns floor(x1)..floor(x2) - 1, rows ceil(y1)..ceil(y2) - 1, so that thin
            boxes vanish; ``"cover"``: floor to ceil, at least one cell.

    Records ``"maps"`` ({name: (B, K, h, w)}), ``"image_sizes"`` (list of (height, width)) and ``"batch_size"``
    ((height, width) of the padded batch). Targets hold ``boxes`` (G, 4), pixels, x1 y1 x2 y2, ``labels`` (G,) and, if
    some objects have no loss, ``chosen`` (G,), those that have one.
    """

    wants = frozenset({"maps", "image_sizes", "batch_size"})

    def __init__(
        self,
        head: Tensor,
        *,
        loss_weight: float = 1.0,
        mask_space: Literal["image", "padded"] = "image",
        mask_round: Literal["code", "cover"] = "code",
    ) -> None:
        super().__init__()
        if head.dtype != torch.bool or head.ndim != 1:
            raise ValueError(f"head must be a boolean vector, got {head.dtype} of shape {tuple(head.shape)}")
        self.register_buffer("head", head.clone(), persistent=False)
        self.head: Tensor
        self.loss_weight = loss_weight
        self.mask_space = mask_space
        self.mask_round = mask_round

    def forward(self, student: Record, teacher: Record, targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``{"loss_masked_features": scalar}``."""
        sizes: Sequence[tuple[int, int]] = student["image_sizes"]
        padded: tuple[int, int] = student["batch_size"]
        terms = []
        for name, own in student["maps"].items():
            other = teacher["maps"][name]
            mask = torch.stack(
                [
                    self.mask(
                        target["boxes"], target["labels"], size, padded, own.shape[-2:], chosen=target.get("chosen")
                    )
                    for target, size in zip(targets, sizes, strict=True)
                ]
            ).to(own.dtype)  # (B, h, w)
            error = (own - other.detach()).square().sum(dim=1)  # (B, h, w)
            terms.append((mask * error).sum(dim=(1, 2)) / (2 * mask.sum(dim=(1, 2)).clamp(min=1)))
        return {"loss_masked_features": self.loss_weight * torch.cat(terms).mean()}

    def mask(
        self,
        boxes: Tensor,
        labels: Tensor,
        size: tuple[int, int],
        padded: tuple[int, int],
        cells: Sequence[int],
        *,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Union of the head-class boxes on a map of ``cells`` (h, w), shape (h, w), bool; of the ``chosen`` (G,) ones
        if only some have a loss."""
        height, width = padded if self.mask_space == "image" else size
        h, w = int(cells[0]), int(cells[1])
        x1, y1, x2, y2 = boxes.unbind(dim=1)
        x1, x2, y1, y2 = x1 / width * w, x2 / width * w, y1 / height * h, y2 / height * h
        if self.mask_round == "code":
            left, right, top, bottom = x1.floor(), x2.floor(), y1.ceil(), y2.ceil()
        else:
            left, top = x1.floor(), y1.floor()
            right, bottom = torch.maximum(x2.ceil(), left + 1), torch.maximum(y2.ceil(), top + 1)
        column = torch.arange(w, device=boxes.device)
        row = torch.arange(h, device=boxes.device)
        in_columns = (column >= left[:, None]) & (column < right[:, None])  # (G, w)
        counts = self.head[labels] if chosen is None else self.head[labels] & chosen  # (G,), without a host read
        in_rows = (row >= top[:, None]) & (row < bottom[:, None]) & counts[:, None]  # (G, h)
        return torch.einsum("gh,gw->hw", in_rows.float(), in_columns.float()) > 0
