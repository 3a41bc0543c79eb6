"""``longtail pictures``: folders of pictures by class, for image classification."""

from __future__ import annotations

import argparse
from pathlib import Path

from longtail.cli.command import Command, add_json, add_quiet, print_json

PROFILES = ("exponential", "step")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("source", metavar="IN", help="CIFAR for Python (folder or .tar.gz), or any annotations")
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder")
    parser.add_argument("--imbalance", type=float, metavar="F", help="CIFAR: most frequent training class to rarest")
    parser.add_argument("--profile", choices=PROFILES, default=PROFILES[0], help="default: exponential")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="CIFAR: which pictures; default: 0")
    parser.add_argument("--images", type=Path, metavar="DIR", help="annotations: folder of the pictures")
    parser.add_argument("--margin", type=float, default=0.1, metavar="M", help="around objects; default: 0.1")
    add_quiet(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes the pictures, and says how many of the most frequent and of the rarest class."""
    from longtail.cli.shapes import counting
    from longtail.data.cifar import kind_of
    from longtail.data.sources import read_sources
    from longtail.data.write_pictures import write_cifar, write_crops
    from longtail.schema import UsageError
    from longtail.training.progress import make_progress

    if arguments.seed < 0 or not 0 <= arguments.margin <= 10:
        raise UsageError("--seed is at least 0, --margin between 0 and 10")
    source = Path(arguments.source)
    progress = make_progress(quiet=arguments.quiet)
    told = counting(progress.start, progress.advance)
    if kind_of(source) is not None:
        made = write_cifar(
            source,
            arguments.out,
            imbalance=arguments.imbalance,
            profile=arguments.profile,
            seed=arguments.seed,
            told=told,
        )
    else:
        if arguments.imbalance is not None:
            raise UsageError("--imbalance is for CIFAR; `longtail subset` makes long-tailed parts of annotations")
        table = read_sources(arguments.source, arguments.images)
        made = write_crops(table, arguments.out, margin=arguments.margin, told=told)
    progress.finish()
    if arguments.json:
        print_json({"folder": str(made.folder), "counts": made.counts})
        return 0
    for split, counts in made.counts.items():
        folder = made.folder / split if split else made.folder
        values = list(counts.values())
        print(f"{folder}: {sum(values)} pictures of {len(values)} classes, {max(values)} to {min(values)} of each")
    return 0


COMMAND = Command("pictures", "Make a folder of pictures by class, from CIFAR or from objects.", configure, run)
