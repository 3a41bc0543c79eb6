"""Feature transfer (Yin et al., Feature transfer learning for face recognition, CVPR 2019) between region features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from longtail.losses.state import sum_over_ranks
from longtail.replay.base import FeatureReplay, Level, Pool, RegionRows, ReplayRows, check_targeted, virtual_rows
from longtail.replay.drawing import choose_among
from longtail.replay.running_moments import RunningMoments


class TransferredFeatures(FeatureReplay):
    """Adds ``c_t + Q Q^T (x - c_h)``: what sets a region x of a strong class h apart from its centre c_h, around the
    centre c_t of a weak class t.

    Classes that are not targeted are strong. The columns of Q are the leading directions of the covariance that the
    strong classes share, of their regions around their centres. Centres and covariance move towards every step; Q
    follows by one orthogonal iteration, ``Q <- qr(covariance Q)``, so that nothing waits for an eigenvalue problem. In
    every step ``count`` regions of strong classes are drawn without replacement and each gets a weak class, drawn
    evenly among those seen so far.

    Deviations from the paper, which is about faces: running centres as in FASA instead of one recomputed centre per
    identity, no reconstruction loss, and features and classifier train together instead of in turns. The rows enter the
    mean of the real ones, train no box and change no state of the loss. They carry no graph.

    Args:
        num_classes: foreground classes C, at least 1.
        feature_size: D, at least 1.
        targeted: (C,) bool, the weak classes.
        count: rows per step, >= 0; 0 switches the part off.
        components: columns of Q, >= 1 and at most D; published 150 of 320.
        momentum: of the centres, in (0, 1].
        covariance_momentum: of the covariance, in (0, 1].
        sync: whether the state is that of all processes together.

    State (shared): ``centres``; covariance (D, D); basis (D, components), Q; steps with a strong region.

    Shapes:
        rows.features (N, D), rows.labels (N,) in 0..C. (min(count, N), D) come back, weight 1 or, where there is no
        strong region or no weak class, 0.

    Raises:
        ValueError: ``targeted`` is not a bool vector of length C, or a number is out of range.
    """

    level: ClassVar[Level] = "embedded"

    targeted: Tensor
    covariance: Tensor
    basis: Tensor
    steps: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_size: int,
        targeted: Tensor,
        *,
        count: int = 32,
        components: int = 150,
        momentum: float = 0.1,
        covariance_momentum: float = 0.01,
        sync: bool = True,
    ) -> None:
        super().__init__()
        check_targeted(targeted, num_classes)
        if count < 0 or components < 1 or not 0 < covariance_momentum <= 1:
            raise ValueError(
                "count is >= 0, components >= 1 and covariance_momentum in (0, 1]; "
                f"got {count}, {components} and {covariance_momentum}"
            )
        self.num_classes = num_classes
        self.count = count
        self.covariance_momentum = covariance_momentum
        self.sync = sync
        self.per_rank = frozenset() if sync else frozenset({"covariance", "basis", "steps"})  # type: ignore[misc]
        self.centres = RunningMoments(num_classes, feature_size, momentum=momentum, sync=sync)
        self.register_buffer("targeted", targeted.clone())
        self.register_buffer("covariance", torch.zeros(feature_size, feature_size))
        self.register_buffer("basis", torch.eye(feature_size, min(components, feature_size)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def step(
        self, rows: RegionRows, targets: Sequence[Mapping[str, Any]], pool: Pool, update_state: bool
    ) -> ReplayRows | None:
        """Takes this step's rows in and transfers some; None without rows or if ``update_state`` is False."""
        if self.count == 0 or not update_state:
            return None
        self.centres.update(rows.features, rows.labels)
        known = rows.labels.clamp(max=self.num_classes - 1)
        strong = (rows.labels < self.num_classes) & ~self.targeted[known]
        apart = (rows.features.detach().to(self.basis.dtype) - self.centres.mean[known]) * strong.unsqueeze(1)
        self._follow(apart, strong.sum())
        count = min(self.count, rows.labels.shape[0])
        if count == 0:
            return None
        lot = torch.rand(strong.shape, device=strong.device).masked_fill(~strong, -1)
        lot, chosen = lot.topk(count)
        labels, possible = choose_among(self.targeted & self.centres.seen, count)
        features = self.centres.mean[labels] + apart[chosen] @ self.basis @ self.basis.T
        return virtual_rows(rows, features.to(rows.features.dtype), labels, ((lot >= 0) & possible).float())

    def _follow(self, apart: Tensor, number: Tensor) -> None:
        """Moves covariance and basis; ``apart`` (N, D) are deviations from centres, 0 in all but ``number`` rows."""
        total = sum_over_ranks(torch.cat([(apart.T @ apart).flatten(), number[None].to(apart.dtype)]), sync=self.sync)
        scatter, number = total[:-1].view_as(self.covariance), total[-1]
        share = torch.where(self.steps > 0, self.covariance_momentum, 1.0) * (number > 0)
        self.covariance.lerp_(scatter / number.clamp(min=1), share)
        self.steps += number > 0
        moved = torch.linalg.qr(self.covariance @ self.basis).Q
        self.basis.copy_(torch.where(self.steps > 0, moved, self.basis))
