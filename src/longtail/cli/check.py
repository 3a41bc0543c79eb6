"""``longtail check``: what is wrong with annotations and pictures."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from longtail.cli.command import Command, add_json, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("data", metavar="DATA", help="COCO or LVIS JSON, VOC folder[:SPLIT], YOLO data.yaml[:SPLIT]")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of its pictures, to look at them, too")
    parser.add_argument("--against", metavar="DATA", help="other annotations: pictures in both, lone classes")
    parser.add_argument("--against-images", type=Path, metavar="DIR", help="their pictures; default: --images")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")
    parser.add_argument("--fix", type=Path, metavar="OUT", help="write what can be mended to a new file")
    parser.add_argument("--deep", action="store_true", help="decode every picture completely")
    parser.add_argument("--no-masks", action="store_true", help="masks are not needed")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="larger pictures are errors; default: 178 million")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints all findings; exit code 3 if there are errors (with --strict: or warnings) in what was given."""
    from longtail.data.check import check
    from longtail.data.check_pictures import MAX_PIXELS
    from longtail.data.formats import coco_file
    from longtail.data.mend import fix
    from longtail.schema import UsageError

    masks = not arguments.no_masks
    with ExitStack() as stack:
        data, images = stack.enter_context(coco_file(arguments.data, images=arguments.images))
        against, against_images = None, arguments.against_images
        if arguments.against is not None:
            against, against_images = stack.enter_context(coco_file(arguments.against, images=against_images))
        if arguments.deep and images is None:
            raise UsageError("--deep decodes pictures; say where they are with --images DIR")
        report = check(
            data,
            images=images,
            masks=masks,
            deep=arguments.deep,
            against=against,
            against_images=against_images,
            max_pixels=MAX_PIXELS if arguments.max_pixels is None else arguments.max_pixels,
        )
        report = replace(report, path=arguments.data)
        fixed = None
        if arguments.fix is not None and report.counts:
            fixed = replace(fix(data, arguments.fix, masks=masks), path=arguments.data)
    if arguments.json:
        print_json({**report.to_dict(), "ok": report.ok(arguments.strict), "fix": fixed and fixed.to_dict()})
    else:
        print(report.text())
        if fixed is not None:
            print(f"\n{fixed.text()}")
    return 0 if report.ok(arguments.strict) else 3


COMMAND = Command("check", "Find what is wrong with annotations and pictures.", configure, run)
