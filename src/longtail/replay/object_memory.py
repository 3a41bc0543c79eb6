"""Object-centric sampling of RIO: rows of weak classes repeated at the input of the last layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.replay.base import FeatureReplay, Level, Pool, RegionRows, ReplayRows


class ObjectMemory(FeatureReplay):
    """Repeats the regions of the targeted classes present in the batch (RIO, section on object-centric sampling).

    ``source="current"`` is the form without a memory bank (figure 6c; the released code does not have it, so this is
    our reading of the text): every targeted class among the labels of this step's regions, of whichever image, gives
    exactly ``count`` rows, whether it has one region or many. They are its current rows in their order, from the start
    again when they run out. The features carry no graph, so the rows train the last layers only, the classifier and
    the box regressor; they enter the same mean as the real rows. Nothing is kept from one step to the next.

    The repeated rows have gt_index and image_index -1, so that whatever is averaged per object or per image counts
    an object once.

    Args:
        num_classes: foreground classes C, at least 1.
        targeted: (C,) bool, the classes to repeat; see :func:`targeted_classes`.
        count: rows per targeted class present, >= 0; published 20. 0 switches the part off.
        source: ``"current"``.

    Shapes:
        rows.features (N, D), rows.labels (N,) in 0..C. With K targeted classes present, K * ``count`` rows come back,
        ordered by class; their weight is 1.

    Raises:
        ValueError: ``targeted`` is not a bool vector of length C, ``count`` is negative or ``source`` is unknown.
    """

    level: ClassVar[Level] = "embedded"

    targeted: Tensor

    def __init__(
        self, num_classes: int, targeted: Tensor, *, count: int = 20, source: Literal["current"] = "current"
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if targeted.shape != (num_classes,) or targeted.dtype != torch.bool:
            raise ValueError(
                f"targeted must be a bool tensor of shape ({num_classes},), "
                f"got {targeted.dtype} of shape {tuple(targeted.shape)}"
            )
        if count < 0:
            raise ValueError(f"count must be >= 0, got {count}")
        if source != "current":
            raise ValueError(f'source must be "current", got {source!r}')
        self.num_classes = num_classes
        self.count = count
        self.source = source
        self.register_buffer("targeted", targeted.clone())

    def step(
        self, rows: RegionRows, targets: Sequence[Mapping[str, Any]], pool: Pool, update_state: bool
    ) -> ReplayRows | None:
        """``count`` rows per targeted class present, or None if there is none or ``update_state`` is False."""
        if self.count == 0 or not update_state:
            return None
        repeated = self._repeated(rows.labels)
        if repeated.shape[0] == 0:
            return None
        nowhere = torch.full_like(repeated, -1)
        return ReplayRows(
            features=rows.features.detach()[repeated],
            labels=rows.labels[repeated],
            proposals=rows.proposals[repeated],
            gt_boxes=rows.gt_boxes[repeated],
            gt_index=nowhere,
            image_index=nowhere,
            weight=torch.ones(repeated.shape, device=repeated.device),
        )

    def _repeated(self, labels: Tensor) -> Tensor:
        """Indices (M,) of the rows to repeat. The number of classes present goes to the host once."""
        per_class = labels.new_zeros(self.num_classes + 1).index_add_(0, labels, torch.ones_like(labels))
        by_class = labels.argsort(stable=True)  # rows of class 0, of class 1, ..., each in their order
        start = per_class.cumsum(0) - per_class
        present = ((per_class[:-1] > 0) & self.targeted).nonzero().squeeze(1)
        turn = torch.arange(self.count, device=labels.device)
        cycled = turn % per_class[present].unsqueeze(1)  # (K, count)
        return by_class[(start[present].unsqueeze(1) + cycled).flatten()]


def targeted_classes(image_counts: Tensor | NDArray[np.int64] | Sequence[int], threshold: int = 30) -> Tensor:
    """Classes that RIO replays: those with at most ``threshold`` training images.

    Args:
        image_counts: (C,) training images per class, >= 0.
        threshold: published 30.

    Returns:
        (C,) bool.
    """
    return torch.as_tensor(image_counts) <= threshold
