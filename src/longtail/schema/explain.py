"""Turns pydantic's validation errors into one line a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every pydantic model inside a (possibly nested) annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def models_at(root: type[BaseModel], location: Sequence[str | int]) -> list[type[BaseModel]]:
    """The models that may stand at a location such as ``("stages", 0, "sampler", "uniform")``."""
    models: list[type[BaseModel]] = [root]
    for key in location:
        if isinstance(key, int):
            continue
        inner = [
            found
            for model in models
            if key in model.model_fields
            for found in models_in(model.model_fields[key].annotation)
        ]
        tagged = [
            model
            for model in models
            if "type" in model.model_fields and key in get_args(model.model_fields["type"].annotation)
        ]
        models = inner or tagged or models
    return models


def nearest(word: str, known: Sequence[str]) -> str:
    """Text that suggests the known word closest to ``word``, or lists them all."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(sorted(known))}"


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """One line per mistake: where it is, what is wrong, what would be right."""
    lines = []
    problems = error.errors()
    # a list whose items are wrong is also reported as too short; the items say more
    for problem in [p for p in problems if p["type"] != "too_short"] or problems:
        where = ".".join(str(key) for key in problem["loc"])
        if problem["type"] == "extra_forbidden":
            key = str(problem["loc"][-1])
            known = sorted({name for model in models_at(root, problem["loc"][:-1]) for name in model.model_fields})
            lines.append(f"unknown key `{where}`; {nearest(key, known)}")
        elif problem["type"] == "union_tag_invalid":
            known = [tag.strip(" '") for tag in problem["ctx"]["expected_tags"].split(",")]
            lines.append(f"`{where}` has no type {problem['ctx']['tag']!r}; {nearest(problem['ctx']['tag'], known)}")
        else:
            lines.append(f"`{where}`: {problem['msg']} (got {problem['input']!r})"[:400])
    return "; ".join(lines)
