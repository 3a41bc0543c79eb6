"""One bar for several runs."""

from __future__ import annotations

import json
from pathlib import Path

from longtail.cli.overall import Overall, count_images
from longtail.schema import load_recipe


def test_progress_adds_up_and_never_goes_back(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps({"images": [{}] * 120}))
    steps: list[int] = []
    totals: list[int] = []

    class Count:
        def start(self, title: str, total: int, done: int = 0) -> None:
            totals.append(total)

        def advance(self, amount: int, text: str = "") -> None:
            steps.append(amount)

        def message(self, text: str) -> None:
            """Not looked at."""

        def finish(self) -> None:
            """Not looked at."""

    recipes = {
        f"{name}-seed0": load_recipe(name, ["scale=tiny", "stages.*.schedule.images=80"])
        for name in ("baseline", "rfs")
    }
    overall = Overall(recipes, train=count_images(tmp_path / "train.json"), val=40, progress=Count())
    assert totals == [2 * (80 + 40)]
    overall.watch("rfs-seed0", {"title": "train end-to-end", "done": 30})
    overall.watch("rfs-seed0", {"title": "train end-to-end", "done": 20})  # resumed from a checkpoint
    overall.watch("rfs-seed0", {"title": "something else", "done": 500})
    assert sum(steps) == 30
    overall.watch("rfs-seed0", {"title": "detect", "done": 10})
    assert sum(steps) == 90
    overall.finish("rfs-seed0")
    overall.finish("baseline-seed0")
    assert sum(steps) == totals[0]
    assert min(steps) > 0
