"""``longtail proposals``: regions proposed once, for detectors that are trained on them."""

from __future__ import annotations

import argparse
from pathlib import Path

from longtail.cli.command import Command, add_device, add_json, add_quiet, print_json
from longtail.cli.ranks import is_first


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run whose detector proposes regions")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where train.arrow and val.arrow go")
    parser.add_argument("--train", action="append", metavar="DATA", help="annotations; default: those of the run")
    parser.add_argument("--images", action="append", metavar="DIR", help="their pictures, as in `longtail train`")
    parser.add_argument("--val", action="append", metavar="DATA", help="validation annotations")
    parser.add_argument("--val-images", action="append", metavar="DIR", help="their pictures; default: as --images")
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last", help="which weights")
    add_device(parser)
    add_quiet(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes the files and says where they are."""
    from longtail.schema import UsageError
    from longtail.training.progress import make_progress
    from longtail.training.write_proposals import proposals

    if arguments.train is None and (arguments.images or arguments.val or arguments.val_images):
        raise UsageError("--images, --val and --val-images belong to other annotations; name these with --train DATA")
    files = proposals(
        arguments.run,
        out=arguments.out,
        train=arguments.train,
        images=arguments.images,
        val=arguments.val,
        val_images=arguments.val_images,
        checkpoint=arguments.checkpoint,
        device=arguments.device,
        progress=make_progress(quiet=arguments.quiet or not is_first()),
    )
    if not is_first():
        return 0
    if arguments.json:
        print_json({"proposals": [str(file) for file in files]})
    else:
        print("\n".join(f"proposals  {file}" for file in files))
    return 0


COMMAND = Command(
    "proposals", "Write the regions a detector proposes, to train others on them.", configure, run, shares_work=True
)
