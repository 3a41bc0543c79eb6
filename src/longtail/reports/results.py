"""Reading results as they lie in a run's folder: the only place that knows the layout of ``metrics.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]
"""An ``EvaluationResult`` as a dictionary."""

RunResults = Mapping[str, Result]
"""Results by IoU type, ``bbox`` and ``segm``."""


def read_results(run: Path, split: str = "val") -> dict[str, Result]:
    """Results of a run on one split by IoU type; empty where it was not evaluated."""
    file = run / "eval" / split / "metrics.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def split_names(run: Path) -> list[str]:
    """The splits a run was evaluated on."""
    return sorted(file.parent.name for file in (run / "eval").glob("*/metrics.json"))


def metrics_of(result: Result) -> dict[str, float | None]:
    """Metrics by name, in 0..1; None = no class behind the mean."""
    return dict(result["metrics"])


def classes_behind(result: Result) -> dict[str, str]:
    """For every metric ``11/12``: classes that the mean is over, of all classes it could be over."""
    return {name: f"{count['with_objects']}/{count['classes']}" for name, count in result["classes_behind"].items()}


def class_rows(result: Result) -> list[Mapping[str, Any]]:
    """One mapping per class with ``id``, ``name``, ``group``, ``train_images``, ``objects``, ``ap`` and more."""
    return list(result["per_class"])


def provenance_of(result: Result) -> dict[str, str]:
    """How the figures were made: protocol, data, caps, engine, versions, as text."""
    settings = {key: in_words(value) for key, value in result["settings"].items() if key != "group_sizes"}
    return {"protocol": str(result["protocol"]), **{key: text for key, text in settings.items() if text}}


def in_words(value: object) -> str:
    """``{"per_image": 300}`` as ``per_image 300``, a list with commas, anything else as it is; nothing for nothing."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return "" if value is None else str(value)


def notes_of(result: Result) -> list[str]:
    """What a reader must know to trust the figures."""
    return list(result["notes"])
