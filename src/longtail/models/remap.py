"""Checkpoints of another label set: class layers are carried over row by row, by class name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from longtail.losses.base import ClassificationLoss
from longtail.losses.mean_score import MeanScore
from longtail.models.classifiers import Classifier
from longtail.models.query_transformer import ProposalClassifier
from longtail.replay.base import FeatureReplay
from longtail.schema.errors import DataError

BOX_REGRESSORS = frozenset({"box_regressor", "regressor"})
MASK_LOGITS = "mask_fcn_logits"


@dataclass(frozen=True)
class ClassLayer:
    """How one tensor is divided among classes.

    Attributes:
        axis: the axis of the classes.
        rows: entries per class along it; class c has ``rows * c`` to ``rows * c + rows - 1``.
        optional: the layer may also be class-agnostic, with ``rows`` entries in all.
        by_position: the entries belong to no class, though there are as many: they keep their places.
    """

    axis: int = 0
    rows: int = 1
    optional: bool = False
    by_position: bool = False


@dataclass(frozen=True)
class RemapReport:
    """What was carried over.

    Attributes:
        matched: target classes that the source has too, by name.
        fresh: target classes that it has not; their rows keep the model's initialisation.
        dropped: source classes that the target has not.
        layers: names of the tensors that were re-mapped.
        left_fresh: names of tensors of class layers that could not be, with the reason; the model keeps its own.
        state_dropped: names of running state of losses and replay, which belongs to the source's classes and starts
            anew.
    """

    matched: tuple[str, ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]
    layers: tuple[str, ...] = ()
    left_fresh: Mapping[str, str] = field(default_factory=dict)
    state_dropped: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """A few lines for a log."""
        lines = [
            f"classes carried over by name: {len(self.matched)} matched, {len(self.fresh)} fresh, "
            f"{len(self.dropped)} dropped; {len(self.layers)} tensors re-mapped"
        ]
        if self.fresh:
            lines.append(f"  fresh: {_few(self.fresh)}")
        if self.dropped:
            lines.append(f"  dropped: {_few(self.dropped)}")
        lines += [f"  {name} starts fresh: {reason}" for name, reason in self.left_fresh.items()]
        if self.state_dropped:
            lines.append(f"  running state that starts anew: {_few(self.state_dropped)}")
        return "\n".join(lines)


def class_layers(model: nn.Module) -> dict[str, ClassLayer]:
    """The class layers of a detector, by parameter name.

    Parameters that any :class:`~longtail.models.classifiers.Classifier` lists in ``class_parameters()``; linear layers
    called ``box_regressor`` or ``regressor`` (four rows per class); mask layers called ``mask_fcn_logits``. The
    classifiers of proposals are listed as well: their width changes with the number of classes.
    """
    layers: dict[str, ClassLayer] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        leaf = path.rpartition(".")[2]
        if isinstance(module, ProposalClassifier):
            layers |= {f"{prefix}{name}": ClassLayer(by_position=True) for name, _ in module.named_parameters()}
        elif isinstance(module, Classifier):
            layers |= {f"{prefix}{name}": ClassLayer(axis=axis) for name, axis in module.class_parameters().items()}
        elif leaf in BOX_REGRESSORS and isinstance(module, nn.Linear):
            layers |= {f"{prefix}{name}": ClassLayer(rows=4, optional=True) for name, _ in module.named_parameters()}
        elif leaf == MASK_LOGITS:
            layers |= {f"{prefix}{name}": ClassLayer(optional=True) for name, _ in module.named_parameters()}
    return layers


def remap_classes(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source_classes: Sequence[str],
    target_classes: Sequence[str],
    layers: Mapping[str, ClassLayer] | None = None,
) -> tuple[dict[str, Tensor], RemapReport]:
    """Turn a state dict of one label set into one that fits the model's label set.

    Rows of classes that both have are copied, rows of new classes hold what the model holds now, and what follows after
    the classes (background, objectness) is copied by its position from the end. What scores the proposals of queries is
    copied by its position from the start: its channel 0 is the objectness. A class layer with another number of further
    logits, or of another width, is taken out and so left as it is. Where the label sets differ in names or order, the
    running state of losses and replay is taken out too. All other tensors pass unchanged, and what then does not fit is
    for :func:`longtail.models.weights.load_state` to report. The model is not changed.

    Args:
        model: the freshly built model of the target classes.
        state: the source's tensors under the model's names.
        source_classes: class names in the order of the source's labels 0..C-1.
        target_classes: the same for the model.
        layers: the class layers, by parameter name; None = :func:`class_layers` of the model.

    Raises:
        DataError: a class name occurs twice in a label set.
    """
    source_row = _rows_by_name(source_classes, "the checkpoint")
    target_row = _rows_by_name(target_classes, "the model")
    matched = [name for name in target_row if name in source_row]
    pairs = torch.tensor([(source_row[name], target_row[name]) for name in matched], dtype=torch.long).reshape(-1, 2)

    remapped = dict(state)
    done: list[str] = []
    left: dict[str, str] = {}
    own = model.state_dict()
    for name, layer in (class_layers(model) if layers is None else layers).items():
        if name not in state:
            left[name] = "not in the checkpoint"
            continue
        old, new = state[name], own[name]
        if layer.optional and old.shape == new.shape and new.shape[layer.axis] == layer.rows:
            continue  # class-agnostic on both sides: nothing belongs to a class
        reason = _misfit(old, new, layer, len(source_row), len(target_row))
        if reason is None and layer.by_position:
            remapped[name] = _carry_by_position(old, new)
            done.append(name)
        elif reason is None:
            further = new.shape[layer.axis] - layer.rows * len(target_row)
            remapped[name] = _carry(old, new, layer, pairs, further=further)
            done.append(name)
        else:
            left[name] = reason
            del remapped[name]

    state_dropped: list[str] = []
    if list(source_classes) != list(target_classes):
        owners = tuple(
            f"{path}."
            for path, module in model.named_modules()
            if path and isinstance(module, ClassificationLoss | FeatureReplay | MeanScore)
        )
        state_dropped = [name for name in remapped if name.startswith(owners)]
        for name in state_dropped:
            del remapped[name]
    return remapped, RemapReport(
        matched=tuple(matched),
        fresh=tuple(name for name in target_row if name not in source_row),
        dropped=tuple(name for name in source_row if name not in target_row),
        layers=tuple(done),
        left_fresh=left,
        state_dropped=tuple(state_dropped),
    )


def _rows_by_name(classes: Sequence[str], owner: str) -> dict[str, int]:
    rows = {name: row for row, name in enumerate(classes)}
    if len(rows) != len(classes):
        twice = sorted({name for name in classes if classes.count(name) > 1})
        raise DataError(
            f"{owner} has more than one class named {_few(tuple(twice))}: classes cannot be matched by name; "
            "give every class a name of its own"
        )
    return rows


def _misfit(old: Tensor, new: Tensor, layer: ClassLayer, source_count: int, target_count: int) -> str | None:
    """Why a layer cannot be carried over, or None if it can."""
    if old.dim() != new.dim() or old.dim() <= layer.axis:
        return f"shape {tuple(old.shape)} in the checkpoint, {tuple(new.shape)} in the model"
    others = [axis for axis in range(new.dim()) if axis != layer.axis]
    if any(old.shape[axis] != new.shape[axis] for axis in others):
        return f"shape {tuple(old.shape)} in the checkpoint, {tuple(new.shape)} in the model"
    further = [t.shape[layer.axis] - layer.rows * n for t, n in ((old, source_count), (new, target_count))]
    if further[0] != further[1] or further[0] < 0:
        return (
            f"{old.shape[layer.axis]} rows for {source_count} classes in the checkpoint, "
            f"{new.shape[layer.axis]} for {target_count} in the model"
        )
    return None


def _carry(old: Tensor, new: Tensor, layer: ClassLayer, pairs: Tensor, *, further: int) -> Tensor:
    """``new`` with the rows of matched classes (``pairs`` (M, 2): source row, target row) and the last ``further`` rows
    of ``old``."""
    source = old.movedim(layer.axis, 0).to(new)
    target = new.detach().clone().movedim(layer.axis, 0)
    rows = (pairs[:, None, :] * layer.rows + torch.arange(layer.rows)[None, :, None]).reshape(-1, 2).to(new.device)
    target[rows[:, 1]] = source[rows[:, 0]]
    if further > 0:
        target[-further:] = source[-further:]
    return target.movedim(0, layer.axis).contiguous()


def _carry_by_position(old: Tensor, new: Tensor) -> Tensor:
    """``new`` with as many of its first entries as ``old`` has."""
    both = min(len(old), len(new))
    target = new.detach().clone()
    target[:both] = old[:both].to(new)
    return target


def _few(names: tuple[str, ...], limit: int = 8) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
