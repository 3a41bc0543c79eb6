from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from longtail.models.weights import load_state, load_weights, read_state_dict
from longtail.schema.errors import DataError


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), last=nn.Conv2d(4, 2, 1)))


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    source, target = network(1), network(2)
    path = write(tmp_path / f"w{suffix}", dict(source.state_dict()))
    report = load_weights(target, path, strict=True)
    assert report.complete
    assert set(report.loaded) == set(source.state_dict())
    assert report.text == f"{path}: 9 weights loaded"
    assert str(path) in report.text
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
    ],
)
def test_wrapped_dictionaries_are_unpacked(tmp_path: Path, wrap: Any) -> None:
    state = dict(network().state_dict())
    assert set(read_state_dict(write(tmp_path / "w.pth", wrap(state)))) == set(state)


def test_report_of_a_partial_match() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {
        "conv.weight": torch.ones(4, 3, 1, 1),
        "conv.bias": torch.ones(5),
        "norm.num_batches_tracked": torch.tensor(4),
        "other.weight": torch.ones(1),
    }
    report = load_state(model, state, source="there")
    assert report.loaded == ("conv.weight", "norm.num_batches_tracked")
    assert report.unexpected == ("other.weight",)
    assert [(m.name, m.in_file, m.in_model) for m in report.mismatched] == [("conv.bias", (5,), (4,))]
    assert set(report.missing) == {
        "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "last.weight", "last.bias"
    }  # fmt: skip
    assert not report.complete
    for word in ("there", "other.weight", "conv.bias (5,) in the file, (4,) in the model", "and 1 more"):
        assert word in report.text
    after = model.state_dict()
    assert torch.equal(after["conv.weight"], state["conv.weight"])
    assert torch.equal(after["conv.bias"], before["conv.bias"])


def test_strict_refuses_before_touching_the_model() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DataError, match="do not fit"):
        load_state(model, {"conv.weight": torch.ones(4, 3, 1, 1)}, source="there", strict=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_names_rename_and_pass_over() -> None:
    source, target = network(1), network(2)
    state = {f"backbone.{name}": value for name, value in source.state_dict().items()} | {"head": torch.ones(1)}
    report = load_state(
        target,
        state,
        source="there",
        names=lambda name: name.removeprefix("backbone.") if name.startswith("backbone.") else None,
        strict=True,
    )
    assert report.complete
    assert torch.equal(target.state_dict()["conv.weight"], source.state_dict()["conv.weight"])
    with pytest.raises(DataError, match="two tensors are named 'conv'"):
        load_state(target, {"a": torch.ones(1), "b": torch.ones(1)}, source="there", names=lambda name: "conv")


def test_dtype_is_the_models_own() -> None:
    model = network()
    load_state(model, {name: value.double() for name, value in network(5).state_dict().items()}, source="there")
    assert model.state_dict()["conv.weight"].dtype == torch.float32


def test_frozen_batch_norm_takes_batch_norms_weights() -> None:
    report = load_state(nn.Sequential(FrozenBatchNorm2d(4)), nn.Sequential(nn.BatchNorm2d(4)).state_dict(), source="x")
    assert report.complete


class Foreign:
    """Stands for the code in somebody else's pickle."""

    called = False

    def __reduce__(self) -> Any:
        return (_called, ())


def _called() -> int:
    Foreign.called = True
    return 1


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_foreign_pickles_are_refused_and_not_run(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "foreign.pth"
    save({"a": Foreign()}, path)
    with pytest.raises(DataError, match=r"foreign\.pth.*--trust-checkpoint opens it"):
        read_state_dict(path)
    assert not Foreign.called


def test_a_foreign_checkpoint_that_is_trusted_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pth"
    torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(DataError, match="--trust-checkpoint"):
        read_state_dict(path)
    assert torch.equal(read_state_dict(path, trust=True)["a"], torch.ones(2))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be opened"):
        read_state_dict(path, trust=True)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("w.safetensors", b"nonsense", "not a readable safetensors file"),
        ("w.safetensors", b"", "not a readable safetensors file"),
        ("w.pth", b"nonsense", "damaged"),
        ("w.pth", b"", "damaged"),
        ("w.pkl", b"nonsense", r"not from '\.pkl'"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match):
        read_state_dict(tmp_path / name)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", dict(network().state_dict()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged"):
        read_state_dict(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such weights file"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "match"),
    [(torch.ones(3), "holds a Tensor"), ({"a": 3}, "'a' is a int"), ({3: torch.ones(1)}, "entry 3")],
)
def test_files_of_something_else(tmp_path: Path, content: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_state_dict(write(tmp_path / "w.pth", content))


def test_an_empty_dictionary_leaves_everything_missing(tmp_path: Path) -> None:
    empty: dict[str, Tensor] = {}
    report = load_weights(network(), write(tmp_path / "w.pth", empty))
    assert report.loaded == ()
    assert len(report.missing) == 8
