"""Which runs a study needs: rows times seeds, equal ones once, and common first stages once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longtail.data.files import write_text
from longtail.schema import Recipe, dump_recipe, load_recipe
from longtail.schema.detector import TwoStagePart
from longtail.schema.study import Row, Study
from longtail.training.run_directory import RunDirectory

PROPOSER_KEYS = ("backbone", "channels_last", "proposals")
"""Keys of a model that the network that proposes is made of, besides the neck's width and norm."""

HEAD_KEYS = (
    "region_sampler", "classifier", "classification_loss", "box_loss", "box_weight", "mask_weight", "replay",
    "calibration",
)  # fmt: skip
"""Keys of a stage that such a network has no use for."""

SAME_RESULT = ("name", "summary", "paper", "scale", "workers", "threads")
"""Keys of a recipe that change nothing in what is trained."""


@dataclass(frozen=True)
class PlannedRun:
    """One training run.

    Attributes:
        key: equal for runs that give the same weights.
        recipe: resolved, with its seed.
        parent: key of the run whose end this one goes on from, or None.
    """

    key: str
    recipe: Recipe
    parent: str | None

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.recipe.name}-seed{self.recipe.seed}-{self.key[:8]}"


def run_key(recipe: Recipe, stages: int, data: str) -> str:
    """A hash of everything that influences the first ``stages`` stages of a run: recipe, seed and data."""
    content = recipe.model_dump(mode="json")
    content = {key: value for key, value in content.items() if key not in SAME_RESULT}
    content["stages"] = content["stages"][:stages]
    if isinstance(recipe.model, TwoStagePart) and all(s.proposals == "only" for s in recipe.stages[:stages]):
        content["model"] = {key: content["model"][key] for key in PROPOSER_KEYS}
        content["neck"] = [recipe.model.neck.channels, recipe.model.neck.norm]
        content["stages"] = [
            {key: value for key, value in stage.items() if key not in HEAD_KEYS} for stage in content["stages"]
        ]
    return hashlib.sha256(json.dumps([content, data], sort_keys=True).encode()).hexdigest()


def first_stages(recipe: Recipe, stages: int) -> Recipe:
    """The recipe that ends after its first ``stages`` stages."""
    return recipe.model_copy(
        update={"name": f"{recipe.name}-first-{stages}", "stages": recipe.stages[:stages], "summary": "", "paper": ""}
    )


def row_recipe(study: Study, row: Row, folder: Path, seed: int, overrides: Sequence[str]) -> Recipe:
    """A row's resolved recipe; a file is looked for beside the study."""
    assert row.recipe is not None
    beside = folder / row.recipe
    source: str | Path = beside if row.recipe.endswith((".yaml", ".yml")) and beside.is_file() else row.recipe
    return load_recipe(source, [*study.overrides, *row.overrides, *overrides, f"seed={seed}"])


def plan_runs(recipes: Sequence[Recipe], data: str) -> list[PlannedRun]:
    """The runs that ``recipes`` need, parents before children.

    Recipes that are equal but for their names are one run. First stages that are the whole of one recipe, or that
    several have in common, are trained once, and the others go on from there.

    Args:
        recipes: resolved, each with its seed.
        data: what identifies the data.
    """
    whole: dict[str, Recipe] = {}
    for recipe in recipes:
        whole.setdefault(run_key(recipe, len(recipe.stages), data), recipe)
    sharing: dict[str, list[tuple[Recipe, int]]] = {}
    for recipe in whole.values():
        for stages in range(1, len(recipe.stages)):
            sharing.setdefault(run_key(recipe, stages, data), []).append((recipe, stages))
    wanted = dict(whole)
    for key, users in sharing.items():
        if len(users) > 1 and key not in wanted:
            wanted[key] = first_stages(*users[0])
    wanted = {key: recipe for key, recipe in wanted.items() if key in whole or is_used(key, wanted, data)}
    planned = {key: PlannedRun(key, recipe, parent_of(recipe, wanted, data)) for key, recipe in wanted.items()}
    return sorted(planned.values(), key=lambda run: (run.recipe.seed, len(run.recipe.stages)))


def parent_of(recipe: Recipe, runs: Mapping[str, Recipe], data: str) -> str | None:
    """The longest run that is the beginning of this one."""
    keys = (run_key(recipe, stages, data) for stages in range(len(recipe.stages) - 1, 0, -1))
    return next((key for key in keys if key in runs), None)


def is_used(key: str, runs: Mapping[str, Recipe], data: str) -> bool:
    """Whether a run is the direct beginning of more than one other."""
    return sum(parent_of(recipe, runs, data) == key for recipe in runs.values()) > 1


def go_on_from(source: Path, target: Path, recipe: Recipe) -> None:
    """Makes ``target`` the run ``recipe`` that has done what the finished run ``source`` did; resuming it goes on with
    its next stage. The folder appears when it is complete."""
    draft = RunDirectory(target.with_name(f".{target.name}.new"))
    shutil.rmtree(draft.root, ignore_errors=True)
    draft.create(recipe)
    old = RunDirectory(source)
    for file in (old.data, old.log, old.metrics):
        shutil.copyfile(file, draft.root / file.name)
    shutil.copytree(old.last, draft.last)
    if old.best.is_dir():
        shutil.copytree(old.best, draft.best)
    if (source / "stages").is_dir():
        shutil.copytree(source / "stages", draft.root / "stages")
    if old.proposals.is_dir():
        shutil.copytree(old.proposals, draft.proposals, copy_function=link_or_copy)
    draft.root.rename(target)


def link_or_copy(source: str, target: str) -> str:
    """The same file under a second name where the file system can; files of proposals are large and never changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def write_recipe(recipe: Recipe, path: Path) -> None:
    """The resolved recipe as a file that ``longtail train`` takes."""
    write_text(path, dump_recipe(recipe))
