"""Tools for finished models: class logits that are changed at test time, without training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longtail.losses.logit_adjusted import centred_log_counts
from longtail.models.base import ClassHead, TrainableModel
from longtail.models.classifiers import LinearClassifier, replace_class_logits
from longtail.schema.errors import UsageError


class LogitAdjustment(nn.Module):
    """``factor_c * z_c + offset_c`` for the classes; further logits (background, objectness) stay.

    With ``keep_background`` the class logits are then shifted together, by the same amount, so that the background
    keeps its probability and only the classes share what is left differently.

    Args:
        factor, offset: (C,) each.

    Shapes:
        logits (N, K) with K >= C, for a loss with softmax scores; the same shape out.
    """

    def __init__(self, factor: Tensor, offset: Tensor, *, keep_background: bool = True) -> None:
        super().__init__()
        self.keep_background = keep_background
        self.factor: Tensor
        self.offset: Tensor
        # not saved: they follow from the recipe and the weights
        self.register_buffer("factor", factor.float(), persistent=False)
        self.register_buffer("offset", offset.float(), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        count = self.factor.shape[0]
        classes = logits[:, :count] * self.factor + self.offset
        if self.keep_background:
            return replace_class_logits(logits, classes)
        return torch.cat([classes, logits[:, count:]], dim=1)


@torch.no_grad()
def tau_normalise(
    model: TrainableModel, *, tau: float = 0.7, keep_bias: bool = True, keep_background: bool = True
) -> None:
    """Divides the weights of every class by their norm to the power of tau (Kang et al., ICLR 2020, eq. 4), from now
    on whenever the model detects. Its parameters stay as they are; call it again when they change.

    Args:
        model: a detector with a linear classifier and a loss with softmax scores; changed in place.
        tau: 0 changes nothing, 1 makes all norms equal; published as a search in [0, 1].
        keep_bias: whether the classes keep their bias. The paper has none, its port to detection keeps it.
        keep_background: whether the background's score is kept exactly. Without it the classes' scores change against
            the background's too, which costs much AP (the port has 11.0 at tau 1, its plain model 21.0).

    Raises:
        UsageError: another classifier or loss, or tau < 0.
    """
    for head in adjustable_heads(model, "tau_normalise", tau):
        classifier = head.classifier
        if not isinstance(classifier, LinearClassifier):
            raise UsageError(f"tau_normalise works with the classifier 'linear', the model has {classifier.name!r}")
        weight, bias = classifier.weight[: head.num_classes].float(), classifier.bias[: head.num_classes].float()
        factor = weight.norm(dim=1).clamp(min=1e-12).pow(-tau)
        offset = bias * (float(keep_bias) - factor)
        head.adjustment = LogitAdjustment(factor, offset, keep_background=keep_background)


def adjust_logits(
    model: TrainableModel, instance_counts: Tensor, *, tau: float = 1.0, keep_background: bool = True
) -> None:
    """Subtracts ``tau * log(pi_c)`` from the class logits (Menon et al., ICLR 2021, eq. 9), from now on whenever the
    model detects.

    Args:
        model: a detector with a loss with softmax scores; changed in place.
        instance_counts: training instances per class, (C,), >= 0. A class with none is treated as having one.
        tau: strength, >= 0; 0 changes nothing, 1 is published.
        keep_background: whether the background's score is kept exactly; otherwise the priors have geometric mean 1.

    Raises:
        UsageError: another loss, another number of classes, or tau < 0.
    """
    for head in adjustable_heads(model, "adjust_logits", tau):
        if len(instance_counts) != head.num_classes:
            raise UsageError(
                f"adjust_logits got counts of {len(instance_counts)} classes, the model has {head.num_classes}"
            )
        offset = (-tau * centred_log_counts(instance_counts)).to(next(head.classifier.parameters()).device)
        head.adjustment = LogitAdjustment(torch.ones_like(offset), offset, keep_background=keep_background)


def leave_logits(model: TrainableModel) -> None:
    """Takes back what the tools above did."""
    for head in model.class_heads():
        head.adjustment = None


def adjustable_heads(model: TrainableModel, tool: str, tau: float) -> list[ClassHead]:
    """The class heads of a model.

    Raises:
        UsageError: ``tau`` is negative, or scores that are not made by a softmax.
    """
    if tau < 0:
        raise UsageError(f"{tool}: tau must be >= 0, got {tau}")
    heads = model.class_heads()
    for head in heads:
        if not head.classification_loss.adjustable:
            raise UsageError(
                f"{tool} needs scores made by a softmax over the classes, those of "
                f"{type(head.classification_loss).__name__} are not"
            )
    return heads
