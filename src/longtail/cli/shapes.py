"""``longtail shapes``: a generated long-tailed data set."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from longtail.cli.command import Command, add_json, add_quiet, print_json

PRESETS = ("smoke", "tiny", "small")
CHANGES = {
    "--size": "side of the pictures in pixels",
    "--classes": "number of classes",
    "--train-images": "training pictures",
    "--val-images": "validation pictures",
    "--most": "training pictures of the most frequent class",
    "--least": "training pictures of the least frequent class",
    "--val-images-per-class": "validation pictures of every class",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("out", type=Path, metavar="OUT", help="new or empty folder")
    parser.add_argument("--preset", choices=PRESETS, help="size of a set of shapes; default: tiny")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--sprites", type=Path, metavar="DIR", help="compose cut-out pictures instead of shapes")
    for option, text in CHANGES.items():
        parser.add_argument(option, type=int, metavar="N", help=text)
    add_quiet(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes the set and says where it lies."""
    from longtail.data.shapes import make_shapes
    from longtail.data.sprites import make_sprite_scenes
    from longtail.schema import UsageError
    from longtail.training.progress import make_progress

    if arguments.sprites is not None and arguments.preset is not None:
        raise UsageError("--preset is for shapes; with --sprites give the sizes one by one")
    names = [option.removeprefix("--").replace("-", "_") for option in CHANGES]
    changes = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    progress = make_progress(quiet=arguments.quiet)
    told = counting(progress.start, progress.advance)
    if arguments.sprites is not None:
        made = make_sprite_scenes(arguments.sprites, arguments.out, seed=arguments.seed, progress=told, **changes)
    else:
        preset = arguments.preset or "tiny"
        made = make_shapes(arguments.out, preset=preset, seed=arguments.seed, progress=told, **changes)
    progress.finish()
    if arguments.json:
        print_json({"train": str(made.train), "val": str(made.val), "images": str(made.images)})
    else:
        print(f"train   {made.train}\nval     {made.val}\nimages  {made.images}")
    return 0


def counting(start: Callable[[str, int], None], advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """From (pictures done, pictures in all) to steps of a progress display."""
    before = 0

    def told(done: int, total: int) -> None:
        nonlocal before
        if before == 0:
            start("generate", total)
        advance(done - before)
        before = done

    return told


COMMAND = Command("shapes", "Write a generated long-tailed data set.", configure, run)
