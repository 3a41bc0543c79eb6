"""Classifiers (seam 4): the last layer, from region features to class logits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module, ABC):
    """The contract of a classifier on region features.

    Logit ``c`` of the first C belongs to class ``c``; what a loss wants besides (background, objectness) follows after
    them. How many there are in all is what the loss states as its ``num_logits``.

    Args:
        in_features: length D of a feature, at least 1.
        num_logits: number of outputs K, at least 1.

    Shapes:
        features (N, D), N >= 0; logits (N, K).

    Attributes:
        name: what a loss calls the classifier in its ``classifiers``.
        level: the features it takes: ``"embedded"`` (output of the box head) or ``"pooled"`` (output of RoIAlign).

    Raises:
        ValueError: a size below 1.
    """

    name: ClassVar[str]
    level: ClassVar[Literal["embedded", "pooled"]] = "embedded"

    def __init__(self, in_features: int, num_logits: int) -> None:
        super().__init__()
        if in_features < 1 or num_logits < 1:
            raise ValueError(f"in_features and num_logits must be at least 1, got {in_features} and {num_logits}")
        self.in_features = in_features
        self.num_logits = num_logits

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, D)."""

    @abstractmethod
    def initialise(self, bias_prior: float | None = None) -> None:
        """Draw all parameters anew.

        Args:
            bias_prior: value every bias starts from, as the loss states it; None = the classifier's own. A classifier
                without a bias gets a learnable one when a prior is given. Call it before the optimiser is built.
        """

    def observe(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        """Takes note of one training step's own regions, replayed ones excluded. All processes call it together.

        Args:
            features: (N, D), without gradient to them.
            labels: (N,) in 0..C, C = ``num_classes`` is the background.
            num_classes: C.
        """

    def detection_logits(self, features: Tensor, num_classes: int) -> Tensor:
        """Logits (N, K) when detecting; those of :meth:`forward` unless the classifier says otherwise."""
        logits: Tensor = self(features)
        return logits

    def class_parameters(self) -> dict[str, int]:
        """Names of the parameters that hold one slice per logit, with the axis of the logits: what can be carried from
        one label set to another by class name. Here all of them, along axis 0."""
        return {name: 0 for name, _ in self.named_parameters()}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, num_logits={self.num_logits}"


class LinearClassifier(Classifier):
    """``w_c . x + b_c``, PyTorch's linear layer.

    Args:
        std: standard deviation of the normal distribution of the initial weights, with biases 0; None = PyTorch's
            default for linear layers, ``U(-1/sqrt(D), 1/sqrt(D))`` for weights and biases.
    """

    name = "linear"

    def __init__(self, in_features: int, num_logits: int, *, std: float | None = None) -> None:
        super().__init__(in_features, num_logits)
        if std is not None and std <= 0:
            raise ValueError(f"std must be positive, got {std}")
        self.std = std
        self.weight = nn.Parameter(torch.empty(num_logits, in_features))
        self.bias = nn.Parameter(torch.empty(num_logits))
        self.initialise()

    def initialise(self, bias_prior: float | None = None) -> None:
        if self.std is None:
            initialise_uniform(self.weight, self.bias)
        else:
            nn.init.normal_(self.weight, std=self.std)
            nn.init.zeros_(self.bias)
        if bias_prior is not None:
            nn.init.constant_(self.bias, bias_prior)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)


