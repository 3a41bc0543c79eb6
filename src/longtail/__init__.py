"""Long-tailed object detection and instance segmentation.

The names below are loaded when first used, so that ``import longtail`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longtail.data.check import check
    from longtail.schema import Recipe, load_recipe
    from longtail.training.api import evaluate, predict, resume, train

__version__ = "0.1.0"

__all__ = ["Recipe", "__version__", "check", "evaluate", "load_recipe", "predict", "resume", "train"]

HOMES = {
    "check": "longtail.data.check",
    "Recipe": "longtail.schema",
    "load_recipe": "longtail.schema",
    "train": "longtail.training.api",
    "resume": "longtail.training.api",
    "evaluate": "longtail.training.api",
    "predict": "longtail.training.api",
}


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module 'longtail' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
