"""``longtail config``: the recipe as it will run."""

from __future__ import annotations

import argparse

from longtail.cli.command import Command, add_json, add_overrides, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="a shipped recipe's name, or a YAML file")
    add_overrides(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the resolved recipe; saved to a file, it loads again to the same recipe."""
    from longtail.schema import dump_recipe, load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.json:
        print_json(recipe.model_dump(mode="json"))
    else:
        print(dump_recipe(recipe), end="")
    return 0


COMMAND = Command("config", "Print a recipe completely resolved, as YAML.", configure, run)
