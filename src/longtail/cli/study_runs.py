"""The runs of a study as child processes: what is finished is reused, what was cut off is resumed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from longtail.cli.command import note
from longtail.cli.overall import Overall, count_images
from longtail.cli.processes import Job, run_jobs, show_end
from longtail.training.progress import make_progress
from longtail.training.study_plan import PlannedRun, go_on_from, write_recipe


@dataclass(frozen=True)
class StudyFiles:
    """Annotations and pictures."""

    train: Path
    images: Path
    val: Path
    val_images: Path

    def identity(self) -> str:
        """Hashes of the annotations."""
        return " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in (self.train, self.val))


def finished(folder: Path) -> bool:
    """Whether a run's figures are there."""
    return (folder / "eval" / "val" / "metrics.json").is_file()


def train_missing(
    planned: list[PlannedRun], data: StudyFiles, out: Path, *, jobs: int, device: str, quiet: bool
) -> list[str]:
    """Trains the runs that are not finished, several at a time; returns the names of those that failed or could not
    begin because another failed."""
    folders = {run.key: out / "runs" / run.name for run in planned}
    runs = {run.name: run for run in planned if not finished(folders[run.key])}
    if len(runs) < len(planned):
        note(f"{len(planned) - len(runs)} of {len(planned)} runs are finished in {out} already")
    if not runs:
        return []
    overall = Overall(
        {name: run.recipe for name, run in runs.items()},
        train=count_images(data.train),
        val=count_images(data.val),
        progress=make_progress(quiet=quiet),
    )
    left = set(runs)

    def before(job: Job) -> None:
        run = runs[job.name]
        if run.parent is not None and not folders[run.key].exists():
            go_on_from(folders[run.parent], folders[run.key], run.recipe)

    def ended(job: Job) -> None:
        left.discard(job.name)
        overall.finish(job.name)

    names = {run.key: run.name for run in planned}
    run_jobs(
        [job(run, data, out, device, after=names.get(run.parent or "")) for run in runs.values()],
        parallel=jobs,
        watch=lambda job, state: overall.watch(job.name, state),
        finished=ended,
        before=before,
        failed=lambda job, code: show_end(job),
    )
    overall.progress.finish()
    return sorted(left)


def job(run: PlannedRun, data: StudyFiles, out: Path, device: str, *, after: str | None) -> Job:
    """The child process of one run."""
    recipe = out / "recipes" / f"{run.name}.yaml"
    write_recipe(run.recipe, recipe)
    progress = out / "logs" / f"{run.name}.progress.json"
    words = (
        "train", str(recipe), "--train", str(data.train), "--images", str(data.images), "--val", str(data.val),
        "--val-images", str(data.val_images), "--out", str(out / "runs" / run.name), "--device", device, "--resume",
        "--quiet", "--progress-file", str(progress),
    )  # fmt: skip
    return Job(run.name, words, out / "logs" / f"{run.name}.txt", progress, after=(after,) if after else ())
