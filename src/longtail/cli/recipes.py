"""``longtail recipes``: what ships, and what a recipe is made of."""

from __future__ import annotations

import argparse

from longtail.cli.command import Command, add_json, add_overrides, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="explain this recipe (a name, or a YAML file)")
    add_overrides(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Lists all recipes, or explains one."""
    from longtail.reports.recipes import explain_recipe, list_recipes
    from longtail.schema import load_recipe, recipe_names

    if arguments.name is None:
        found = [load_recipe(name) for name in recipe_names()]
        if arguments.json:
            print_json([{"name": each.name, "summary": each.summary, "paper": each.paper} for each in found])
        else:
            print(list_recipes(found))
        return 0
    recipe = load_recipe(arguments.name, arguments.overrides)
    if arguments.json:
        print_json(recipe.model_dump(mode="json"))
    else:
        print(explain_recipe(recipe))
    return 0


COMMAND = Command("recipes", "List the recipes that ship, or explain one.", configure, run)
