"""The transformer starts as in the released code of Deformable DETR."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longtail.models.query_transformer import query_transformer

CHANNELS = 64
HIDDEN = 96


def transformer(**options: Any) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "levels": 4, "channels": CHANNELS, "hidden": HIDDEN, "heads": 4, "points": 4, "encoder_layers": 2,
        "decoder_layers": 2, "dropout": 0.1, "num_queries": 300, "box_refine": True, "two_stage": True,
    }  # fmt: skip
    return query_transformer([16, 32, 64], **settings | options)


def is_uniform(weight: Tensor, bound: float) -> bool:
    """Whether values of U(-bound, bound) are likely: their greatest and their spread."""
    spread = float(weight.detach().std()) / (bound / math.sqrt(3))
    return bool(0.97 * bound < weight.abs().max() <= bound) and math.isclose(spread, 1, abs_tol=0.05)


def xavier(weight: Tensor) -> float:
    return math.sqrt(6 / (weight.shape[0] + weight.shape[1]))


@pytest.mark.parametrize("two_stage", [True, False])
def test_matrices_start_xavier_uniform_and_biases_at_zero(two_stage: bool) -> None:
    model = transformer(two_stage=two_stage)
    seen = 0
    for name, weight in model.named_parameters():
        if weight.dim() != 2 or "sampling_offsets" in name or "attention_weights" in name:
            continue
        if name in ("level_embed", "query_position_embeddings.weight"):
            assert math.isclose(float(weight.detach().std()), 1, abs_tol=0.1), name
        elif name == "reference_points.weight":
            assert 0 < weight.abs().max() <= xavier(weight)
        elif any(f".{which}_proj." in name for which in "qkv"):
            assert is_uniform(weight, math.sqrt(6 / (4 * CHANNELS))), name
            seen += 1
        else:
            assert is_uniform(weight, xavier(weight)), name
            seen += 1
    # feed-forward twice per layer, value and output of the deformable attention, self-attention; two_stage: two more
    assert seen == 2 * (2 + 2) + 2 * (2 + 2 + 4) + 2 * two_stage
    for name, bias in model.named_parameters():
        if name.endswith("bias") and "sampling_offsets" not in name:
            assert not bias.any(), name


def test_matrices_can_start_as_in_transformers() -> None:
    model = transformer(start="normal")
    for layer in model.decoder.layers:
        for weight in (layer.mlp.fc1.weight, layer.self_attn.q_proj.weight):
            assert math.isclose(float(weight.detach().std()), 0.02, rel_tol=0.05)


def test_query_key_and_value_start_as_in_pytorchs_attention() -> None:
    theirs = nn.MultiheadAttention(CHANNELS, 4)
    own = transformer().decoder.layers[0].self_attn
    ours = torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight])
    assert ours.shape == theirs.in_proj_weight.shape
    assert math.isclose(float(ours.detach().std()), float(theirs.in_proj_weight.detach().std()), rel_tol=0.03)


def test_deformable_attention_starts_on_its_grid() -> None:
    for layer in transformer().encoder.layers:
        attention = layer.self_attn
        assert not attention.sampling_offsets.weight.any()
        assert not attention.attention_weights.weight.any()
        offsets = attention.sampling_offsets.bias.detach().reshape(4, 4, 4, 2)
        assert torch.allclose(offsets.abs().amax(dim=-1), torch.arange(1.0, 5.0).expand(4, 4, 4)), "n cells away"


def test_the_maps_themselves_are_not_dropped() -> None:
    model = transformer(dropout=0.5)
    entered: list[Tensor] = []
    model.encoder.layers[0].register_forward_pre_hook(lambda layer, inputs: entered.append(inputs[0]))
    maps = torch.rand(1, 4, CHANNELS)
    model.encoder.train()(
        inputs_embeds=maps,
        attention_mask=torch.ones(1, 4, dtype=torch.bool),
        spatial_position_embeddings=torch.zeros(1, 4, CHANNELS),
        spatial_shapes=torch.tensor([[1, 1]] * 4),
        spatial_shapes_list=[(1, 1)] * 4,
        level_start_index=torch.arange(4),
        valid_ratios=torch.ones(1, 4, 2),
    )
    assert torch.equal(entered[0], maps)
    assert model.encoder.layers[0].dropout == model.encoder.layers[0].mlp.dropout == 0.5
