"""Long-tailed parts of sets in which every picture has one class (Cui et al., CVPR 2019; Cao et al., NeurIPS 2019)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longtail.schema.errors import UsageError

Profile = Literal["exponential", "step"]


def profile_counts(
    most: int, num_classes: int, *, imbalance: float, profile: Profile = "exponential"
) -> NDArray[np.int64]:
    """Pictures of every class, most frequent first.

    ``exponential``: ``int(most * imbalance ** (-c / (C - 1)))`` for class c. ``step``: ``most`` for the first half of
    the classes, ``int(most / imbalance)`` for the others.

    Args:
        most: pictures of the most frequent class.
        num_classes: C.
        imbalance: most frequent to rarest class, >= 1.
        profile: form.

    Raises:
        UsageError: an imbalance below 1, or one that leaves a class without pictures.
    """
    if imbalance < 1:
        raise UsageError(f"the imbalance is the most frequent class over the rarest, at least 1; got {imbalance}")
    place = np.arange(num_classes)
    if profile == "step":
        share = np.where(place < num_classes // 2, 1.0, 1.0 / imbalance)
    else:
        share = (1.0 / imbalance) ** (place / max(1, num_classes - 1))
    counts = np.floor(most * share + 1e-9).astype(np.int64)
    if counts.min(initial=1) < 1:
        raise UsageError(f"an imbalance of {imbalance:g} leaves nothing of {most} pictures; give at most {most}")
    return counts


def choose_rows(labels: NDArray[np.int64], counts: NDArray[np.int64], *, seed: int = 0) -> NDArray[np.int64]:
    """Rows of a long-tailed part, ascending: ``counts[c]`` of class c, drawn at random.

    Raises:
        UsageError: a class has fewer rows than are wanted.
    """
    generator = np.random.default_rng(seed)
    chosen = []
    for label, wanted in enumerate(counts.tolist()):
        own = np.flatnonzero(labels == label)
        if len(own) < wanted:
            raise UsageError(f"class {label} has {len(own)} pictures, {wanted} are wanted")
        chosen.append(generator.permutation(own)[:wanted])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)
