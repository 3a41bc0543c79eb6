"""How well pictures are classified: the share of pictures whose highest score is that of their class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longtail.data.statistics import ClassStatistics
from longtail.data.table import AnnotationTable
from longtail.evaluation.result import ClassResult, EvaluationResult

MANY, FEW = 100, 20


def top1(scores: NDArray[np.float64], truth: AnnotationTable, training: ClassStatistics) -> EvaluationResult:
    """Accuracy in the manner of long-tailed classification (Liu et al., CVPR 2019).

    Args:
        scores: (I, C) of the pictures of ``truth``, in its order.
        truth: one object per picture; its label is the picture's.
        training: of the training pictures, which decide the groups: ``many`` more than 100 pictures, ``medium`` 20 to
            100, ``few`` fewer than 20.

    Returns:
        Metrics ``top1`` (share of all pictures), ``balanced`` (mean over the classes), and ``many``, ``medium`` and
        ``few`` (mean over the classes of the group). ``ap`` of a class is its accuracy.
    """
    labels = truth.label[truth.image_start[:-1]].astype(np.int64)
    right = scores.argmax(axis=1) == labels
    size = truth.num_classes
    pictures = np.bincount(labels, minlength=size)
    accuracy = np.bincount(labels, weights=right, minlength=size) / np.maximum(pictures, 1)
    counts = np.asarray(training.image_counts)
    groups = {
        "balanced": np.ones(size, np.bool_),
        "many": counts > MANY,
        "medium": (counts >= FEW) & (counts <= MANY),
        "few": counts < FEW,
    }
    metrics: dict[str, float | None] = {"top1": float(right.mean()) if len(right) else None}
    behind = {"top1": {"classes": size, "with_objects": int((pictures > 0).sum())}}
    for name, members in groups.items():
        measured = members & (pictures > 0)
        metrics[name] = float(accuracy[measured].mean()) if measured.any() else None
        behind[name] = {"classes": int(members.sum()), "with_objects": int(measured.sum())}
    predicted = np.bincount(scores.argmax(axis=1), minlength=size) if len(scores) else np.zeros(size, np.int64)
    letters = training.group.tolist()
    rows = {
        identity: ClassResult(
            id=identity,
            name=truth.category_names[c],
            group=letters[c],
            train_images=int(counts[c]),
            train_instances=int(training.instance_counts[c]),
            objects=int(pictures[c]),
            detections=int(predicted[c]),
            ap=float(accuracy[c]) if pictures[c] else None,
        )
        for c, identity in enumerate(truth.category_ids.tolist())
    }
    return EvaluationResult(
        protocol="top1",
        iou_type="picture",
        metrics=metrics,
        classes_behind=behind,
        per_class=rows,
        notes=["the column ap of a class is its accuracy"],
        settings={"protocol": "top1", "source": truth.source, "images": truth.num_images, "classes": size},
    )
