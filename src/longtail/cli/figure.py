"""``longtail figure``: the papers' figures from one's own runs and annotations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longtail.cli.command import Command, add_device, add_json, add_quiet, print_json

if TYPE_CHECKING:
    from longtail.reports.figures.canvas import Drawing

FIGURES = {
    "box-losses": "loss and gradient of the box losses",
    "class-weights": "BCR's weight of every class; SOURCE is a recipe, default libra-lvis",
    "negatives": "overlap of the negatives that samplers choose; SOURCE is a run",
    "probabilities": "how often FASA draws features of every class; SOURCE is a run",
    "regions": "regions that samplers choose in one picture; SOURCE is a run",
    "samples": "objects and FASA's virtual features of every class in training; SOURCE is a run",
    "scores": "mean score and accuracy of every class on objects' own boxes; SOURCES are runs",
    "sweeps": "metrics over the numbers that a study varies; SOURCE is the folder of a study",
    "training-scores": "mean score and accuracy of every class during training; SOURCE is a run",
    "weight-norms": "norm of the classifier's weights of every class; SOURCES are runs",
    "errors": "precision with one kind of error after the other removed; SOURCES are runs",
}

PICTURES = 100  # of the figure of negatives, unless said otherwise


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    listing = "\n".join(f"  {name:<16} {text}" for name, text in FIGURES.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"figures:\n{listing}"
    parser.add_argument("figure", choices=tuple(FIGURES), metavar="FIGURE", help="one of those below")
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="runs, or a recipe with KEY=VALUE changes; as the figure needs"
    )
    parser.add_argument("--train", nargs="+", metavar="DATA", help="class-weights: training annotations")
    parser.add_argument(
        "--pictures", type=int, metavar="N", help="pictures; default: 100 for negatives, all for scores"
    )
    parser.add_argument(
        "--of", choices=("val", "train"), default="val", help="scores: the runs' pictures that are used; default: val"
    )
    parser.add_argument("--picture", metavar="FILE", help="regions: file name; default: the one with most objects")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws; default: 0")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="default: figures")
    add_device(parser)
    add_quiet(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draws, saves and says where."""
    files = [str(path) for path in drawing(arguments).save(arguments.out)]
    if arguments.json:
        print_json({"files": files})
    else:
        print("\n".join(files))
    return 0


def drawing(arguments: argparse.Namespace) -> Drawing:
    """The figure that was asked for.

    Raises:
        UsageError: sources the figure cannot use.
    """
    from longtail.schema import UsageError

    if (arguments.pictures is not None and arguments.pictures < 1) or arguments.seed < 0:
        raise UsageError("--pictures is at least 1 and --seed at least 0")
    match arguments.figure:
        case "box-losses":
            from longtail.reports.figures.box_losses import draw_box_losses

            if arguments.sources:
                raise UsageError("box-losses needs no SOURCE")
            return draw_box_losses()
        case "class-weights":
            return class_weights(arguments)
        case "probabilities":
            from longtail.reports.figures.probabilities import draw_probabilities

            if len(arguments.sources) != 1:
                raise UsageError("probabilities needs one run")
            return draw_probabilities(Path(arguments.sources[0]))
        case "errors":
            return errors([Path(word) for word in arguments.sources])
        case "samples":
            from longtail.reports.figures.samples import draw_samples
            from longtail.reports.samples import count_samples

            if len(arguments.sources) != 1:
                raise UsageError("samples needs one run")
            return draw_samples(count_samples(Path(arguments.sources[0])))
        case "scores":
            return scores(arguments)
        case "sweeps":
            from longtail.reports.figures.sweeps import draw_sweeps

            if len(arguments.sources) != 1:
                raise UsageError("sweeps needs the folder of one study")
            return draw_sweeps(Path(arguments.sources[0]))
        case "training-scores":
            from longtail.reports.figures.class_scores import draw_training_scores

            if len(arguments.sources) != 1:
                raise UsageError("training-scores needs one run")
            return draw_training_scores(Path(arguments.sources[0]))
        case "weight-norms":
            from longtail.reports.figures.weight_norms import draw_weight_norms

            return draw_weight_norms(by_name(arguments.figure, arguments.sources))
        case _:
            return regions(arguments)


