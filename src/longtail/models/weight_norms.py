"""How long the weight vectors of the classes are."""

from __future__ import annotations

import torch
from torch import Tensor

from longtail.models.base import ClassHead
from longtail.models.classifiers import CosineClassifier, LinearClassifier, NormedLinear
from longtail.models.deconfounded import DeconfoundedClassifier
from longtail.models.learnable_weight_scaling import LearnableWeightScaling


@torch.no_grad()
def class_weight_norms(head: ClassHead) -> Tensor | None:
    """Euclidean norm of the weights of every class (C,), or None for a last layer with no vector per class.

    A learnt factor counts: ``g_c`` is the norm in a cosine classifier, ``|s_c| ||w_c||`` with learnable weight scaling.
    A classifier that divides by the norm has that of its parameter, although it is without effect.
    """
    layer = head.classifier
    if isinstance(layer, CosineClassifier):
        norms = layer.direction.norm(dim=1) if layer.length is None else layer.length.abs().squeeze(1)
    elif isinstance(layer, LearnableWeightScaling):
        norms = layer.weight.norm(dim=1) * layer.scale.abs()
    elif isinstance(layer, LinearClassifier | NormedLinear | DeconfoundedClassifier):
        norms = layer.weight.norm(dim=1)
    else:
        return None
    return norms[: head.num_classes]
