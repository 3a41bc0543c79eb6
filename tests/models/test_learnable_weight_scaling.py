from __future__ import annotations

import pytest
import torch

from longtail.models import LearnableWeightScaling, LinearClassifier


def test_starts_as_the_linear_classifier_it_takes_its_weights_from() -> None:
    linear, scaled = LinearClassifier(6, 4), LearnableWeightScaling(6, 4)
    missing, unexpected = scaled.load_state_dict(linear.state_dict(), strict=False)
    assert (missing, unexpected) == (["scale"], [])
    x = torch.randn(5, 6)
    torch.testing.assert_close(scaled(x), linear(x))


def test_is_drawn_like_the_linear_classifier() -> None:
    torch.manual_seed(3)
    linear = LinearClassifier(6, 4)
    torch.manual_seed(3)
    scaled = LearnableWeightScaling(6, 4)
    assert torch.equal(linear.weight, scaled.weight)
    assert torch.equal(linear.bias, scaled.bias)


def test_agrees_with_loops() -> None:
    classifier = LearnableWeightScaling(6, 4).double()
    with torch.no_grad():
        classifier.scale.copy_(torch.tensor([0.5, 1.0, 2.0, -1.0]))
    x = torch.randn(5, 6).double()
    for row, logits in zip(x.tolist(), classifier(x).tolist(), strict=True):
        for c in range(4):
            dot = sum(a * b for a, b in zip(row, classifier.weight[c].tolist(), strict=True))
            wanted = classifier.scale[c].item() * dot + classifier.bias[c].item()
            assert logits[c] == pytest.approx(wanted), "the bias is not scaled"
