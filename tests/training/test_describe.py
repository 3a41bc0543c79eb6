"""What a run says before a stage of the classes its parts act on."""

import torch
from torch import nn

from longtail.losses import DropLoss, EqualizationLoss, FederatedLoss, SoftmaxCrossEntropy
from longtail.training.describe import describe_losses

FREQUENCY = torch.tensor([0.5, 0.1, 0.02, 0.01])


def test_losses_say_how_many_classes_they_act_on() -> None:
    losses = [
        EqualizationLoss(FREQUENCY, threshold=0.05),
        EqualizationLoss(FREQUENCY, threshold=0.05),
        DropLoss(FREQUENCY, threshold=0.015),
        FederatedLoss(torch.tensor([50, 10, 2, 1]), subset=3),
        SoftmaxCrossEntropy(4),
    ]
    first, second, third = describe_losses(nn.ModuleList(losses))
    assert first.startswith("EqualizationLoss: 2 of 4 classes")
    assert second.startswith("DropLoss: 1 of 4 classes")
    assert third.startswith("FederatedLoss: 3 of 4 classes a step")


def test_a_subset_larger_than_the_data_is_all_classes() -> None:
    (line,) = describe_losses(FederatedLoss(torch.tensor([5, 1]), subset=50))
    assert "2 of 2 classes" in line


def test_plain_losses_say_nothing() -> None:
    assert describe_losses(SoftmaxCrossEntropy(4)) == []
