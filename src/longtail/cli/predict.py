"""``longtail predict``: detections on pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from longtail.cli.command import Command, add_device, add_json, add_quiet, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="a picture, or a folder of pictures")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results and drawings go")
    parser.add_argument("--score", type=float, default=0.3, metavar="S", help="least score kept; default: 0.3")
    parser.add_argument("--no-drawings", action="store_true", help="only the JSON file")
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last", help="which weights")
    add_device(parser)
    add_quiet(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes COCO results, and each picture with its detections drawn in the colour of the class's group."""
    from longtail.reports.drawings import draw_folder
    from longtail.schema import UsageError
    from longtail.training import api
    from longtail.training.progress import make_progress

    if not 0 <= arguments.score <= 1:
        raise UsageError(f"--score lies between 0 and 1, got {arguments.score}")
    file = api.predict(
        arguments.run,
        arguments.images,
        out=arguments.out,
        score_threshold=arguments.score,
        checkpoint=arguments.checkpoint,
        device=arguments.device,
        progress=make_progress(quiet=arguments.quiet),
    )
    folder = arguments.out / "drawings"
    drawn = 0 if arguments.no_drawings else draw_folder(file, arguments.images, folder)
    if arguments.json:
        print_json({"detections": str(file), "drawings": str(folder) if drawn else None})
        return 0
    print(f"detections  {file}")
    if drawn:
        print(f"drawings    {folder} ({drawn} pictures)")
    return 0


COMMAND = Command("predict", "Detect objects in pictures with a trained run.", configure, run)
