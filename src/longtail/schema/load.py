"""Loads a recipe: ``extends``, the scale fragment, overrides, resolution, dumping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from longtail.schema.errors import UsageError
from longtail.schema.explain import nearest
from longtail.schema.image_classifier import picture_backbone_by_name
from longtail.schema.model import DEFAULT, inner_keys, model_keys
from longtail.schema.recipe import Recipe

DEPTH = 3
BARE_NAMES = (
    "model", "neck", "balance", "sampler", "region_sampler", "classifier", "classification_loss", "box_loss",
    "optimiser", "resize", "colour", "copy_paste", "adjust", "head", "deformable", "calibration",
    "assign", "exemplars",
)  # fmt: skip
BARE_LISTS = ("replay", "passes_before", "passes_after_epoch", "passes_after", "auxiliary_losses")  # of such names
SAME_KEYS = ("model", "neck")  # mappings whose other keys survive a change of type
SURVIVING = {"region_sampler": ("count", "positive_fraction")}  # keys that survive a change of type: how many regions
DEFAULT_SCALE = "lvis_v1"
Tree = dict[str, Any]


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return _names("recipes")


def scale_names() -> list[str]:
    """Names of the scale fragments that come with the package."""
    return _names("recipes/scales")


def load_recipe(name: str | Path, overrides: Sequence[str] = (), *, scale: str | None = None) -> Recipe:
    """Loads a shipped recipe by name, or a recipe file, and resolves it completely.

    Merged from weak to strong: the schema's defaults, the scale fragment, what the recipe ``extends``, the recipe, the
    overrides. Mappings merge key by key, lists are replaced, stages merge by name; where two mappings differ in
    ``type`` the stronger one stands alone, except that a region sampler keeps how many regions there are. What a scale
    says of parts that the chosen kind of model lacks is left out; what a recipe or an override says of them is a
    mistake.

    Args:
        name: a shipped recipe's name or the path of a YAML file (a run's ``recipe.yaml`` included).
        overrides: ``key.path=value`` texts; ``stages.<name>.<key>``, or ``stages.*.<key>`` for every stage;
            ``scale=<name>`` chooses the scale.
        scale: the same as the override ``scale=<name>``.

    Raises:
        UsageError: an unknown recipe, scale or key (with the nearest known one), or a value out of bounds.
    """
    changes = [_split(text) for text in overrides]
    for path, value in changes:
        if path == ["scale"]:
            scale = str(value)
    changes = [(path, value) for path, value in changes if path != ["scale"]]
    tree = _chain(name, DEPTH)
    scale = scale or tree.get("scale") or DEFAULT_SCALE
    fragment = _read_shipped("recipes/scales", scale, "scale")
    stage_defaults: Tree = fragment.pop("stage_defaults", {})
    own_defaults: Tree = fragment.pop("named_stage_defaults", {})
    part_defaults: Tree = fragment.pop("parts", {})
    asked = _asked_of_model(tree, changes)
    tree = merge(fragment, tree)
    tree["scale"] = scale
    for path, value in changes:
        _set(tree, path, value)
    tree["model"] = _without_foreign_keys(spelled_out("model", tree.get("model", {})), asked)
    stages = [
        merge(merge(stage_defaults, own_defaults.get(stage["name"], {})), stage) for stage in tree.get("stages", [])
    ]
    tree["stages"] = stages
    tree = _with_part_defaults(tree, part_defaults)
    return Recipe.parse(tree, origin=f"recipe {tree.get('name', name)!s}")


def change_recipe(recipe: Recipe, overrides: Sequence[str], *, below: str) -> Recipe:
    """A resolved recipe with some keys changed; only keys below ``below`` may be.

    Args:
        recipe: stays as it is.
        overrides: ``key.path=value`` texts.
        below: e.g. ``model.inference``.

    Raises:
        UsageError: a key elsewhere, an unknown key, or a value out of bounds.
    """
    tree = recipe.model_dump(mode="json")
    for text in overrides:
        path, value = _split(text)
        if not ".".join(path).startswith(f"{below}."):
            raise UsageError(f"only keys below {below} can be changed here, got {text!r}")
        _set(tree, path, value)
    return Recipe.parse(tree, origin=f"recipe {recipe.name}")


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; loading it again gives an equal object."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100, allow_unicode=True)


def merge(weak: Tree, strong: Tree) -> Tree:
    """``weak`` overlaid with ``strong``; neither is changed."""
    result = dict(weak)
    for one, other in (("epochs", "images"), ("images", "epochs")):  # a schedule's length is given in one of the two
        if strong.get(one) is not None and isinstance(weak.get(other), int | float):
            result[other] = None
    for key, given in strong.items():
        old, value = spelled_out(key, result.get(key)), spelled_out(key, given)
        if key == "stages" and isinstance(old, list) and isinstance(value, list):
            result[key] = _merge_stages(old, value)
        elif isinstance(value, dict) and isinstance(old, dict):
            same_part = key in SAME_KEYS or "type" not in value or value["type"] == old.get("type")
            kept = {name: old[name] for name in SURVIVING.get(key, ()) if name in old}
            result[key] = merge(old if same_part else kept, value)
        else:
            result[key] = value
    return result


def spelled_out(key: str, value: Any) -> Any:
    """The mapping a bare name stands for: ``sampler: uniform``, ``backbone: resnet101``, ``model: mask_rcnn``; those of
    the names in a list: ``replay: [object_memory]``."""
    if key in BARE_LISTS and isinstance(value, list):
        return [{"type": item} if isinstance(item, str) else item for item in value]
    if not isinstance(value, str):
        return value
    if key == "backbone":
        return picture_backbone_by_name(value)
    return {"type": value} if key in BARE_NAMES else value


def _merge_stages(weak: list[Tree], strong: list[Tree]) -> list[Tree]:
    order = list(dict.fromkeys(stage["name"] for stage in [*weak, *strong]))
    by_name = {stage["name"]: stage for stage in weak}
    for stage in strong:
        by_name[stage["name"]] = merge(by_name.get(stage["name"], {}), stage)
    return [by_name[name] for name in order]


def _with_part_defaults(value: Any, defaults: Mapping[str, Tree]) -> Any:
    """Every mapping whose ``type`` has defaults gets those it does not set itself; a bare name counts as its type."""
    if isinstance(value, list):
        return [_with_part_defaults(item, defaults) for item in value]
    if isinstance(value, dict):
        filled = {key: _with_part_defaults(spelled_out(key, item), defaults) for key, item in value.items()}
        kind = value.get("type")
        return merge(defaults[kind], filled) if isinstance(kind, str) and kind in defaults else filled
    return value


def _chain(name: str | Path, depth: int) -> Tree:
    tree = _read(name)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if depth == 0:
        raise UsageError(f"{name}: `extends` reaches deeper than {DEPTH} levels; write the recipe out")
    if isinstance(name, Path) or str(name).endswith((".yaml", ".yml")):
        sibling = Path(name).parent / f"{parent}.yaml"
        parent = sibling if sibling.is_file() else parent
    return merge(_chain(parent, depth - 1), tree)


def _read(name: str | Path) -> Tree:
    if isinstance(name, Path) or str(name).endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"there is no recipe file {path}")
        return {"name": path.stem, **_parse(path.read_text(encoding="utf-8"), str(path))}
    return _read_shipped("recipes", name, "recipe")


def _read_shipped(folder: str, name: str, kind: str) -> Tree:
    known = _names(folder)
    if name not in known:
        raise UsageError(f"there is no {kind} {name!r}; {nearest(name, known)}")
    file = resources.files("longtail").joinpath(folder, f"{name}.yaml")
    tree = _parse(file.read_text(encoding="utf-8"), f"{kind} {name}")
    return {"name": name, **tree} if kind == "recipe" else tree


def _names(folder: str) -> list[str]:
    files = resources.files("longtail").joinpath(folder).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def _parse(text: str, origin: str) -> Tree:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{origin} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{origin} must hold a mapping, got {type(tree).__name__}")
    for stage in tree.get("stages", []):
        if not isinstance(stage, dict) or "name" not in stage:
            raise UsageError(f"{origin}: every stage is a mapping with a `name`")
    return tree


def _split(text: str) -> tuple[list[str], Any]:
    key, found, value = text.partition("=")
    if not found or not key:
        raise UsageError(f"an override is written key.path=value, got {text!r}")
    try:
        return key.split("."), yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"the value of {text!r} is not valid YAML") from None


def _set(tree: Tree, path: list[str], value: Any) -> None:
    """Overlays one override on ``tree`` in place, along ``path``."""
    if path[0] == "stages" and len(path) >= 3:
        names = [stage["name"] for stage in tree.get("stages", [])]
        wanted = names if path[1] == "*" else [path[1]]
        if wanted[0] not in names:
            raise UsageError(f"there is no stage {path[1]!r}; {nearest(path[1], names)}")
        tree["stages"] = [
            merge(stage, _nest(path[2:], value)) if stage["name"] in wanted else stage for stage in tree["stages"]
        ]
        return
    tree.update(merge(tree, _nest(path, value)))


def _asked_of_model(tree: Tree, changes: Sequence[tuple[list[str], Any]]) -> dict[str, set[str]]:
    """Keys of the model that a recipe or an override names itself, each with the keys it names below."""
    asked: dict[str, set[str]] = {}
    for mapping in [tree.get("model"), *(_nest(path, value).get("model") for path, value in changes)]:
        for key, inner in mapping.items() if isinstance(mapping, dict) else ():
            asked.setdefault(key, set()).update(inner if isinstance(inner, dict) else ())
    return asked


def _without_foreign_keys(model: Any, asked: Mapping[str, set[str]]) -> Any:
    """A model without the keys its kind does not have, except those in ``asked``; the same inside its parts."""
    kind = model.get("type", DEFAULT) if isinstance(model, dict) else ""
    known = model_keys(kind)
    if not known:
        return model
    kept = {key: value for key, value in model.items() if key in known or key in asked}
    for key, value in kept.items():
        inside = inner_keys(kind, key)
        if inside is not None and isinstance(value, dict):
            kept[key] = {name: item for name, item in value.items() if name in inside or name in asked.get(key, ())}
    return kept


def _nest(path: list[str], value: Any) -> Tree:
    for key in reversed(path):
        value = {key: value}
    return dict(value)
