"""One bar for several runs at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longtail.schema import Recipe
    from longtail.training.progress import Progress


class Overall:
    """Adds up what the children report: images learnt from, and images detected in at the end.

    Args:
        recipes: of the runs, by name.
        train, val: training and validation images.
        progress: told of the sum.
    """

    def __init__(self, recipes: Mapping[str, Recipe], *, train: int, val: int, progress: Progress) -> None:
        from longtail.training.schedule import total_images

        self.progress = progress
        self.before: dict[str, dict[str, int]] = {}
        self.total: dict[str, int] = {}
        self.done = dict.fromkeys(recipes, 0)
        for name, recipe in recipes.items():
            length, self.before[name] = 0, {}
            for stage in recipe.stages:
                self.before[name][f"train {stage.name}"] = length
                length += total_images(stage.schedule, train)
            self.before[name]["detect"] = length
            self.total[name] = length + val
        progress.start(f"{len(recipes)} runs, images", sum(self.total.values()))

    def watch(self, name: str, state: dict[str, object]) -> None:
        """Takes in what a child wrote last."""
        before, done = self.before[name].get(str(state.get("title"))), state.get("done")
        if before is not None and isinstance(done, int):
            text = str(state.get("text") or "")
            self.reach(name, min(before + done, self.total[name]), f"{name} {text}".strip())

    def finish(self, name: str) -> None:
        """A child has ended well."""
        self.reach(name, self.total[name], f"{name} finished")
        self.progress.message(f"{name} finished")

    def reach(self, name: str, done: int, text: str) -> None:
        """Moves one run forward, never back."""
        step = done - self.done[name]
        if step > 0:
            self.done[name] = done
            self.progress.advance(step, text)


def count_images(path: Path) -> int:
    """Images listed in an annotation file."""
    import json

    return len(json.loads(path.read_text(encoding="utf-8"))["images"])
