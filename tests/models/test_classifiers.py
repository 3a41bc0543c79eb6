from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from longtail.models.classifiers import CosineClassifier, LinearClassifier, NormedLinear

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 10_000))


def norm(row: list[float]) -> float:
    return math.sqrt(sum(v * v for v in row))


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def cosine_oracle(
    x: list[list[float]],
    v: list[list[float]],
    g: list[float] | None,
    b: list[float] | None,
    *,
    scale: float,
    eps: float,
) -> list[list[float]]:
    out = []
    for row in x:
        logits = []
        for c, direction in enumerate(v):
            value = scale * dot(row, direction) / (norm(row) + eps) / norm(direction)
            value *= 1.0 if g is None else g[c]
            logits.append(value + (0.0 if b is None else b[c]))
        out.append(logits)
    return out


def normed_oracle(
    x: list[list[float]], w: list[list[float]], b: list[float], *, t: float, a: float, eps: float
) -> list[list[float]]:
    return [
        [t * dot(row, weight) / (norm(row) ** a + eps) / (norm(weight) ** a + eps) + b[c] for c, weight in enumerate(w)]
        for row in x
    ]


def draw(sizes: tuple[int, int, int, int]) -> tuple[int, int, Tensor]:
    rows, width, outputs, seed = sizes
    torch.manual_seed(seed)
    return width, outputs, torch.randn(rows, width).double()


class TestLinear:
    def test_is_pytorchs_linear_layer_bit_for_bit(self) -> None:
        torch.manual_seed(3)
        ours = LinearClassifier(7, 4)
        torch.manual_seed(3)
        theirs = nn.Linear(7, 4)
        assert set(ours.state_dict()) == {"weight", "bias"}
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)
        x = torch.randn(5, 7)
        assert torch.equal(ours(x), theirs(x))

    def test_std_draws_normal_weights_and_zero_biases(self) -> None:
        classifier = LinearClassifier(200, 50, std=0.01)
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not classifier.bias.any()

    def test_prior_leaves_the_weights_their_distribution(self) -> None:
        classifier = LinearClassifier(200, 50, std=0.01)
        classifier.initialise(-6.907)
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert torch.equal(classifier.bias.detach(), torch.full((50,), -6.907))

    def test_refuses_no_spread(self) -> None:
        with pytest.raises(ValueError, match="std must be positive"):
            LinearClassifier(3, 3, std=0.0)


class TestCosine:
    @settings(max_examples=20, deadline=None)
    @given(SIZES, st.booleans(), st.booleans())
    def test_oracle(self, sizes: tuple[int, int, int, int], learn_norm: bool, bias: bool) -> None:
        width, outputs, x = draw(sizes)
        classifier = CosineClassifier(width, outputs, scale=48.0, learn_norm=learn_norm, bias=bias, eps=1e-2).double()
        with torch.no_grad():
            for parameter in classifier.parameters():
                parameter.add_(torch.rand_like(parameter))
        wanted = cosine_oracle(
            x.tolist(),
            classifier.direction.tolist(),
            None if classifier.length is None else classifier.length[:, 0].tolist(),
            None if classifier.bias is None else classifier.bias.tolist(),
            scale=48.0,
            eps=1e-2,
        )
        torch.testing.assert_close(classifier(x), torch.tensor(wanted, dtype=torch.float64))

    def test_published_defaults(self) -> None:
        classifier = CosineClassifier(1024, 31)
        assert classifier.scale == 48.0
        assert classifier.eps == 1e-5
        assert classifier.bias is None
        assert classifier.length is not None
        assert classifier.length.shape == (31, 1)
        torch.testing.assert_close(classifier.length, classifier.direction.norm(dim=1, keepdim=True))
        assert classifier.length.mean().item() == pytest.approx(0.577, abs=0.01)
        assert classifier.direction.abs().max() <= 1 / 32

    @settings(max_examples=10, deadline=None)
    @given(st.floats(0.1, 100), st.integers(0, 1000))
    def test_scale_of_features_and_directions_does_not_matter(self, factor: float, seed: int) -> None:
        torch.manual_seed(seed)
        classifier = CosineClassifier(6, 4, eps=0.0).double()
        x = torch.randn(5, 6).double()
        before = classifier(x)
        torch.testing.assert_close(classifier(x * factor), before)
        with torch.no_grad():
            classifier.direction[1] *= factor
        torch.testing.assert_close(classifier(x), before)

    def test_linear_in_the_length_of_its_own_class(self) -> None:
        classifier = CosineClassifier(6, 4)
        x = torch.randn(5, 6)
        before = classifier(x)
        assert classifier.length is not None
        with torch.no_grad():
            classifier.length[2] *= 3
        after = classifier(x)
        torch.testing.assert_close(after[:, 2], 3 * before[:, 2])
        torch.testing.assert_close(after[:, [0, 1, 3]], before[:, [0, 1, 3]])

    def test_without_lengths_logits_stay_within_the_scale(self) -> None:
        classifier = CosineClassifier(6, 4, scale=20.0, learn_norm=False)
        assert set(dict(classifier.named_parameters())) == {"direction"}
        x = classifier.direction.detach() * 7
        logits = classifier(x)
        assert logits.abs().max() <= 20.0 + 1e-4
        torch.testing.assert_close(logits.diagonal(), torch.full((4,), 20.0), rtol=1e-4, atol=1e-3)

    def test_a_prior_creates_a_bias_that_is_not_scaled(self) -> None:
        classifier = CosineClassifier(6, 4)
        assert "bias" not in classifier.state_dict()
        classifier.initialise(-6.907)
        torch.testing.assert_close(classifier(torch.zeros(2, 6)), torch.full((2, 4), -6.907))
        assert "bias" in dict(classifier.named_parameters())

    def test_refuses_bad_options(self) -> None:
        with pytest.raises(ValueError, match="scale must be positive"):
            CosineClassifier(3, 3, scale=0.0)


class TestNormedLinear:
    @settings(max_examples=20, deadline=None)
    @given(SIZES, st.sampled_from([0.5, 1.0, 2.0]))
    def test_oracle(self, sizes: tuple[int, int, int, int], power: float) -> None:
        width, outputs, x = draw(sizes)
        classifier = NormedLinear(width, outputs, temperature=20.0, power=power, eps=1e-2).double()
        with torch.no_grad():
            classifier.bias.normal_()
        wanted = normed_oracle(
            x.tolist(), classifier.weight.tolist(), classifier.bias.tolist(), t=20.0, a=power, eps=1e-2
        )
        torch.testing.assert_close(classifier(x), torch.tensor(wanted, dtype=torch.float64))

    def test_published_defaults(self) -> None:
        classifier = NormedLinear(200, 50)
        assert (classifier.temperature, classifier.power, classifier.eps) == (20.0, 1.0, 1e-6)
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not classifier.bias.any()

    def test_scale_of_features_and_weights_does_not_matter(self) -> None:
        classifier = NormedLinear(6, 4, eps=0.0).double()
        x = torch.randn(5, 6).double()
        before = classifier(x)
        torch.testing.assert_close(classifier(x * 13), before)
        with torch.no_grad():
            classifier.weight[3] *= 0.01
        torch.testing.assert_close(classifier(x), before)

    def test_refuses_bad_options(self) -> None:
        with pytest.raises(ValueError, match="temperature and power"):
            NormedLinear(3, 3, power=0.0)
