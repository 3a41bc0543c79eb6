"""``longtail eval``: the figures of a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path

from longtail.cli.command import Command, add_device, add_json, add_quiet, print_json
from longtail.cli.ranks import is_first

PROTOCOLS = ("auto", "lvis", "coco", "fixed", "pool", "voc", "bins", "proposals")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="change a key below model.inference (needs --split)"
    )
    parser.add_argument("--data", metavar="DATA", help="annotations; default: the run's validation data")
    parser.add_argument("--images", type=Path, metavar="DIR", help="their pictures, if the annotations do not say")
    parser.add_argument(
        "--detections", type=Path, metavar="FILE", help="evaluate this results file instead of detecting"
    )
    parser.add_argument(
        "--protocol", default="auto", metavar="NAME[,NAME]", help=f"of {', '.join(PROTOCOLS)}; default: auto"
    )
    parser.add_argument("--split", metavar="NAME", help="name of the result; default: val, or the given file's")
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last", help="which weights")
    add_device(parser)
    add_quiet(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Detects, evaluates, and prints one table per protocol."""
    from longtail.reports.html import write_run_report
    from longtail.reports.tables import results_text
    from longtail.schema import UsageError
    from longtail.schema.explain import nearest
    from longtail.training import api
    from longtail.training.progress import make_progress

    protocols = [name.strip() for name in arguments.protocol.split(",") if name.strip()]
    if not protocols:
        raise UsageError(f"--protocol names none; known: {', '.join(PROTOCOLS)}")
    for name in protocols:
        if name not in PROTOCOLS:
            raise UsageError(f"there is no protocol {name!r}; {nearest(name, PROTOCOLS)}")
    if arguments.data is None and arguments.images is not None:
        raise UsageError("--images are the pictures of other data; say which with --data DATA")
    if arguments.overrides and arguments.split is None:
        raise UsageError("with changed settings the result needs a name of its own: --split NAME")
    named = arguments.detections or arguments.data
    split = arguments.split or ("val" if named is None else file_name(named))
    found = api.evaluate(
        arguments.run,
        data=arguments.data,
        images=arguments.images,
        detections=arguments.detections,
        protocols=protocols,
        split=split,
        checkpoint=arguments.checkpoint,
        device=arguments.device,
        progress=make_progress(quiet=arguments.quiet or not is_first()),
        overrides=arguments.overrides,
    )
    if not is_first():
        return 0
    contents = {name: {kind: result.to_dict() for kind, result in kinds.items()} for name, kinds in found.items()}
    if (arguments.run / "recipe.yaml").is_file():  # a checkpoint folder alone has no report
        write_run_report(arguments.run)
    if arguments.json:
        print_json({"run": str(arguments.run), "split": split, "results": contents})
        return 0
    print("\n\n".join(results_text(kinds) for kinds in contents.values()))
    folders = [split if name == "auto" else f"{split}-{name}" for name in contents]
    print("\n" + "\n".join(f"files  {arguments.run / 'eval' / folder}" for folder in folders))
    return 0


def file_name(path: str | Path) -> str:
    """``test`` of ``some/test.json.gz``; ``VOC2007-test`` of ``some/VOC2007:test``."""
    return Path(path).name.replace(":", "-").removesuffix(".gz").removesuffix(".json")


COMMAND = Command("eval", "Evaluate a run, by one or more protocols.", configure, run, shares_work=True)
