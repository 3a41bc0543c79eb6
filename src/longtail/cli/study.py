"""``longtail study``: the rows of a table over several seeds, as ordinary runs that are reused and resumed."""

from __future__ import annotations

import argparse
import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from longtail.cli.command import Command, add_json, add_overrides, add_quiet, note, print_json

if TYPE_CHECKING:
    from longtail.schema.study import Study
    from longtail.training.study_plan import PlannedRun


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("study", metavar="STUDY", help="a shipped study's name, or a YAML file")
    add_overrides(parser)
    parser.add_argument("--seeds", type=int, metavar="N", help="runs per row; default: as the study says")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time, one thread each; default: CPU cores")
    parser.add_argument("--only", metavar="A,B", help="these rows, and those they are compared with")
    parser.add_argument("--train", type=Path, metavar="FILE", help="training annotations in place of the study's")
    parser.add_argument("--images", type=Path, metavar="DIR", help="their pictures")
    parser.add_argument("--val", type=Path, metavar="FILE", help="validation annotations")
    parser.add_argument("--val-images", type=Path, metavar="DIR", help="their pictures; default: as --images")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: studies/<name>")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="where; default: cpu")
    parser.add_argument("--plan", action="store_true", help="print which runs are needed, and stop")
    add_quiet(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Plans, trains what is missing, writes the table."""
    from longtail.cli.study_runs import train_missing
    from longtail.data.files import write_json, write_text
    from longtail.reports.results import read_results
    from longtail.reports.study import study_content, study_csv, study_markdown, study_text
    from longtail.schema import UsageError
    from longtail.training.study_plan import plan_runs, row_recipe, run_key

    file = study_file(arguments.study)
    study = chosen_rows(read(file, arguments.seeds), arguments.only)
    jobs = arguments.jobs if arguments.jobs is not None else os.cpu_count() or 1
    if jobs < 1:
        raise UsageError("--jobs is at least 1")
    out: Path = arguments.out or Path("studies") / study.name
    overrides = ["threads=1", *arguments.overrides]
    recipes = {
        (row.label, seed): row_recipe(study, row, file.parent, seed, overrides)
        for row in study.rows
        if row.recipe is not None
        for seed in range(study.seeds)
    }
    data = find_data(study, file.parent, arguments, out)
    hashes = data.identity()
    planned = plan_runs(list(recipes.values()), hashes)
    if arguments.plan:
        print("\n".join(plan_lines(planned, len(recipes))))
        return 0
    failed = train_missing(planned, data, out, jobs=jobs, device=arguments.device, quiet=arguments.quiet)

    names = {each.key: each.name for each in planned}
    folders: dict[str, dict[int, Path]] = {}
    for (label, seed), recipe in recipes.items():
        folder = out / "runs" / names[run_key(recipe, len(recipe.stages), hashes)]
        if (folder / "eval" / "val" / "metrics.json").is_file():
            folders.setdefault(label, {})[seed] = folder
    results = {label: {s: read_results(folder) for s, folder in seeds.items()} for label, seeds in folders.items()}
    content = study_content(study, results, {n: {s: str(f) for s, f in seeds.items()} for n, seeds in folders.items()})
    write_json(out / "table.json", content)
    write_text(out / "table.md", study_markdown(study, results))
    write_text(out / "table.csv", study_csv(study, results))
    text = study_text(study, results)
    write_text(out / "table.txt", text + "\n")
    print_json(content) if arguments.json else print(f"{text}\n\ntables  {out}/table.{{txt,md,csv,json}}")
    if failed:
        note(f"longtail: {len(failed)} runs failed: {', '.join(failed)}; their logs are in {out / 'logs'}")
    return 1 if failed else 0


def study_file(name: str) -> Path:
    """A file, or a study that comes with the package.

    Raises:
        UsageError: there is none.
    """
    from longtail.schema import UsageError
    from longtail.schema.explain import nearest

    if name.endswith((".yaml", ".yml")):
        return Path(name)
    shipped = Path(str(resources.files("longtail").joinpath("studies")))
    known = sorted(path.stem for path in shipped.glob("*.yaml"))
    if name not in known:
        raise UsageError(f"there is no study {name!r}; {nearest(name, known)}")
    return shipped / f"{name}.yaml"


def read(file: Path, seeds: int | None) -> Study:
    """The study, with the number of seeds asked for."""
    from longtail.schema import UsageError
    from longtail.schema.study import load_study

    study = load_study(file)
    if seeds is not None and seeds < 1:
        raise UsageError("--seeds is at least 1")
    return study if seeds is None else study.model_copy(update={"seeds": seeds})


def chosen_rows(study: Study, only: str | None) -> Study:
    """The study with some of its rows, and those they are compared with.

    Raises:
        UsageError: there is no such row.
    """
    from longtail.schema import UsageError
    from longtail.schema.explain import nearest

    if only is None:
        return study
    rows = {row.label: row for row in study.rows}
    wanted = {study.baseline}
    for label in (text.strip() for text in only.split(",") if text.strip()):
        if label not in rows:
            raise UsageError(f"the study has no row {label!r}; {nearest(label, list(rows))}")
        compared = (rows[label].baseline, rows[label].control)
        wanted |= {label, *(other for other in compared if other is not None)}
    return study.model_copy(update={"rows": tuple(row for row in study.rows if row.label in wanted)})


def find_data(study: Study, folder: Path, arguments: argparse.Namespace, out: Path) -> StudyFiles:
    """The files that all rows are trained on.

    Raises:
        UsageError: the study names none, and neither does the command line.
    """
    from longtail.cli.study_runs import StudyFiles
    from longtail.schema import UsageError

    given = study.data
    if arguments.train is not None:
        if arguments.images is None or arguments.val is None:
            raise UsageError("a study on other data needs --train, --images and --val")
        return StudyFiles(arguments.train, arguments.images, arguments.val, arguments.val_images or arguments.images)
    if given.train is not None and given.images is not None and given.val is not None:
        images = folder / given.images
        val_images = images if given.val_images is None else folder / given.val_images
        return StudyFiles(folder / given.train, images, folder / given.val, val_images)
    if given.generated is None:
        raise UsageError(f"the study {study.name} needs data: give --train FILE, --images DIR and --val FILE")
    from longtail.cli.shapes import counting
    from longtail.data.shapes import make_shapes
    from longtail.training.progress import make_progress

    progress = make_progress(quiet=arguments.quiet)
    made = make_shapes(
        out / "data", preset=given.generated, seed=0, progress=counting(progress.start, progress.advance)
    )
    progress.finish()
    return StudyFiles(made.train, made.images, made.val, made.images)


def plan_lines(planned: list[PlannedRun], wanted: int) -> list[str]:
    """Which runs there will be, and what each goes on from."""
    names = {run.key: run.name for run in planned}
    lines = [f"{wanted} figures come from {len(planned)} runs"]
    for run in planned:
        lines.append(f"  {run.name}" + (f", from the end of {names[run.parent]}" if run.parent else ""))
    return lines


COMMAND = Command("study", "Run the rows of a table over several seeds, and make the table.", configure, run)

if TYPE_CHECKING:
    from longtail.cli.study_runs import StudyFiles
