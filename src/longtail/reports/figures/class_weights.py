"""Weights that bucketed class re-weighting gives to the classes as negatives (Libra R-CNN, section 3.3.3)."""

from __future__ import annotations

import numpy as np

from longtail.data import ClassStatistics
from longtail.losses import BucketedReweightingLoss
from longtail.reports.drawings import GROUP_COLOURS
from longtail.reports.figures.canvas import Drawing, panels


def draw_class_weights(loss: BucketedReweightingLoss, statistics: ClassStatistics) -> Drawing:
    """Weight and bucket of every class over its rank by training images, coloured by frequency group."""
    order = np.argsort(-statistics.image_counts, kind="stable")
    weight, bucket = loss.class_weight.numpy()[order], loss.bucket.numpy()[order]
    groups = statistics.group[order].tolist()
    canvas, (left, right) = panels(2)
    rank = np.arange(1, len(order) + 1)
    left.scatter(rank, weight, s=6, c=[GROUP_COLOURS[group] for group in groups])
    left.set(xlabel="class, most frequent first", ylabel="weight as a negative", ylim=(-0.05, 1.05))
    sizes = np.bincount(bucket)
    right.bar(range(len(sizes)), sizes, color="#7f7f7f")
    right.set(xlabel="bucket, rarest first", ylabel="classes")
    rows = [
        [statistics.names[c], int(statistics.image_counts[c]), group, int(b), float(w)]
        for c, group, b, w in zip(order.tolist(), groups, bucket, weight, strict=True)
    ]
    return Drawing("class-weights", canvas, ("class", "images", "group", "bucket", "weight"), rows)
