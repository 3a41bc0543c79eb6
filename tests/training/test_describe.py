"""What a run says before a stage of the classes its parts act on."""

from typing import Any

import torch
from torch import nn

from longtail.losses import (
    ACSLoss,
    DropLoss,
    EqualizationLoss,
    EqualizationLossV2,
    FederatedLoss,
    SeesawLoss,
    SoftmaxCrossEntropy,
)
from longtail.schema.passes import ClassLosses, UpdateState, ValidationLoss
from longtail.schema.stage import Schedule
from longtail.training.describe import describe_losses, describe_passes, running_shares
from longtail.training.stage import Stage

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
    assert running_shares(SoftmaxCrossEntropy(4)) == {}


def test_acsl_says_what_its_classes_see_of_the_background() -> None:
    (line,) = describe_losses(ACSLoss(torch.tensor([3, 40, 70, 3000]), rare_share=0.05))
    assert line.startswith(
        "ACSLoss: of 4 classes, 1 rare ones see 5.00% of the background regions and 2 common ones 10.00%"
    )


def test_running_shares_are_named_by_loss_where_there_are_several() -> None:
    seesaw = SeesawLoss(3)
    seesaw.counts.copy_(torch.tensor([2, 1, 0]))
    assert running_shares(nn.ModuleList([seesaw])) == {"share/mitigated_cells": 0.6666666666666666}
    both = running_shares(nn.ModuleList([seesaw, EqualizationLossV2(3)]))
    assert both == {"share/mitigated_cells_0": 0.6666666666666666, "share/spared_classes_1": 0.0}


def test_passes_say_on_what_and_how_often() -> None:
    nothing: Any = None
    stage = Stage(
        name="one",
        model=nothing,
        optimiser=nothing,
        schedule=Schedule(images=1920, batch_size=4),
        steps=480,
        dataset=nothing,
        sampler=nothing,
        epoch_images=600,
        passes_before=(
            UpdateState(per_class=5),
            UpdateState(per_class=5, choice="random"),
            UpdateState(),
            ValidationLoss(images=9),
        ),
        passes_after_epoch=(ClassLosses(), ClassLosses(source="val", images=8)),
        round_images=180,
    )
    assert describe_passes(stage) == [
        "before: update_state on 5 training pictures of every class and process",
        "before: update_state on 5 random training pictures of every class and process",
        "before: update_state on all training pictures",
        "before: validation_loss on at most 9 validation pictures",
        "every 180 images, 10 times in 480 steps: class_losses on all held-out pictures",
        "every 180 images, 10 times in 480 steps: class_losses on at most 8 validation pictures",
    ]
    stage.round_images = 0
    assert describe_passes(stage)[4] == "every 600 images, 3 times in 480 steps: class_losses on all held-out pictures"
