"""What trains in a stage: freezing by name, and starting some layers afresh."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from longtail.schema.errors import UsageError
from longtail.schema.stage import Trainable

#: the number of a cascade's stage in a parameter's name: ``box.0.classifier.weight``
STAGE_NUMBER = re.compile(r"^(box|mask)\.\d+\.")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter or module name matches a shell pattern, itself or as part of a matching module. The stages of
    a cascade may be left out of the pattern: ``box.classifier`` matches those of all stages, ``box.2.classifier`` one.
    """
    return any(
        fnmatchcase(spelling, pattern) or fnmatchcase(spelling, f"{pattern}.*")
        for pattern in patterns
        for spelling in spellings(name)
    )


def spellings(name: str) -> set[str]:
    """A parameter's name with and without the number of its stage in a cascade."""
    return {name, STAGE_NUMBER.sub(r"\1.", name)}


def freeze(model: nn.Module, trainable: Trainable) -> list[str]:
    """Switches gradients off as the stage asks and returns the names of the parameters that still train.

    Parameters that were frozen when the model was built (a backbone's first stages) stay frozen, unless ``only`` names
    them.

    Raises:
        UsageError: a pattern that matches nothing, or nothing left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    _refuse_idle(names, (*trainable.only, *trainable.freeze))
    for name, parameter in model.named_parameters():
        if trainable.only and not matches(name, trainable.only):
            parameter.requires_grad_(False)
        if matches(name, trainable.freeze):
            parameter.requires_grad_(False)
    left = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not left:
        raise UsageError(f"nothing trains with only={trainable.only} and freeze={trainable.freeze}")
    return left


def train_mode(model: nn.Module) -> None:
    """Training mode, except for batch norms that have nothing to train: their statistics stay as they are."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()


def without(state: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Names of a state dict that are not to be loaded because their layer starts afresh.

    Raises:
        UsageError: a pattern that matches nothing.
    """
    names = list(state)
    _refuse_idle(names, patterns)
    return [name for name in names if not matches(name, patterns)]


def _refuse_idle(names: Sequence[str], patterns: Iterable[str]) -> None:
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            tops = sorted({".".join(name.split(".")[:2]) for name in names})
            raise UsageError(f"the pattern {pattern!r} matches no parameter; modules are: {', '.join(tops)}")
