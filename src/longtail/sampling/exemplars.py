"""Which objects represent their class, and how many of every class make smooth-tail data (step-wise learning, 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray


def exemplar_ranks(
    label: NDArray[np.int32],
    score: NDArray[np.float32],
    image: NDArray[np.int32],
    *,
    ids: NDArray[np.int64] | None = None,
    confidence: float = 0.5,
    one_per_image: bool = True,
) -> NDArray[np.int64]:
    """(A,) place of every object among those of its class, 0 = the best.

    The objects of a class are sorted by score, equal scores by annotation id. Walking down this order, objects above
    ``confidence`` whose image has not given one yet come first; all others follow, in the same order. The first m of a
    list are the list for m.

    Args:
        label: (A,) class of every object.
        score: (A,) its score.
        image: (A,) its image.
        ids: (A,) annotation ids; None = the positions.
        confidence: objects come first above this score, which itself is not enough.
        one_per_image: whether among those that come first every image has at most one object of the class.
    """
    ties = np.arange(len(label)) if ids is None else ids
    order = np.lexsort((ties, -score.astype(np.float64), label))
    by_label, by_image = label[order].astype(np.int64), image[order].astype(np.int64)
    first = score[order] > confidence
    if one_per_image and len(order):
        pairs = by_label * (int(by_image.max()) + 1) + by_image
        best_of_image = np.zeros(len(order), dtype=np.bool_)
        best_of_image[np.unique(pairs, return_index=True)[1]] = True
        first &= best_of_image
    again = np.lexsort((np.arange(len(order)), ~first, by_label))
    by_label = by_label[again]
    begin = np.searchsorted(by_label, by_label)
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order[again]] = np.arange(len(order)) - begin
    return ranks


def select_exemplars(
    label: NDArray[np.int32],
    score: NDArray[np.float32],
    image: NDArray[np.int32],
    counts: NDArray[np.int64],
    *,
    ids: NDArray[np.int64] | None = None,
    confidence: float = 0.5,
    one_per_image: bool = True,
) -> NDArray[np.bool_]:
    """(A,) which objects are among the first ``counts`` (C,) of their class; a class with fewer keeps all.

    Args:
        label, score, image, ids, confidence, one_per_image: as for :func:`exemplar_ranks`; labels are 0..C-1.
        counts: (C,) objects per class, at least 0.
    """
    ranks = exemplar_ranks(label, score, image, ids=ids, confidence=confidence, one_per_image=one_per_image)
    return ranks < counts[label]


def smooth_tail_split(
    image_counts: NDArray[np.int64], *, edges: Sequence[int] = (30,), counts: Sequence[int | Literal["all"]] = (30, 200)
) -> NDArray[np.int64]:
    """(C,) objects per class of a smooth-tail set.

    The default is the set that head classes dominate; ``counts=("all", 50)`` is the one that tail classes dominate.

    Args:
        image_counts: (C,) training images of every class.
        edges: a class belongs to the next part from so many images on; ascending.
        counts: objects per class of every part, that of the rarest classes first; ``"all"`` = no limit.

    Raises:
        ValueError: edges that do not ascend, or another number of counts than of parts.
    """
    part = class_parts(image_counts, edges)
    if len(counts) != len(edges) + 1:
        raise ValueError(f"{len(edges)} edges make {len(edges) + 1} parts, got {len(counts)} counts")
    limits = [np.iinfo(np.int64).max if count == "all" else count for count in counts]
    return np.array(limits, dtype=np.int64)[part]


def class_parts(image_counts: NDArray[np.int64], edges: Sequence[int]) -> NDArray[np.int64]:
    """(C,) part of every class, 0 = that of the rarest classes; a class with as many images as an edge is above it.

    Raises:
        ValueError: edges that do not ascend.
    """
    if list(edges) != sorted(set(edges)):
        raise ValueError(f"edges must ascend, got {list(edges)}")
    return np.searchsorted(np.asarray(edges, dtype=np.int64), image_counts, side="right").astype(np.int64)