class CosineClassifier(Classifier):
    """``scale * g_c * cos(x, v_c) + b_c``, with a learnt length ``g_c`` per class (RIO) or without (TFA).

    The feature is divided by ``||x|| + eps``, the direction by ``||v_c||``. RIO's released layer has scale 48, a learnt
    ``g_c`` for every logit including the background's, and no bias; its paper speaks of a "cosine layer" only. TFA
    (Wang et al., 2020) is ``scale=20, learn_norm=False``.

    Args:
        scale: factor on the cosine, positive.
        learn_norm: whether ``g_c`` exists; it starts at ``||v_c||``, about 0.577.
        eps: added to the norm of the feature.
        bias: whether ``b_c`` exists from the start. It is added after the scale and starts at 0.

    Parameters:
        ``direction`` (K, D), ``length`` (K, 1) if ``learn_norm``, ``bias`` (K,) if there is one.
    """

    name = "cosine"

    def __init__(
        self,
        in_features: int,
        num_logits: int,
        *,
        scale: float = 48.0,
        learn_norm: bool = True,
        eps: float = 1e-5,
        bias: bool = False,
    ) -> None:
        super().__init__(in_features, num_logits)
        if scale <= 0 or eps < 0:
            raise ValueError(f"scale must be positive and eps >= 0, got {scale} and {eps}")
        self.scale = scale
        self.eps = eps
        self.direction = nn.Parameter(torch.empty(num_logits, in_features))
        self.length: nn.Parameter | None = None
        if learn_norm:
            self.length = nn.Parameter(torch.empty(num_logits, 1))
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(num_logits))
        self.initialise()

    def initialise(self, bias_prior: float | None = None) -> None:
        nn.init.kaiming_uniform_(self.direction, a=math.sqrt(5))
        if self.length is not None:
            with torch.no_grad():
                self.length.copy_(self.direction.norm(dim=1, keepdim=True))
        if self.bias is None and bias_prior is not None:
            self.bias = nn.Parameter(self.direction.new_empty(self.num_logits))
        if self.bias is not None:
            nn.init.constant_(self.bias, bias_prior or 0.0)

    def forward(self, features: Tensor) -> Tensor:
        unit = features / (features.norm(dim=1, keepdim=True) + self.eps)
        weight = F.normalize(self.direction, dim=1)
        if self.length is not None:
            weight = weight * self.length
        logits = F.linear(unit, weight) * self.scale
        return logits if self.bias is None else logits + self.bias


class NormedLinear(Classifier):
    """``T * x / (||x||^a + eps) . w_c / (||w_c||^a + eps) + b_c``: Seesaw's normalised linear layer.

    Weights start from N(0, 0.01), biases from 0.

    Args:
        temperature: T, positive; 20 published.
        power: a, positive; 1 published (unit vectors).
        eps: added to both denominators.
    """

    name = "normed_linear"

    def __init__(
        self,
        in_features: int,
        num_logits: int,
        *,
        temperature: float = 20.0,
        power: float = 1.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(in_features, num_logits)
        if temperature <= 0 or power <= 0 or eps < 0:
            raise ValueError(
                f"temperature and power must be positive and eps >= 0, got {temperature}, {power} and {eps}"
            )
        self.temperature = temperature
        self.power = power
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(num_logits, in_features))
        self.bias = nn.Parameter(torch.empty(num_logits))
        self.initialise()

    def initialise(self, bias_prior: float | None = None) -> None:
        nn.init.normal_(self.weight, std=0.01)
        nn.init.constant_(self.bias, bias_prior or 0.0)

    def forward(self, features: Tensor) -> Tensor:
        unit = features / (features.norm(dim=1, keepdim=True).pow(self.power) + self.eps)
        weight = self.weight / (self.weight.norm(dim=1, keepdim=True).pow(self.power) + self.eps)
        return F.linear(unit * self.temperature, weight, self.bias)


def initialise_uniform(weight: Tensor, *biases: Tensor) -> None:
    """PyTorch's default for linear layers: ``U(-1/sqrt(D), 1/sqrt(D))`` for weights (K, D) and biases (K,)."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # = U(-1/sqrt(D), 1/sqrt(D))
    bound = 1 / math.sqrt(weight.shape[1])
    for bias in biases:
        nn.init.uniform_(bias, -bound, bound)


def replace_class_logits(logits: Tensor, classes: Tensor) -> Tensor:
    """``logits`` (N, K) with other values for the first C, ``classes`` (N, C), shifted together in every row so that
    the sum of their exponentials is what it was: a softmax gives every further logit the probability it had."""
    count = classes.shape[1]
    shift = logits[:, :count].logsumexp(dim=1, keepdim=True) - classes.logsumexp(dim=1, keepdim=True)
    return torch.cat([classes + shift, logits[:, count:]], dim=1)
