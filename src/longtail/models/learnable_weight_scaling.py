"""Learnable weight scaling (Kang et al., Decoupling representation and classifier, ICLR 2020, section 4.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.models.classifiers import Classifier, initialise_uniform


class LearnableWeightScaling(Classifier):
    """``s_c * (w_c . x) + b_c``: a linear layer with one more factor per class, which starts at 1.

    It is for a second stage that takes ``weight`` and ``bias`` from a trained linear classifier, whose names and shapes
    are the same, and trains ``scale`` alone, on images sampled by class. (The first released code also scales the
    bias, later code for detection does not; this one does not.)

    Parameters:
        ``weight`` (K, D), ``bias`` (K,), ``scale`` (K,).
    """

    name = "lws"

    def __init__(self, in_features: int, num_logits: int) -> None:
        super().__init__(in_features, num_logits)
        self.weight = nn.Parameter(torch.empty(num_logits, in_features))
        self.bias = nn.Parameter(torch.empty(num_logits))
        self.scale = nn.Parameter(torch.empty(num_logits))
        self.initialise()

    def initialise(self, bias_prior: float | None = None) -> None:
        initialise_uniform(self.weight, self.bias)
        nn.init.ones_(self.scale)
        if bias_prior is not None:
            nn.init.constant_(self.bias, bias_prior)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight) * self.scale + self.bias