def class_weights(arguments: argparse.Namespace) -> Drawing:
    """BCR's weights of a recipe on some annotations."""
    from longtail.build.losses import classification_loss
    from longtail.data.sources import read_sources
    from longtail.losses import BucketedReweightingLoss
    from longtail.reports.figures.class_weights import draw_class_weights
    from longtail.schema import UsageError, load_recipe

    if not arguments.train:
        raise UsageError("class-weights needs --train, the annotations whose classes are weighted")
    names = [word for word in arguments.sources if "=" not in word] or ["libra-lvis"]
    recipe = load_recipe(names[0], [word for word in arguments.sources if "=" in word])
    table = read_sources(arguments.train, prefer="train", pictures=False)
    statistics = table.statistics(edges=recipe.groups.edges, count=recipe.groups.count)
    loss = classification_loss(recipe.stages[-1].classification_loss, statistics)
    if not isinstance(loss, BucketedReweightingLoss):
        raise UsageError(f"the recipe {names[0]} ends with another loss than bcr; libra-lvis has it")
    return draw_class_weights(loss, statistics)


def errors(runs: list[Path]) -> Drawing:
    """Curves of finished runs, on the pictures they were evaluated on."""
    from longtail.reports.figures.errors import draw_errors
    from longtail.training.diagnose import errors_of

    return draw_errors({name: errors_of(run) for name, run in by_name("errors", runs).items()})


def scores(arguments: argparse.Namespace) -> Drawing:
    """What the classifiers of finished runs say about objects."""
    from longtail.reports.figures.class_scores import draw_scores
    from longtail.training.class_probe import probe_classes
    from longtail.training.progress import make_progress

    runs = by_name("scores", arguments.sources)
    return draw_scores(
        {
            name: probe_classes(
                run,
                split=arguments.of,
                pictures=arguments.pictures,
                device=arguments.device,
                progress=make_progress(quiet=arguments.quiet),
            )
            for name, run in runs.items()
        }
    )


def by_name(figure: str, sources: Sequence[str | Path]) -> dict[str, Path]:
    """Runs by the names of their folders, or by their paths where these are equal.

    Raises:
        UsageError: there is none.
    """
    from longtail.schema import UsageError

    runs = [Path(source) for source in sources]
    if not runs:
        raise UsageError(f"{figure} needs at least one run")
    names = [run.name for run in runs]
    labels = names if len(set(names)) == len(names) else [str(run) for run in runs]
    return dict(zip(labels, runs, strict=True))


def regions(arguments: argparse.Namespace) -> Drawing:
    """What random, IoU-balanced and hard-example sampling choose among a run's proposals."""
    from longtail.reports.figures.regions import draw_negative_overlap, draw_sampled_regions
    from longtail.schema import UsageError
    from longtail.training.diagnose import probe
    from longtail.training.progress import make_progress

    if len(arguments.sources) != 1:
        raise UsageError(f"{arguments.figure} needs one run")
    one = arguments.figure == "regions"
    found = probe(
        Path(arguments.sources[0]),
        pictures=arguments.pictures or PICTURES,
        picture=(arguments.picture or "") if one else None,
        seed=arguments.seed,
        device=arguments.device,
        progress=make_progress(quiet=arguments.quiet),
    )
    if not one:
        return draw_negative_overlap(found.overlaps(), negative_iou=found.negative_iou)
    chosen = found.chosen[0]
    return draw_sampled_regions(found.picture(), chosen.objects, chosen.negatives, chosen.positives)


COMMAND = Command("figure", "Draw a figure of the papers from runs or annotations.", configure, run)
