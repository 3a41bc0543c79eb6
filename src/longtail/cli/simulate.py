"""``longtail simulate``: what a recipe's sampler and memory do to the classes in an epoch, without training."""

from __future__ import annotations

import argparse
from pathlib import Path

from longtail.cli.command import Command, add_json, add_overrides, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("recipe", help="a recipe with an image sampler, object_memory or both: rfs, ocs, rio")
    add_overrides(parser)
    parser.add_argument("--train", nargs="+", required=True, metavar="DATA", help="training annotations")
    parser.add_argument("--epochs", type=int, default=8, metavar="N", help="epochs that are averaged; default: 8")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="each with a bank; default: 1")
    parser.add_argument(
        "--positives", type=int, default=20, metavar="N", help="positive regions per object and step; default: 20"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the figure as PNG, SVG and CSV")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Counts, prints, and draws if asked to."""
    from longtail.data.sources import read_sources
    from longtail.reports.simulation import simulate
    from longtail.schema import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    table = read_sources(arguments.train, prefer="train", pictures=False)
    simulation = simulate(
        recipe,
        table,
        epochs=arguments.epochs,
        processes=arguments.processes,
        positives=arguments.positives,
    )
    files: list[str] = []
    if arguments.out is not None:
        from longtail.reports.figures.epochs import draw_epochs

        files = [str(path) for path in draw_epochs(simulation).save(arguments.out)]
    if arguments.json:
        print_json({**simulation.to_dict(), "files": files})
    else:
        print("\n".join([simulation.text(), *files]))
    return 0


COMMAND = Command(
    "simulate", "Count instances and bank updates per class in an epoch, without training.", configure, run
)
