"""De-confounded training and total direct effect (Tang et al., NeurIPS 2020, eq. 6 to 9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.losses.state import sum_over_ranks
from longtail.models.classifiers import Classifier, initialise_uniform, replace_class_logits


class DeconfoundedClassifier(Classifier):
    """A normalised classifier that takes the direction in which all objects' features drift out of its answer.

    Training: features and weights are cut into K parts along the channels, and

        logit_c = (temperature / K) sum_k  x_k / ||x_k|| . w_ck / (||w_ck|| + gamma).

    Meanwhile the mean of the foreground features of every step is gathered, ``e <- momentum * e + mean(x)``; only its
    direction matters, so it is not divided by anything. Steps without foreground leave it alone.

    Detection: in every part the share alpha of the feature's component along ``e`` is taken away,
    ``x_k / ||x_k|| - alpha cos(x_k, e_k) e_k / ||e_k||``, and gives other class logits. What is not a class keeps its
    logit, and the class logits are shifted together so that the background keeps its probability exactly (the
    background-exempted rule). That needs a loss whose scores are a softmax.

    Args:
        heads: K, at least 1; published 2. With fewer channels than that, as many as there are channels.
        temperature: positive; published 16.
        gamma: added to the norm of the weights, >= 0; published 1/32.
        alpha: share taken away, >= 0; published 1.5 in detection; 0 detects as it trains.
        momentum: in [0, 1); published 0.9998 in detection.

    Parameters:
        ``weight`` (number of logits, D), ``bias`` if a loss asks for one.

    State:
        ``mean`` (D,), shared: summed over processes.
    """

    name = "deconfounded"

    def __init__(
        self,
        in_features: int,
        num_logits: int,
        *,
        heads: int = 2,
        temperature: float = 16.0,
        gamma: float = 1 / 32,
        alpha: float = 1.5,
        momentum: float = 0.9998,
    ) -> None:
        super().__init__(in_features, num_logits)
        if heads < 1 or temperature <= 0 or gamma < 0 or alpha < 0 or not 0 <= momentum < 1:
            raise ValueError(
                "heads must be at least 1, temperature positive, gamma and alpha >= 0 and momentum in [0, 1), got "
                f"{heads}, {temperature}, {gamma}, {alpha} and {momentum}"
            )
        self.heads = min(heads, in_features)
        self.temperature = temperature
        self.gamma = gamma
        self.alpha = alpha
        self.momentum = momentum
        self.weight = nn.Parameter(torch.empty(num_logits, in_features))
        self.bias: nn.Parameter | None = None
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(in_features))
        self.initialise()

    def initialise(self, bias_prior: float | None = None) -> None:
        initialise_uniform(self.weight)
        if self.bias is None and bias_prior is not None:
            self.bias = nn.Parameter(self.weight.new_empty(self.num_logits))
        if self.bias is not None:
            nn.init.constant_(self.bias, bias_prior or 0.0)

    def forward(self, features: Tensor) -> Tensor:
        return self._logits(features, 0.0)

    @torch.no_grad()
    def observe(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        """Moves the mean by this step's foreground features, those of all processes."""
        foreground = (labels < num_classes).to(self.mean.dtype)
        # no matrix product, which mixed precision would round
        total = sum_over_ranks((features.detach().to(self.mean.dtype) * foreground[:, None]).sum(dim=0))
        count = sum_over_ranks(foreground.sum())
        moved = self.momentum * self.mean + total / count.clamp(min=1)
        self.mean.copy_(torch.where(count > 0, moved, self.mean))

    def detection_logits(self, features: Tensor, num_classes: int) -> Tensor:
        return replace_class_logits(self(features), self._logits(features, self.alpha)[:, :num_classes])

    def _logits(self, features: Tensor, alpha: float) -> Tensor:
        """Logits (N, K) without the share alpha of the features along the mean."""
        drifts = self.mean.to(features.dtype).tensor_split(self.heads)
        weights = self.weight.tensor_split(self.heads, dim=1)
        total = features.new_zeros(features.shape[0], self.num_logits)
        for x, w, e in zip(features.tensor_split(self.heads, dim=1), weights, drifts, strict=True):
            unit, drift = F.normalize(x, dim=1), F.normalize(e, dim=0)
            along = (unit * drift).sum(dim=1, keepdim=True)
            changed = unit - alpha * along * drift if alpha else unit
            total = total + F.linear(changed, w / (w.norm(dim=1, keepdim=True) + self.gamma))
        logits = total * (self.temperature / self.heads)
        return logits if self.bias is None else logits + self.bias
