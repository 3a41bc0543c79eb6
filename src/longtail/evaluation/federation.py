"""Which classes are known in which image, and the order of images."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longtail.data.table import AnnotationTable
from longtail.schema.errors import DataError


def list_pairs(
    truth: AnnotationTable, which: Literal["negatives", "not_exhaustive"]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Image rows and labels of all entries of one of the two federated lists.

    Raises:
        DataError: an image does not carry both lists.
    """
    lists = truth.negatives if which == "negatives" else truth.not_exhaustive
    if lists is None or not truth.federated:
        raise DataError(
            f"{truth.source}: LVIS rules need 'neg_category_ids' and 'not_exhaustive_category_ids' in every image; "
            "add them, or evaluate with the protocol 'coco'"
        )
    image = np.repeat(np.arange(truth.num_images), np.diff(lists.start))
    return image.astype(np.int64), lists.labels.astype(np.int64)


def known_pairs(truth: AnnotationTable) -> NDArray[np.int64]:
    """Sorted keys ``image * C + class`` of all pairs with an object or a verified absence."""
    positive = truth.image_index.astype(np.int64) * truth.num_classes + truth.label
    image, label = list_pairs(truth, "negatives")
    return np.unique(np.concatenate([positive, image * truth.num_classes + label]))


def id_ranks(ids: NDArray[Any]) -> NDArray[np.int64]:
    """Position of every image or class in ascending order of original ids; numbers come before words.

    Reference code ranks detections of equal score in this order.
    """
    given = ids.tolist()
    order = sorted(range(len(given)), key=lambda row: (isinstance(given[row], str), given[row]))
    rank = np.empty(len(given), dtype=np.int64)
    rank[order] = np.arange(len(given))
    return rank
