"""MoEx (Li et al., On feature normalization and data augmentation, CVPR 2021) between regions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from longtail.replay.base import FeatureReplay, Level, Pool, RegionRows, ReplayRows, virtual_rows

Norm = Literal["position", "instance", "layer"]
AXES = {"position": (1,), "instance": (2, 3), "layer": (1, 2, 3)}
EPSILON = 1e-5


class ExchangedMoments(FeatureReplay):
    """Gives objects the mean and deviation of other objects' features: ``(a - mu_a) / sd_a * sd_b + mu_b``.

    On a share ``probability`` of the steps every foreground region A of the step is paired with another one, B, by a
    random permutation. The mixed region takes A's place in the classification loss, labelled ``mixing`` A and
    ``1 - mixing`` B; A itself still trains its box. ``sd = sqrt(var + 1e-5)`` with the unbiased variance.

    The paper mixes images; FASA's table 2 has it for detection without any detail, so mixing foreground regions of all
    images of the process is our reading. Unlike stored features these carry the graph: they replace regions that would
    have trained the backbone, too.

    Args:
        probability: share of the steps, in [0, 1].
        mixing: lambda, weight of A's label, in [0, 1]; published 0.9.
        norm: moments of every position over the channels (``"position"``, PONO, the paper's best), of every channel
            over the positions, or of the whole region.

    Shapes:
        rows.features (N, K, h, w), rows.labels (N,) in 0..C; (F, K, h, w) come back for F foreground rows.

    Raises:
        ValueError: a share outside [0, 1], or an unknown norm.
    """

    level: ClassVar[Level] = "pooled"

    def __init__(
        self, num_classes: int, *, probability: float = 0.5, mixing: float = 0.9, norm: Norm = "position"
    ) -> None:
        super().__init__()
        if not (0 <= probability <= 1 and 0 <= mixing <= 1):
            raise ValueError(f"probability and mixing lie in [0, 1], got {probability} and {mixing}")
        if norm not in AXES:
            raise ValueError(f"norm is one of {', '.join(AXES)}; got {norm!r}")
        self.num_classes = num_classes
        self.probability = probability
        self.mixing = mixing
        self.norm = norm

    def step(
        self, rows: RegionRows, targets: Sequence[Mapping[str, Any]], pool: Pool, update_state: bool
    ) -> ReplayRows | None:
        """Mixed rows, or None in other steps, without foreground or if ``update_state`` is False."""
        if not update_state or torch.rand(()) >= self.probability:  # on the host, nothing waits
            return None
        first = (rows.labels < self.num_classes).nonzero().squeeze(1)
        if first.shape[0] == 0:
            return None
        second = first[torch.randperm(first.shape[0], device=first.device)]
        mean, deviation = moments(rows.features, AXES[self.norm])
        normalised = (rows.features.float()[first] - mean[first]) / deviation[first]
        features = (normalised * deviation[second] + mean[second]).to(rows.features.dtype)
        one = torch.ones(first.shape, device=first.device)
        mixed = virtual_rows(rows, features, rows.labels[first], one)
        return dataclasses.replace(
            mixed,
            second_labels=rows.labels[second],
            second_weight=one * (1 - self.mixing),
            replaces=first,
            # they stand for the rows they replace
            updates_loss_state=True,
        )


def moments(features: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of features (N, K, h, w) over ``axes``, which stay as axes of length 1; float32."""
    values = features.float()
    variance, mean = torch.var_mean(values, dim=axes, correction=1, keepdim=True)
    return mean, (variance + EPSILON).sqrt()
