"""A second, calibrated head for the tail classes (SimCal: Wang et al., The Devil is in Classification, ECCV 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longtail.losses.cells import full_precision
from longtail.models.classifiers import Classifier
from longtail.models.matching import Matcher
from longtail.models.regions import Regions
from longtail.sampling.random_regions import draw
from longtail.schema.errors import UsageError

SAMPLED_CLASS = "sampled_class"
"""Key of a target: the class its picture was drawn for, by :class:`longtail.sampling.BiLevelSampler`."""


class CalibratedHead(nn.Module):
    """Scores the tail classes beside a finished region head, which goes on scoring everything else.

    It is a box head and a classifier of its own on the same pooled features. It trains alone, everything else frozen,
    on regions sampled by class (:func:`bi_level_regions`). When detecting, the columns of the tail classes come from
    it, all others, the background's included, from the original head; nothing is normalised again.

    Args:
        head: pooled features (N, K, h, w) -> (N, D).
        classifier: (N, D) -> (N, number of logits), of level ``"embedded"``.
        tail: (C,) bool, the classes it scores.

    State:
        ``tail``, not saved: it follows from the training annotations.

    Raises:
        UsageError: a classifier on pooled features.
    """

    tail: Tensor

    def __init__(self, head: nn.Module, classifier: Classifier, tail: Tensor) -> None:
        super().__init__()
        if classifier.level != "embedded":
            raise UsageError(f"the calibrated head has a box head of its own, so {classifier.name!r} cannot follow it")
        self.head = head
        self.classifier = classifier
        self.register_buffer("tail", tail.bool(), persistent=False)

    @classmethod
    def beside(
        cls,
        head: nn.Module,
        classifier: Classifier,
        tail: Tensor,
        *,
        start: Literal["copy", "new"] = "copy",
        bias_prior: float | None = None,
    ) -> CalibratedHead:
        """A calibrated head of the same layers as an original one.

        Args:
            head, classifier, tail: the original's, and the classes to score.
            start: ``"copy"`` of the original's weights (published as the best), or layers drawn anew.
            bias_prior: value the biases of a new classifier start from.
        """
        own = cls(deepcopy(head), deepcopy(classifier), tail)
        if start == "new":
            for module in own.head.modules():
                reset = getattr(module, "reset_parameters", None)
                if reset is not None:
                    reset()
            own.classifier.initialise(bias_prior)
        return own

    def copy_from(self, head: nn.Module, classifier: Classifier) -> None:
        """Takes the weights of the original head and classifier."""
        self.head.load_state_dict(head.state_dict())
        self.classifier.load_state_dict(classifier.state_dict())

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits (N, number of logits) of pooled features, when training."""
        return full_precision(self.classifier(self.head(pooled)))

    def detection_logits(self, pooled: Tensor) -> Tensor:
        """Logits (N, number of logits) of pooled features, when detecting."""
        return full_precision(self.classifier.detection_logits(self.head(pooled), self.tail.shape[0]))

    def combine(self, original: Tensor, calibrated: Tensor) -> Tensor:
        """Scores (N, C + 1): tail columns of ``calibrated``, all others of ``original``, both (N, C + 1)."""
        columns = torch.cat([self.tail, self.tail.new_zeros(1)])
        return torch.where(columns, calibrated, original)


def bi_level_regions(
    matched: Sequence[Tensor],
    labels: Sequence[Tensor],
    sampled: Sequence[int],
    generator: torch.Generator | None,
) -> list[tuple[Tensor, Tensor]]:
    """Regions of a bi-level step: all candidates of every picture's sampled class, and as many of the background.

    The background is drawn uniformly from the whole batch, so it may come from other pictures than the objects. With
    several processes, each draws from its own part of the batch.

    Args:
        matched: per picture (M,), the matched object of every candidate, -1 for the background and -2 for neither.
        labels: per picture (G,), class of every object, 0..C-1.
        sampled: the class every picture was drawn for.
        generator: source of the draw; None = PyTorch's own.

    Returns:
        Per picture the indices of positives and negatives, in ascending order.
    """
    positives, negatives = [], []
    for own, classes, label in zip(matched, labels, sampled, strict=True):
        wanted = torch.cat([classes == label, classes.new_zeros(1, dtype=torch.bool)])  # the last: not matched
        positives.append(torch.where(wanted[own.clamp(min=-1)])[0])
        negatives.append(torch.where(own == -1)[0])
    number = sum(len(own) for own in positives)
    chosen = draw(torch.arange(sum(map(len, negatives)), device=matched[0].device), number, generator)
    regions, start = [], 0
    for positive, negative in zip(positives, negatives, strict=True):
        end = start + len(negative)
        regions.append((positive, negative[chosen[(chosen >= start) & (chosen < end)] - start]))
        start = end
    return regions


@torch.no_grad()
def sample_bi_level(
    matcher: Matcher,
    proposals: Sequence[Tensor],
    targets: Sequence[Mapping[str, Any]],
    generator: torch.Generator | None,
    num_classes: int,
    add_objects: bool,
) -> Regions:
    """Regions of a bi-level step, of proposals (n, 4) per picture and, with ``add_objects``, the objects' own boxes."""
    candidates, matched = [], []
    for own, target in zip(proposals, targets, strict=True):
        boxes = target["boxes"].to(own.dtype)
        candidates.append(torch.cat((own, boxes)) if add_objects else own)
        matched.append(matcher(boxes, candidates[-1])[1])
    labels, sampled = [target["labels"] for target in targets], [target[SAMPLED_CLASS] for target in targets]
    regions = Regions([], [], [], [], [])
    for image, (positive, negative) in enumerate(bi_level_regions(matched, labels, sampled, generator)):
        regions.add(
            candidates[image], len(proposals[image]), matched[image], targets[image], positive, negative, num_classes
        )
    return regions
