"""How well a detector knows given objects (step-wise learning, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.models.query_losses import Objects, QueryCriterion, QueryOutputs


def query_scores(criterion: QueryCriterion, outputs: QueryOutputs, objects: Objects) -> list[Tensor]:
    """Per picture (G, 2) the score of the object's class and the highest of all classes, of the query of the last layer
    that is matched with the object; 0 where there are fewer queries than objects."""
    last = QueryOutputs(outputs.logits[-1:], outputs.boxes[-1:])
    (rows,) = criterion.object_queries(last, objects)
    scores = criterion.classification_loss.scores(last.logits[0].flatten(0, 1))[:, : criterion.num_classes]
    return pairs_of_scores(scores[rows.clamp(min=0)] * (rows >= 0)[:, None], objects.labels, objects.counts)


def pairs_of_scores(scores: Tensor, labels: Tensor, counts: list[int]) -> list[Tensor]:
    """Per picture (G, 2) the score of the label and the highest, of scores (sum of G, C)."""
    own = scores.gather(1, labels[:, None])
    return list(torch.split(torch.cat((own, scores.amax(dim=1, keepdim=True)), dim=1).float(), counts))
