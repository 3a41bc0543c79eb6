"""FASA: virtual features of rare classes, drawn from running moments as often as the classes need them (ICCV 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from longtail.losses.state import from_first
from longtail.replay.base import FeatureReplay, Level, Pool, RegionRows, ReplayRows
from longtail.replay.class_groups import Grouping, Noise, group_classes
from longtail.replay.running_moments import Moment, RunningMoments, SingleSample

SALT = 0x46415341  # sets these draws apart from others made of the same seed


class VirtualFeatures(FeatureReplay):
    """At most one feature per class and step, drawn from the class's running Gaussian and seen by the classifier alone.

    Every training step updates the moments with the step's foreground rows, and then draws ``u`` in [0, 1) for every
    class: those with ``u < prob`` that have been seen give a row ``mean + sqrt(var) * noise``. The rows' losses have a
    mean of their own, times ``loss_weight``; they train no box and change no state of the loss (section 3.1, and the
    released code).

    Probabilities begin as ``scale * ((1/N_c) / sum_k (1/N_k)) ** power``, clipped to 1 (equation 4 has power 1, so that
    ``scale`` rows are drawn per step at first). :meth:`adapt` raises those of groups whose validation loss fell and
    lowers those of groups whose loss rose (section 3.2).

    Args:
        num_classes: C.
        feature_size: D, width of the classifier's input.
        instance_counts: (C,) training instances, >= 0; a class without any is never drawn.
        scale: s, rows expected per step at the start, >= 0.
        power: exponent.
        loss_weight: factor of the rows' mean; 0.1 in the released code, not in the paper.
        warmup_steps: training steps that collect moments only.
        momentum, moment, single_sample: see :class:`RunningMoments`.
        raise_factor, lower_factor: alpha >= 1 and beta in (0, 1]; published 1.1 and 0.9. Both 1 = static sampling.
        grouping, eps, min_samples, noise: which classes move together; see :func:`group_classes`. ``"frequency"`` takes
            ``groups``.
        groups: (C,) int64 for ``grouping="frequency"``, or None.
        norm: loss of a class in a round: ``"class_mean"`` over its rows; ``"total"``, its sum over the rows of all
            classes, as in the released code, where a group's loss is then the sum over its classes.
        sync: whether all processes share the moments, groups, probabilities and the mean of the rows' losses; draws
            differ in any case.

    Shapes:
        rows.features (N, D), rows.labels (N,) in 0..C. M rows come back, 0 < M <= C, one per class, in order of the
        class; their weight is 1.

    Attributes:
        prob: (C,) float64 in 0..1.
        steps: training steps so far.
        draws: whether rows are drawn, True at first; without them the part collects moments and follows the rounds.

    Raises:
        ValueError: arguments out of range.
    """

    level: ClassVar[Level] = "embedded"

    prob: Tensor
    steps: Tensor
    previous_loss: Tensor
    previous_count: Tensor
    rounds: Tensor
    groups: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_size: int,
        instance_counts: Tensor,
        *,
        scale: float = 1.0,
        power: float = 1.0,
        loss_weight: float = 0.1,
        warmup_steps: int = 0,
        momentum: float = 0.1,
        moment: Moment = "var",
        single_sample: SingleSample = "zero",
        raise_factor: float = 1.1,
        lower_factor: float = 0.9,
        grouping: Grouping | Literal["frequency"] = "fisher_dbscan",
        groups: Tensor | None = None,
        eps: float | None = None,
        min_samples: int = 2,
        noise: Noise = "nearest",
        norm: Literal["class_mean", "total"] = "class_mean",
        sync: bool = True,
    ) -> None:
        super().__init__()
        if scale < 0 or power < 0 or loss_weight < 0 or warmup_steps < 0:
            raise ValueError(
                "scale, power, loss_weight and warmup_steps must be >= 0, got "
                f"{scale}, {power}, {loss_weight} and {warmup_steps}"
            )
        if raise_factor < 1 or not 0 < lower_factor <= 1:
            raise ValueError(
                f"raise_factor must be >= 1 and lower_factor in (0, 1], got {raise_factor} and {lower_factor}"
            )
        self.num_classes = num_classes
        self.loss_weight = loss_weight
        self.warmup_steps = warmup_steps
        self.raise_factor = raise_factor
        self.lower_factor = lower_factor
        self.grouping = grouping
        self.eps = eps
        self.min_samples = min_samples
        self.noise = noise
        self.norm = norm
        self.sync = sync
        self.draws = True
        if not sync:
            self.per_rank = frozenset({"prob"})  # type: ignore[misc]
        self.moments = RunningMoments(
            num_classes, feature_size, momentum=momentum, moment=moment, single_sample=single_sample, sync=sync
        )
        self.register_buffer("prob", initial_probabilities(instance_counts, scale=scale, power=power))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
        self.register_buffer("previous_loss", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("previous_count", torch.zeros(num_classes, dtype=torch.float64))
        fixed = torch.arange(num_classes) if groups is None else groups.clone()
        if fixed.shape != (num_classes,):
            raise ValueError(f"groups must have shape ({num_classes},), got {tuple(fixed.shape)}")
        self.register_buffer("groups", fixed)

    def step(
        self, rows: RegionRows, targets: Sequence[Mapping[str, Any]], pool: Pool, update_state: bool
    ) -> ReplayRows | None:
        """Takes this step's rows in and draws; None if nothing is drawn, ``update_state`` is False, or in evaluation
        mode: a pass that fills another part's memory is no training step."""
        if not update_state or not self.training:
            return None
        self.moments.update(rows.features, rows.labels)
        if not self.draws:
            self.steps += 1
            return None
        drawn, noise = self._draw(targets)
        self.steps += 1
        if drawn.shape[0] == 0:
            return None
        features = self.moments.mean[drawn] + self.moments.var[drawn].sqrt() * noise
        nowhere = torch.full_like(drawn, -1)
        boxes = rows.proposals.new_zeros(drawn.shape[0], 4)
        boxes[:, 2:] = 1  # never used: the rows train no box
        return ReplayRows(
            features=features.to(rows.features.dtype),
            labels=drawn,
            proposals=boxes,
            gt_boxes=boxes.clone(),
            gt_index=nowhere,
            image_index=nowhere,
            weight=torch.ones(drawn.shape, device=drawn.device),
            joins_normaliser=False,
            trains_box=False,
            loss_weight=self.loss_weight,
            shares_mean=self.sync,
            updates_loss_state=False,
        )

    def _draw(self, targets: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Classes (M,) that give a row, and standard normal noise (M, D). Drawn on the host, so that every device gets
        the same; the number of classes is the one thing read back."""
        generator = draw_source(targets, self.number)
        chance = torch.rand(self.num_classes, generator=generator, dtype=torch.float64)
        wanted = (chance.to(self.prob.device, non_blocking=True) < self.prob) & self.moments.seen
        wanted &= self.steps >= self.warmup_steps
        drawn = wanted.nonzero().squeeze(1)
        noise = torch.randn(drawn.shape[0], self.moments.mean.shape[1], generator=generator)
        return drawn, noise.to(self.prob.device, non_blocking=True)

    @torch.no_grad()
    def adapt(self, loss_sum: Tensor, count: Tensor) -> None:
        """Moves the probabilities after a validation round (section 3.2). The first round, and those before the warm-up
        is over, only set what the next is compared with. With ``sync`` the first process's moments, groups and
        probabilities hold for all, which therefore must all call it.

        Args:
            loss_sum: (C + 1,) summed classification loss of the validation rows of every class, background last, over
                all processes.
            count: (C + 1,) their number.
        """
        if self.norm == "total":
            current = loss_sum / count.sum().clamp(min=1)
        else:
            current = loss_sum / count.clamp(min=1)
        current, present = current[: self.num_classes].double(), (count[: self.num_classes] > 0).double()
        self.moments.align()
        adapts = self.raise_factor > 1 or self.lower_factor < 1
        if adapts and self.rounds > 0 and self.steps >= self.warmup_steps:
            groups = from_first(self._grouped().to(self.prob.device), sync=self.sync)
            change = self._change(groups, current, present)
            factor = torch.ones_like(change).masked_fill(change > 0, self.lower_factor)
            factor = factor.masked_fill(change < 0, self.raise_factor)[groups.clamp(min=0)].masked_fill(groups < 0, 1.0)
            self.prob.copy_(from_first((self.prob * factor).clamp(0, 1), sync=self.sync))
        self.previous_loss.copy_(current)
        self.previous_count.copy_(present)
        self.rounds += 1

    @torch.no_grad()
    def follow(self, other: VirtualFeatures) -> None:
        """Takes another part's probabilities over: those of a cascade's first stage hold for all of them. The moments
        become those of the first process, as in :meth:`adapt`."""
        self.moments.align()
        self.prob.copy_(other.prob)

    def _change(self, groups: Tensor, current: Tensor, present: Tensor) -> Tensor:
        """(G,) how much every group's loss rose. With ``norm="class_mean"`` it is the mean over the classes with rows
        in both rounds, and 0 for a group without such a class; with ``"total"`` the sum over all."""
        size = int(groups.max()) + 1 if groups.numel() else 0
        difference = current - self.previous_loss
        member = groups >= 0
        if self.norm == "class_mean":
            member = member & (present > 0) & (self.previous_count > 0)
        total = difference.new_zeros(max(size, 1)).index_add_(0, groups[member], difference[member])
        if self.norm == "total":
            return total
        classes = difference.new_zeros(max(size, 1)).index_add_(0, groups[member], torch.ones_like(difference[member]))
        return total / classes.clamp(min=1)

    def _grouped(self) -> Tensor:
        """(C,) group of every class, -1 = none."""
        if self.grouping == "frequency":
            return self.groups
        return torch.as_tensor(
            group_classes(
                self.moments.mean,
                self.moments.var,
                self.moments.seen,
                grouping=self.grouping,
                eps=self.eps,
                min_samples=self.min_samples,
                noise=self.noise,
            )
        )


def initial_probabilities(instance_counts: Tensor, *, scale: float, power: float) -> Tensor:
    """Equation 4 with the released code's exponent and clipping, (C,) float64 in 0..1.

    Args:
        instance_counts: (C,) >= 0; a count of 0 gives 0.
        scale: s.
        power: exponent of the share.
    """
    counts = instance_counts.double()
    inverse = torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)
    share = inverse / inverse.sum().clamp(min=1e-300)
    return torch.where(counts > 0, (scale * share.pow(power)).clamp(0, 1), 0.0)


def draw_source(targets: Sequence[Mapping[str, Any]], number: int = 0) -> torch.Generator | None:
    """The source of a step's draws, made of the first picture's seed and the part's number, or None = PyTorch's own."""
    seed = targets[0].get("draw_seed") if targets else None
    return None if seed is None else torch.Generator().manual_seed((int(seed) ^ (SALT + number)) & (2**63 - 1))
