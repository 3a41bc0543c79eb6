"""Parameter groups and what trains."""

import pytest
import torch
from torch import nn

from longtail.schema import UsageError
from longtail.schema.stage import SGD, AdamW, ParameterGroup, Trainable
from longtail.training.optimiser import build_optimiser, parameter_groups
from longtail.training.trainable import freeze, train_mode, without


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_norms_have_their_own_decay_and_groups_their_own_rate() -> None:
    model = small()
    spec = SGD(lr=0.1, weight_decay=0.01, groups=(ParameterGroup(match="2.*", lr_factor=0.5),))
    groups = {(group["lr"], group["weight_decay"]): len(group["params"]) for group in parameter_groups(model, spec)}
    assert groups == {(0.1, 0.01): 2, (0.1, 0.0): 2, (0.05, 0.01): 2}
    assert all(group["base_lr"] == group["lr"] for group in parameter_groups(model, spec))


def test_frozen_parameters_are_left_out_and_both_optimisers_exist() -> None:
    model = small()
    freeze(model, Trainable(only=("2",)))
    for spec in (SGD(lr=0.1), AdamW(lr=0.1)):
        optimiser = build_optimiser(model, spec)
        assert sum(len(group["params"]) for group in optimiser.param_groups) == 2
    assert isinstance(build_optimiser(model, AdamW()), torch.optim.AdamW)


def test_patterns_that_match_nothing_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="matches no parameter"):
        parameter_groups(small(), SGD(groups=(ParameterGroup(match="head.*"),)))
    parameter_groups(small(), SGD(groups=(ParameterGroup(match="head.*", optional=True),)))
    with pytest.raises(UsageError, match="matches no parameter"):
        freeze(small(), Trainable(freeze=("backbon",)))
    with pytest.raises(UsageError, match="nothing trains"):
        freeze(small(), Trainable(freeze=("*",)))
    with pytest.raises(UsageError, match="matches no parameter"):
        without(["a.weight"], ["b"])


def test_only_and_freeze_by_module_name() -> None:
    model = small()
    assert freeze(model, Trainable(only=("0", "1"), freeze=("0.bias",))) == ["0.weight", "1.weight", "1.bias"]


def test_reinitialised_layers_are_left_out_of_loading() -> None:
    assert without(["a.weight", "a.bias", "ab.weight"], ["a"]) == ["ab.weight"]


def test_frozen_batch_norms_keep_their_statistics_in_training_mode() -> None:
    model = small()
    freeze(model, Trainable(freeze=("1",)))
    train_mode(model)
    before = model[1].running_mean.clone()
    model(torch.randn(2, 3, 4, 4) + 5)
    assert torch.equal(model[1].running_mean, before)
    assert model[0].training
    free = small()
    train_mode(free)
    free(torch.randn(2, 3, 4, 4) + 5)
    assert not torch.equal(free[1].running_mean, before)
