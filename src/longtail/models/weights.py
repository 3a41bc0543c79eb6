"""Weights from local files: what was loaded, what was missing, and no code run on the way."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from longtail.schema.errors import DataError

Rename = Callable[[str], str | None]


@dataclass(frozen=True)
class ShapeMismatch:
    """A weight of the same name and another shape; the model keeps its own."""

    name: str
    in_file: tuple[int, ...]
    in_model: tuple[int, ...]


@dataclass(frozen=True)
class WeightReport:
    """What became of every weight, each list in the order of the model or of the file.

    Attributes:
        source: where the weights came from.
        loaded: names now holding the file's values.
        missing: names of the model that the file lacks; they keep their values.
        unexpected: names of the file that the model lacks.
        mismatched: names in both, with different shapes; the model keeps its values.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[ShapeMismatch, ...]

    @property
    def complete(self) -> bool:
        """Whether model and file agree on every name and shape."""
        return not (self.missing or self.unexpected or self.mismatched)

    @property
    def text(self) -> str:
        """A few lines for a log."""
        lines = [f"{self.source}: {len(self.loaded)} weights loaded"]
        if self.missing:
            lines.append(f"  {len(self.missing)} not in the file: {_few(self.missing)}")
        if self.unexpected:
            lines.append(f"  {len(self.unexpected)} not in the model: {_few(self.unexpected)}")
        if self.mismatched:
            shapes = [f"{m.name} {m.in_file} in the file, {m.in_model} in the model" for m in self.mismatched]
            lines.append(f"  {len(shapes)} of another shape: {_few(tuple(shapes))}")
        return "\n".join(lines)


def read_state_dict(path: str | Path, *, trust: bool = False) -> dict[str, Tensor]:
    """Tensors of a local weights file, on the CPU.

    Reads ``.safetensors``, and ``.pth``/``.pt`` as far as they hold plain tensors: nothing in the file is executed.
    A dictionary that holds its weights under ``"state_dict"`` or ``"model"`` is unpacked, and a ``"module."`` that all
    names start with is cut off.

    Args:
        path: the file.
        trust: also open ``.pth``/``.pt`` files with other Python objects in them. Such a file can run any code when it
            is opened; say so only of files whose origin you know.

    Raises:
        DataError: no such file, an unknown format, a damaged file, or one that holds other Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        try:
            content: Any = load_file(path, device="cpu")
        except SafetensorError as error:
            raise DataError(f"{path}: not a readable safetensors file ({error}); copy or download it again") from error
    elif path.suffix in {".pth", ".pt"}:
        try:
            content = torch.load(path, map_location="cpu", weights_only=not trust)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError, ImportError) as error:
            if trust:
                raise DataError(f"{path}: cannot be opened: {error}; copy or download it again") from error
            raise DataError(
                f"{path}: cannot be read as plain tensors. Either it is damaged, or it holds other Python objects, "
                "which could run code when opened. If you know where it comes from, --trust-checkpoint opens it; "
                "otherwise save its tensors where it was made, with "
                "safetensors.torch.save_file(state_dict, 'weights.safetensors')"
            ) from error
    else:
        raise DataError(f"{path}: weights are read from .safetensors, .pth and .pt files, not from '{path.suffix}'")
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}, not a dictionary of named tensors")
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise DataError(
                f"{path}: entry {name!r} is a {type(value).__name__}, not a tensor; save the model's state_dict() alone"
            )
        state[name] = value
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def load_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    names: Rename | None = None,
    strict: bool = False,
) -> WeightReport:
    """Copy into the model what fits by name and shape; everything else stays as it is and is reported.

    Args:
        model: receives the values, in its own dtype and on its own device.
        state: tensors by name.
        source: where they came from, for the report and for errors.
        names: from a name in ``state`` to the model's, or to None for a tensor to pass over in silence.
        strict: refuse anything but a complete match, before the model is touched.

    Raises:
        DataError: two names became one, or ``strict`` and something is missing, unexpected or of another shape.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        new = name if names is None else names(name)
        if new is None:
            continue
        if new in renamed:
            raise DataError(f"{source}: two tensors are named {new!r} after renaming, the second was {name!r}")
        renamed[new] = value

    own = model.state_dict()
    fitting: dict[str, Tensor] = {}
    mismatched: list[ShapeMismatch] = []
    for name, value in renamed.items():
        if name not in own:
            continue
        if value.shape == own[name].shape:
            fitting[name] = value
        else:
            mismatched.append(ShapeMismatch(name, tuple(value.shape), tuple(own[name].shape)))
    report = WeightReport(
        source=source,
        loaded=tuple(fitting),
        missing=tuple(name for name in own if name not in renamed and not _is_counter(name)),
        unexpected=tuple(name for name in renamed if name not in own and not _is_counter(name)),
        mismatched=tuple(mismatched),
    )
    if strict and not report.complete:
        raise DataError(f"the weights do not fit the model. {report.text}")
    model.load_state_dict(fitting, strict=False)
    return report


def load_weights(
    model: nn.Module, path: str | Path, *, names: Rename | None = None, strict: bool = False
) -> WeightReport:
    """:func:`read_state_dict`, then :func:`load_state`."""
    return load_state(model, read_state_dict(path), source=str(path), names=names, strict=strict)


def _is_counter(name: str) -> bool:
    # batch norm counts its batches, frozen batch norm does not; the count plays no part in the result
    return name.endswith("num_batches_tracked")


def _few(names: tuple[str, ...], limit: int = 5) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
