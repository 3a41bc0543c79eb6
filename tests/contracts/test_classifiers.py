"""The contract of classifiers; a classifier is under it by being exported from the models room."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from longtail import models
from longtail.models import classifiers
from longtail.models.classifiers import Classifier

FOUND: set[type[Classifier]] = {
    value
    for module in (models, classifiers)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Classifier) and not inspect.isabstract(value)
}
KINDS = sorted(FOUND, key=lambda kind: kind.__name__)
EVERY = pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])


def build(kind: Any, in_features: int = 6, num_logits: int = 5, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    built = kind(in_features, num_logits)
    assert isinstance(built, Classifier)
    return built


def features(rows: int, width: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_the_published_classifiers_are_found() -> None:
    assert {"linear", "cosine", "normed_linear"} <= {kind.name for kind in FOUND}


@EVERY
def test_states_its_name_and_level(kind: Any) -> None:
    assert isinstance(kind.name, str)
    assert kind.name
    assert kind.level in {"embedded", "pooled"}
    assert kind.__doc__


@EVERY
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_shape_of_the_logits(kind: Any, rows: int) -> None:
    logits = build(kind)(features(rows))
    assert logits.shape == (rows, 5)
    assert torch.isfinite(logits).all()
    logits.sum().backward()


@EVERY
@pytest.mark.parametrize(("in_features", "num_logits"), [(1, 1), (1, 3), (4, 1)])
def test_smallest_sizes(kind: Any, in_features: int, num_logits: int) -> None:
    assert build(kind, in_features, num_logits)(features(2, in_features)).shape == (2, num_logits)


@EVERY
def test_sizes_below_one_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        kind(0, 3)
    with pytest.raises(ValueError, match="at least 1"):
        kind(3, 0)


@EVERY
def test_all_zero_features_give_finite_logits_and_gradients(kind: Any) -> None:
    classifier = build(kind)
    x = torch.zeros(3, 6, requires_grad=True)
    classifier(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    for parameter in classifier.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@EVERY
def test_gradients_are_those_of_finite_differences(kind: Any) -> None:
    classifier = build(kind, 3, 4).double()
    classifier.initialise(0.3)
    x = features(3, 3).double().requires_grad_()
    names = [name for name, _ in classifier.named_parameters()]

    def run(x: torch.Tensor, *values: torch.Tensor) -> Any:
        return torch.func.functional_call(classifier, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *(p.detach().clone().requires_grad_() for p in classifier.parameters())))


@EVERY
def test_every_parameter_gets_a_gradient(kind: Any) -> None:
    classifier = build(kind)
    (classifier(features(7)) ** 2).sum().backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@EVERY
@pytest.mark.parametrize("prior", [None, -4.5])
def test_state_round_trip(kind: Any, prior: float | None) -> None:
    first, second = build(kind), build(kind, seed=9)
    first.initialise(prior)
    second.initialise(prior)
    x = features(7)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


@EVERY
def test_bf16(kind: Any) -> None:
    classifier = build(kind)
    x = features(7)
    exact = classifier(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = classifier(x)
    low = classifier.bfloat16()(x.bfloat16())
    span = exact.abs().max()
    assert (mixed.float() - exact).abs().max() < 0.05 * span
    assert (low.float() - exact).abs().max() < 0.05 * span
    assert low.dtype == torch.bfloat16


@EVERY
def test_rows_do_not_see_each_other(kind: Any) -> None:
    classifier = build(kind).eval()
    x = features(7)
    torch.testing.assert_close(classifier(x)[2:4], classifier(x[2:4]))


@EVERY
def test_class_parameters_are_parameters_with_one_slice_per_logit(kind: Any) -> None:
    classifier = build(kind)
    classifier.initialise(-2.0)
    own = dict(classifier.named_parameters())
    listed = classifier.class_parameters()
    assert listed
    for name, axis in listed.items():
        assert own[name].shape[axis] == 5, name


@EVERY
def test_permuting_class_parameters_permutes_the_logits(kind: Any) -> None:
    classifier = build(kind)
    classifier.initialise(-2.0)
    x = features(7)
    before = classifier(x)
    order = torch.tensor([3, 0, 4, 1, 2])
    own = dict(classifier.named_parameters())
    with torch.no_grad():
        for name, axis in classifier.class_parameters().items():
            own[name].copy_(own[name].index_select(axis, order))
    torch.testing.assert_close(classifier(x), before[:, order])


@EVERY
def test_bias_prior_is_the_start_of_every_bias(kind: Any) -> None:
    classifier = build(kind)
    classifier.initialise(-6.907)
    bias = classifier.bias
    assert isinstance(bias, nn.Parameter)
    assert bias.requires_grad
    assert torch.equal(bias.detach(), torch.full((5,), -6.907))
    assert "bias" in classifier.class_parameters()
    assert "bias" in classifier.state_dict()


@EVERY
def test_initialise_depends_on_the_random_state_only(kind: Any) -> None:
    classifier = build(kind)
    first = {name: value.clone() for name, value in classifier.state_dict().items()}
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.fill_(7.0)
    torch.manual_seed(0)
    classifier.initialise()
    torch.manual_seed(0)
    again = kind(6, 5)
    torch.manual_seed(0)
    again.initialise()
    for name, value in again.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[name]), name
        assert value.shape == first[name].shape
