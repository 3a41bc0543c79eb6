"""What all parts of a recipe have in common: one frozen model each, told apart by ``type``.

Defaults are the published values. A field without a value in the file keeps its default; an unknown field is an error.
The parts themselves are in the modules beside this one, by seam.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Part(BaseModel):
    """Base of everything in a recipe: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _default_types(cls, given: Any) -> Any:
        """A part whose ``type`` is not said is of its default type: ``model.neck.balance=bfp`` changes the pyramid."""
        if not isinstance(given, dict):
            return given
        known = {
            name: getattr(cls.model_fields[name].default, "type", None) for name in given.keys() & cls.model_fields
        }
        return {
            name: {"type": known[name], **value} if known.get(name) and isinstance(value, dict) else value
            for name, value in given.items()
        }


def named(value: Any) -> Any:
    """Lets ``sampler: uniform`` stand for ``sampler: {type: uniform}``."""
    return {"type": value} if isinstance(value, str) else value
