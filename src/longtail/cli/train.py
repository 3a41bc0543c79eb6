"""``longtail train``: a recipe on one's own data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from longtail.cli.command import Command, add_device, add_json, add_overrides, add_quiet, note, print_json
from longtail.cli.ranks import is_first

if TYPE_CHECKING:
    from longtail.schema import Recipe


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="a shipped recipe's name, or a YAML file")
    add_overrides(parser)
    parser.add_argument(
        "--train",
        action="append",
        required=True,
        metavar="DATA",
        help="COCO or LVIS JSON, VOC folder[:SPLIT], YOLO data.yaml[:SPLIT]; several are joined",
    )
    parser.add_argument("--images", action="append", metavar="DIR", help="pictures of each COCO file, in order")
    parser.add_argument("--val", action="append", metavar="DATA", help="annotations to evaluate on")
    parser.add_argument("--val-images", action="append", metavar="DIR", help="their pictures; default: as --images")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (not needed with --dry-run)")
    parser.add_argument("--weights", type=Path, metavar="PATH", help="start from this checkpoint or run")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="open weights files that can run code; only for files whose origin you know",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out where it was cut off")
    parser.add_argument("--seed", type=int, metavar="N", help="the same as seed=N")
    parser.add_argument("--dry-run", action="store_true", help="print what would be trained, and stop")
    parser.add_argument("--wandb", metavar="PROJECT", help="send the curves to this Weights & Biases project")
    parser.add_argument("--progress-file", type=Path, metavar="FILE", help="keep the progress there, as JSON")
    add_device(parser)
    add_quiet(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Trains, evaluates and writes the report; or prints the plan."""
    from longtail.schema import UsageError, load_recipe

    overrides = list(arguments.overrides)
    if arguments.seed is not None:
        overrides.append(f"seed={arguments.seed}")
    recipe = load_recipe(arguments.recipe, overrides)
    if arguments.dry_run:
        return print_plan(recipe, arguments) if is_first() else 0
    if arguments.out is None:
        raise UsageError("say with --out DIR where the run shall live")
    if arguments.val_images is not None and arguments.val is None:
        raise UsageError("--val-images needs --val DATA")
    try:
        return train(recipe, arguments)
    except (KeyboardInterrupt, SystemExit):
        if is_first() and (arguments.out / "recipe.yaml").is_file():
            note(f"longtail: {arguments.out} keeps the last checkpoint; the same command with --resume continues it")
        raise


def train(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """The run itself, then its table and its report."""
    from longtail.reports.html import write_run_report
    from longtail.reports.tables import results_text
    from longtail.training import api
    from longtail.training.progress import FileProgress, make_progress

    file = arguments.progress_file
    done = api.train(
        recipe,
        train=arguments.train,
        images=arguments.images,
        val=arguments.val,
        val_images=arguments.val_images,
        out=arguments.out,
        weights=arguments.weights,
        resume=arguments.resume,
        device=arguments.device,
        progress=FileProgress(file)
        if file is not None and is_first()
        else make_progress(quiet=arguments.quiet or not is_first()),
        wandb=arguments.wandb,
        trust_checkpoint=arguments.trust_checkpoint,
    )
    if not is_first():
        return 0
    report = write_run_report(done.run)
    results = {kind: result.to_dict() for kind, result in done.results.items()}
    if arguments.json:
        print_json({"run": str(done.run), "report": str(report), "results": results})
        return 0
    if results:
        print(results_text(results))
    else:
        print("there are no detections to evaluate" if arguments.val else "no --val file, so nothing was evaluated")
    print(f"\nrun     {done.run}\nreport  {report}")
    return 0


def print_plan(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """What would be trained: recipe, data, what the sampler does to the classes, and the length."""
    from longtail.data.sources import read_sources
    from longtail.reports.plan import make_plan, plan_text

    table = read_sources(arguments.train, arguments.images, prefer="train")
    for line in table.notes:
        note(line)
    plan = make_plan(recipe, table)
    if arguments.json:
        print_json(plan)
    else:
        print(plan_text(plan))
    return 0


COMMAND = Command("train", "Train a recipe on your own data.", configure, run, shares_work=True)
