from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.models import DeconfoundedClassifier

BACKGROUND = 3


def norm(values: list[float]) -> float:
    return math.sqrt(math.fsum(v * v for v in values))


def dot(first: list[float], second: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(first, second, strict=True))


def logits_of(classifier: DeconfoundedClassifier, x: list[float], alpha: float) -> list[float]:
    """One row, both parts of the channels, with loops."""
    half = len(x) // 2
    found = []
    for weight in classifier.weight.tolist():
        total = 0.0
        for part in (slice(0, half), slice(half, None)):
            xk, wk, ek = x[part], weight[part], classifier.mean.tolist()[part]
            unit = [v / norm(xk) for v in xk]
            if norm(ek) > 0:
                cosine = dot(xk, ek) / norm(xk) / norm(ek)
                unit = [u - alpha * cosine * e / norm(ek) for u, e in zip(unit, ek, strict=True)]
            total += dot(unit, wk) / (norm(wk) + 1 / 32)
        found.append(16 / 2 * total)
    return found


def softmax(values: list[float]) -> list[float]:
    total = math.fsum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def built(seed: int, **options: float) -> tuple[DeconfoundedClassifier, torch.Tensor]:
    torch.manual_seed(seed)
    classifier = DeconfoundedClassifier(8, 4, **options).double()
    classifier.mean.normal_()
    return classifier, torch.randn(5, 8).double()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_training_logits(seed: int) -> None:
    classifier, x = built(seed)
    wanted = [logits_of(classifier, row, 0.0) for row in x.tolist()]
    torch.testing.assert_close(classifier(x), torch.tensor(wanted).double())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.5, 3.0]))
def test_detection_keeps_the_background_and_shares_the_rest_anew(seed: int, alpha: float) -> None:
    classifier, x = built(seed, alpha=alpha)
    got = classifier.detection_logits(x, BACKGROUND).softmax(dim=1)
    for row, found in zip(x.tolist(), got.tolist(), strict=True):
        plain, changed = softmax(logits_of(classifier, row, 0.0)), softmax(logits_of(classifier, row, alpha)[:3])
        wanted = [(1 - plain[3]) * p for p in changed] + [plain[3]]
        assert found == pytest.approx(wanted)


def test_a_feature_along_the_mean_says_nothing_with_alpha_one() -> None:
    classifier, _ = built(0, alpha=1.0)
    x = classifier.mean[None].clone()
    logits = classifier.detection_logits(x, BACKGROUND)
    torch.testing.assert_close(logits[0, :3], logits[0, :1].expand(3))


def test_without_alpha_or_mean_it_detects_as_it_trains() -> None:
    classifier, x = built(0, alpha=0.0)
    torch.testing.assert_close(classifier.detection_logits(x, BACKGROUND), classifier(x))
    classifier.alpha = 1.5
    classifier.mean.zero_()
    torch.testing.assert_close(classifier.detection_logits(x, BACKGROUND), classifier(x))


def test_the_mean_is_gathered_from_foreground_alone() -> None:
    classifier = DeconfoundedClassifier(2, 4, momentum=0.5)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]])
    classifier.observe(x, torch.tensor([0, 2, BACKGROUND]), BACKGROUND)
    torch.testing.assert_close(classifier.mean, torch.tensor([2.0, 3.0]))
    classifier.observe(x, torch.tensor([BACKGROUND] * 3), BACKGROUND)
    torch.testing.assert_close(classifier.mean, torch.tensor([2.0, 3.0]))  # no foreground, no change
    classifier.observe(x[:0], torch.zeros(0, dtype=torch.long), BACKGROUND)
    torch.testing.assert_close(classifier.mean, torch.tensor([2.0, 3.0]))
    classifier.observe(x, torch.tensor([BACKGROUND, 1, BACKGROUND]), BACKGROUND)
    torch.testing.assert_close(classifier.mean, torch.tensor([4.0, 5.5]))


def test_class_zero_counts_and_the_background_index_does_not() -> None:
    """A published port takes labels > 0 for foreground, which loses class 0 and takes the background in."""
    classifier = DeconfoundedClassifier(2, 4, momentum=0.0)
    classifier.observe(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, BACKGROUND]), BACKGROUND)
    assert classifier.mean.tolist() == [1.0, 0.0]


def test_the_mean_is_saved_and_gets_no_gradient() -> None:
    classifier, x = built(0)
    assert "mean" in classifier.state_dict()
    x.requires_grad_()
    classifier.observe(x, torch.zeros(5, dtype=torch.long), BACKGROUND)
    assert not classifier.mean.requires_grad


def test_waits_for_no_device() -> None:
    classifier = DeconfoundedClassifier(8, 4).to("meta")
    x = torch.empty(5, 8, device="meta")
    classifier.observe(x, torch.empty(5, dtype=torch.long, device="meta"), BACKGROUND)
    assert classifier.detection_logits(x, BACKGROUND).shape == (5, 4)


def test_published_defaults_and_bad_options() -> None:
    classifier = DeconfoundedClassifier(8, 4)
    values = (classifier.heads, classifier.temperature, classifier.gamma, classifier.alpha, classifier.momentum)
    assert values == (2, 16.0, 1 / 32, 1.5, 0.9998)
    for name, value in {"heads": 0, "temperature": 0.0, "gamma": -1.0, "alpha": -1.0, "momentum": 1.0}.items():
        with pytest.raises(ValueError, match=name):
            DeconfoundedClassifier(8, 4, **{name: value})  # type: ignore[arg-type]
