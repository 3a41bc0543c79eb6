"""``longtail subset``: a long-tailed part of a data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from longtail.cli.command import Command, add_json, note, print_json

if TYPE_CHECKING:
    from longtail.data import AnnotationTable
    from longtail.data.subset import Profile

PROFILES = ("exponential", "coco-lt", "voc07+12")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("data", metavar="DATA", help="COCO or LVIS JSON, VOC folder[:SPLIT], YOLO data.yaml[:SPLIT]")
    parser.add_argument("out", type=Path, metavar="OUT", help="new JSON file")
    parser.add_argument("--profile", choices=PROFILES, help="voc07+12: DATA holds the folders VOC2007 and VOC2012")
    parser.add_argument("--imbalance", type=float, metavar="F", help="exponential: most frequent class to rarest")
    parser.add_argument("--most", type=int, metavar="N", help="exponential: target of the most frequent class")
    parser.add_argument("--least", type=int, metavar="N", help="exponential: target of the rarest, instead of F")
    parser.add_argument("--count", choices=("images", "instances"), help="what targets and groups count")
    parser.add_argument("--image-ids", type=Path, metavar="FILE", help="only these images: a list of their ids")
    parser.add_argument("--annotation-ids", type=Path, metavar="FILE", help="only these annotations")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--force", action="store_true", help="replace OUT")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Chooses, writes, and prints what there is of every class."""
    from longtail.data.convert import refuse_existing, write_as
    from longtail.data.formats import split_path
    from longtail.data.join import in_one_folder
    from longtail.data.subset import COCO_LT_BINS
    from longtail.data.subset_report import report_text, subset_report
    from longtail.schema import UsageError

    ways = [arguments.profile, arguments.image_ids, arguments.annotation_ids]
    if sum(way is not None for way in ways) != 1:
        raise UsageError("say how to choose with one of --profile, --image-ids and --annotation-ids")
    own = [arguments.imbalance, arguments.most, arguments.least]
    if arguments.profile != "exponential" and any(value is not None for value in own):
        raise UsageError("--imbalance, --most and --least belong to --profile exponential")
    if arguments.seed < 0:
        raise UsageError(f"--seed is at least 0, got {arguments.seed}")
    place, _ = split_path(arguments.data)
    inside = [place / "VOC2007", place / "VOC2012"] if arguments.profile == "voc07+12" else [place]
    for each in inside:
        refuse_existing(arguments.out, "coco", each, force=arguments.force)
    before, after, profile = chosen(arguments)
    done = write_as(in_one_folder(after), arguments.out, to="coco")
    count = profile.count if profile is not None else arguments.count or "images"
    edges = (COCO_LT_BINS[1] - 1, COCO_LT_BINS[2] - 1) if arguments.profile == "coco-lt" else (10, 100)
    report = subset_report(before, after, profile, count=count, edges=edges)
    for line in [*after.notes, *done.notes]:
        note(line)
    if arguments.json:
        print_json({**done.to_dict(), "notes": [*after.notes, *done.notes], "report": report})
        return 0
    print(report_text(report))
    if arguments.profile == "coco-lt":
        print("evaluate with --protocol bins; groups like the bins: groups.edges=[19,399] groups.count=instances")
    print(f"coco    {done.path}" + ("" if done.images is None else f"\nimages  {done.images}"))
    return 0


def chosen(arguments: argparse.Namespace) -> tuple[AnnotationTable, AnnotationTable, Profile | None]:
    """The whole, the part, and the profile it was chosen by."""
    from longtail.data import subset
    from longtail.data.formats import read_annotations

    if arguments.profile == "voc07+12":
        table = subset.voc_0712(arguments.data)
        return table, table, None
    table = read_annotations(arguments.data, images=arguments.images)
    if arguments.image_ids is not None:
        return table, subset.by_image_ids(table, subset.read_ids(arguments.image_ids)), None
    if arguments.annotation_ids is not None:
        return table, subset.by_annotation_ids(table, subset.read_ids(arguments.annotation_ids)), None
    if arguments.profile == "coco-lt":
        profile = subset.coco_lt_profile(table)
    else:
        profile = subset.exponential_profile(
            table,
            imbalance=arguments.imbalance,
            count=arguments.count or "images",
            most=arguments.most,
            least=arguments.least,
        )
    return table, table.select(subset.choose(table, profile, seed=arguments.seed)), profile


COMMAND = Command("subset", "Write a long-tailed part of a data set.", configure, run)
