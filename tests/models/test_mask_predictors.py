from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

from longtail.models.mask_predictors import NormalisedConv2d, NormalisedMaskPredictor, OrdinaryMaskPredictor


@pytest.mark.parametrize("kind", [OrdinaryMaskPredictor, NormalisedMaskPredictor])
def test_names_and_shapes_are_torchvisions(kind: type[OrdinaryMaskPredictor]) -> None:
    ours, theirs = kind(8, 6, 5), MaskRCNNPredictor(8, 6, 5)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_ordinary_is_torchvisions_computation() -> None:
    ours, theirs = OrdinaryMaskPredictor(8, 6, 5), MaskRCNNPredictor(8, 6, 5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 8, 4, 4)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("kind", [OrdinaryMaskPredictor, NormalisedMaskPredictor])
def test_initialisation(kind: type[OrdinaryMaskPredictor]) -> None:
    torch.manual_seed(0)
    predictor = kind(256, 64, 40)
    assert not predictor.conv5_mask.bias.any()  # type: ignore[union-attr]
    assert not predictor.mask_fcn_logits.bias.any()  # type: ignore[union-attr]
    # fan out of the 1x1 layer is its number of outputs
    assert predictor.mask_fcn_logits.weight.std().item() == pytest.approx(math.sqrt(2 / 40), rel=0.05)
    # PyTorch counts the fan out of a transposed convolution along its inputs
    assert predictor.conv5_mask.weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 4)), rel=0.05)


@pytest.mark.parametrize("kind", [OrdinaryMaskPredictor, NormalisedMaskPredictor])
@pytest.mark.parametrize("count", [0, 3])
def test_size_doubles_and_no_region_is_no_trouble(kind: type[OrdinaryMaskPredictor], count: int) -> None:
    predictor = kind(8, 6, 5)
    logits = predictor(torch.randn(count, 8, 7, 7))
    assert logits.shape == (count, 5, 14, 14)
    logits.sum().backward()


def test_normalised_layer_oracle() -> None:
    torch.manual_seed(0)
    layer = NormalisedConv2d(3, 2, temperature=20.0).double()
    with torch.no_grad():
        layer.bias.normal_()
    x = torch.randn(2, 3, 2, 2).double()
    x[0, :, 1, 1] = 0  # a dead pixel: its logits are the biases
    out = layer(x)
    for n in range(2):
        for row in range(2):
            for column in range(2):
                pixel = x[n, :, row, column].tolist()
                length = max(math.sqrt(sum(v * v for v in pixel)), 1e-12)
                for c in range(2):
                    weight = layer.weight[c, :, 0, 0].tolist()
                    weight_length = max(math.sqrt(sum(v * v for v in weight)), 1e-12)
                    dot = sum((a / length) * (b / weight_length) for a, b in zip(pixel, weight, strict=True))
                    wanted = 20.0 * dot + layer.bias[c].item()
                    assert out[n, c, row, column].item() == pytest.approx(wanted, abs=1e-10)


def test_normalised_layer_ignores_lengths_and_stays_within_the_temperature() -> None:
    layer = NormalisedConv2d(6, 4).double()
    x = torch.randn(2, 6, 3, 3).double()
    before = layer(x)
    assert before.abs().max() <= 20
    torch.testing.assert_close(layer(x * 50), before)
    with torch.no_grad():
        layer.weight[1] *= 0.1
    torch.testing.assert_close(layer(x), before)


def test_gradients() -> None:
    layer = NormalisedConv2d(3, 2).double()
    x = torch.randn(1, 3, 2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


def test_refuses_a_temperature_of_zero() -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        NormalisedMaskPredictor(3, 3, 3, temperature=0.0)
