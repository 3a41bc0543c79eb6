"""``longtail convert``: annotations in another format."""

from __future__ import annotations

import argparse
from pathlib import Path

from longtail.cli.command import Command, add_json, note, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("source", metavar="IN", help="COCO or LVIS JSON, VOC folder[:SPLIT], YOLO data.yaml[:SPLIT]")
    parser.add_argument("out", type=Path, metavar="OUT", help="new JSON file (coco) or new folder (yolo, voc)")
    parser.add_argument("--to", choices=("coco", "yolo", "voc"), default="coco", help="default: coco")
    parser.add_argument("--split", metavar="NAME", help="which split of a VOC or YOLO set")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures")
    parser.add_argument("--masks", action="store_true", help="read the instance masks of a VOC folder")
    parser.add_argument("--no-masks", action="store_true", help="write boxes alone")
    parser.add_argument("--force", action="store_true", help="replace what was converted to OUT before")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Converts, and says what the other format does not hold."""
    from longtail.data.convert import convert
    from longtail.schema import UsageError

    if arguments.masks and arguments.no_masks:
        raise UsageError("--masks and --no-masks contradict each other; give one of them")
    done = convert(
        arguments.source,
        arguments.out,
        to=arguments.to,
        split=arguments.split,
        images=arguments.images,
        masks=not arguments.no_masks,
        read_masks=arguments.masks,
        force=arguments.force,
    )
    for line in done.notes:
        note(line)
    if arguments.json:
        print_json(done.to_dict())
        return 0
    print(f"{arguments.to}    {done.path} ({', '.join(f'{number} {name}' for name, number in done.counts.items())})")
    if arguments.to != "coco":
        print(f"images  belong into {done.images}: put them, or a link to their folder, there")
    elif done.images is not None:
        print(f"images  {done.images}")
    return 0


COMMAND = Command("convert", "Write annotations in another format: COCO, YOLO or VOC.", configure, run)
