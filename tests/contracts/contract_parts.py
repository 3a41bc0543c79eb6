"""Finds every exported part of a kind and builds it, so that a new part is tested by being exported.

An argument without a default is looked up by name in ``ARGUMENTS``; a new name needs one line there. Every other value
of every bool or ``Literal`` option is tried too, one at a time.
"""

import inspect
import typing

import pytest
import torch

import longtail.losses
import longtail.replay
from longtail.losses import BoxLoss, ClassificationLoss, MeanScore
from longtail.replay import FeatureReplay, RegionRows

# Name of a required argument -> its value for C classes. The first class has no training data at all.
ARGUMENTS = {
    "num_classes": lambda c: c,
    "instance_counts": lambda c: torch.arange(c) ** 3,
    "image_counts": lambda c: torch.arange(c) ** 2,
    "class_counts": lambda c: torch.arange(max(c, 0)) ** 2,
    "feature_size": lambda c: 8,
    "image_frequency": lambda c: torch.arange(c, dtype=torch.float64) ** 2 / 10_000,
    "guide": lambda c: MeanScore(c),
    "targeted": lambda c: torch.arange(c) < (c + 1) // 2,
}
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def variants(cls):
    """The default options, and every other value of every bool or Literal option."""
    hints = typing.get_type_hints(cls.__init__)
    found = [{}]
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            continue
        hint = hints.get(name)
        values = (False, True) if hint is bool else typing.get_args(hint) if _is_literal(hint) else ()
        found += [{name: value} for value in values if value != parameter.default]
    return found


def _is_literal(hint):
    return typing.get_origin(hint) is typing.Literal


def build(case, num_classes=5):
    """One part, from (class, options)."""
    cls, options = case
    required = [
        name
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if name != "self" and parameter.default is inspect.Parameter.empty and parameter.kind not in _ANY_NUMBER
    ]
    unknown = [name for name in required if name not in ARGUMENTS]
    if unknown:
        raise AssertionError(f"{cls.__name__} needs {unknown}: say in ARGUMENTS of contract_parts.py what they are")
    return cls(**{name: ARGUMENTS[name](num_classes) for name in required}, **options)


def exported(room, base):
    """(class, options) of every concrete subclass of ``base`` in the room's ``__all__``, as test parameters."""
    members = [getattr(room, name) for name in room.__all__]
    classes = [m for m in members if inspect.isclass(m) and issubclass(m, base) and not inspect.isabstract(m)]
    return [
        pytest.param((cls, options), id="-".join([cls.__name__, *(f"{k}={v}" for k, v in options.items())]))
        for cls in classes
        for options in variants(cls)
    ]


LOSSES = exported(longtail.losses, ClassificationLoss)
BOX_LOSSES = exported(longtail.losses, BoxLoss)
REPLAYS = exported(longtail.replay, FeatureReplay)


def logits_and_labels(loss, rows, seed=0, dtype=torch.float32):
    """Random logits (N, num_logits) that want a gradient, and labels 0..C with every second row background."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, loss.num_logits, generator=generator, dtype=torch.float64).mul(3).to(dtype)
    labels = torch.randint(0, loss.num_classes, (rows,), generator=generator)
    labels[1::2] = loss.num_classes
    return logits.requires_grad_(), labels


def region_rows(rows, level, num_classes=5, seed=0, dtype=torch.float32):
    """Random regions of two images; every third row is background."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 8) if level == "embedded" else (rows, 8, 7, 7)
    labels = torch.randint(0, num_classes, (rows,), generator=generator)
    labels[::3] = num_classes
    corner = torch.rand(rows, 2, generator=generator) * 50
    proposals = torch.cat([corner, corner + 10], dim=1)
    image_index = torch.arange(rows) % 2
    return RegionRows(
        features=torch.randn(shape, generator=generator).to(dtype).requires_grad_(),
        labels=labels,
        proposals=proposals,
        gt_boxes=proposals + 1,
        gt_index=torch.where(labels < num_classes, torch.zeros_like(labels), -torch.ones_like(labels)),
        image_index=image_index,
    )


def step_inputs(level):
    """``targets`` of two images with one object each, and a ``pool`` that gives features of the right shape."""
    target = {"boxes": torch.tensor([[5.0, 5.0, 20.0, 20.0]]), "labels": torch.tensor([1])}
    shape = (8,) if level == "embedded" else (8, 7, 7)
    return [target, target], lambda boxes: torch.ones(sum(len(b) for b in boxes), *shape)


def copies(part):
    """Everything a part keeps, as clones by name."""
    return {name: value.clone() for name, value in part.state_dict().items()}


def same(first, second):
    """Whether two dictionaries of tensors are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
