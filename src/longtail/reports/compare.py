"""Whether one recipe is better than another: differences paired by seed, and what seeds alone would do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; further ones use the last, which is safe
STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip

Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class Difference:
    """One metric of one recipe minus the same of the first recipe, seed by seed.

    Attributes:
        by_seed: the differences, in the metric's own unit (0..1).
        mean: their mean; None without a common seed.
        half_width: half the 95 % interval of the mean by Student's t; None with fewer than two seeds.
    """

    by_seed: dict[int, float]
    mean: float | None
    half_width: float | None

    @property
    def verdict(self) -> str:
        """``gain``, ``loss``, or why neither may be said."""
        if self.mean is None:
            return "not comparable"
        if self.half_width is None:
            return "one seed: cannot be told from noise"
        if abs(self.mean) <= self.half_width:
            return "no difference beyond the noise of the seeds"
        return "gain" if self.mean > 0 else "loss"


def difference(metric: str, runs: Mapping[int, Metrics], reference: Mapping[int, Metrics]) -> Difference:
    """Compares one metric over the seeds that both have.

    Args:
        metric: its name, e.g. ``APr``.
        runs, reference: metrics by seed; a metric may be missing or None (no class behind the mean).
    """
    by_seed: dict[int, float] = {}
    for seed in sorted(set(runs) & set(reference)):
        value, base = runs[seed].get(metric), reference[seed].get(metric)
        if value is not None and base is not None:
            by_seed[seed] = value - base
    values = list(by_seed.values())
    if not values:
        return Difference(by_seed, None, None)
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Difference(by_seed, mean, None)
    quantile = STUDENT_T[min(len(values) - 1, len(STUDENT_T)) - 1]
    return Difference(by_seed, mean, quantile * statistics.stdev(values) / math.sqrt(len(values)))


def spread(metric: str, runs: Mapping[int, Metrics]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1) of a metric over seeds; None where there are too few values."""
    values = [value for metrics in runs.values() if (value := metrics.get(metric)) is not None]
    if not values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
