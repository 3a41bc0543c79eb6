"""The folder a run lives in."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path

from longtail.data.files import write_json, write_text
from longtail.schema import Recipe, UsageError, dump_recipe

PACKAGES = (
    "longtail", "torch", "torchvision", "lightning-fabric", "hotcoco", "pycocotools", "timm", "numpy", "safetensors",
)  # fmt: skip


def versions() -> dict[str, str | None]:
    """Installed versions of what influences numbers; None = not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


class RunDirectory:
    """Paths of a run, in one place."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / "recipe.yaml"
        self.environment = root / "environment.json"
        self.data = root / "data.json"
        self.log = root / "log.txt"
        self.metrics = root / "metrics.csv"
        self.class_scores = root / "class_scores.csv"
        self.class_norms = root / "class_norms.csv"
        self.last = root / "checkpoints" / "last"
        self.best = root / "checkpoints" / "best"
        self.proposals = root / "proposals"

    def stage(self, index: int, name: str) -> Path:
        """Folder of one stage (1-based in its name)."""
        return self.root / "stages" / f"{index + 1}-{name}"

    def evaluation(self, split: str) -> Path:
        """Folder of one evaluation."""
        return self.root / "eval" / split

    def create(self, recipe: Recipe) -> None:
        """Starts a new run.

        Raises:
            UsageError: the folder holds something already; nothing is ever overwritten.
        """
        leftover = f".{self.recipe.name}."  # of a run that was cut off before it had begun
        if self.root.exists() and any(not path.name.startswith(leftover) for path in self.root.iterdir()):
            raise UsageError(f"{self.root} is not empty; resume it with --resume or choose another --out")
        self.root.mkdir(parents=True, exist_ok=True)
        write_text(self.recipe, dump_recipe(recipe))
        write_json(
            self.environment,
            {
                "python": sys.version.split()[0],
                "platform": platform.platform(),
                "processor": platform.machine(),
                "packages": versions(),
            },
        )

    def require(self) -> None:
        """Refuses a folder that is not a run.

        Raises:
            UsageError: there is no ``recipe.yaml`` in it.
        """
        if not self.recipe.is_file():
            raise UsageError(f"{self.root} is not a run: it has no recipe.yaml")
