"""What a part of a data set has of every class, against what was wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.statistics import ClassStatistics, Count
from longtail.data.subset import COCO_LT_BINS, Profile
from longtail.data.table import AnnotationTable

SHOWN = 40  # classes in the text; JSON has all


def subset_report(
    before: AnnotationTable,
    after: AnnotationTable,
    profile: Profile | None,
    *,
    count: Count = "images",
    edges: tuple[int, int] = (10, 100),
    bins: Sequence[int] = COCO_LT_BINS,
) -> dict[str, Any]:
    """Counts of classes, groups and bins, for JSON.

    Args:
        before, after: the whole and the part, with the same classes.
        profile: what was wanted, or None.
        count: what groups and the table of classes count.
        edges: of the groups of the part: rare up to the first, frequent above the second.
        bins: lower ends of bins of instances.
    """
    old, new = before.statistics(edges=edges, count=count), after.statistics(edges=edges, count=count)
    group = new.group.tolist()
    wanted = None if profile is None else profile.targets.tolist()
    classes = [
        {
            "name": name,
            "group": group[row],
            "before": int(_counts(old)[row]),
            "target": None if wanted is None else wanted[row],
            "reached": int(_counts(new)[row]),
            "images": int(new.image_counts[row]),
            "instances": int(new.instance_counts[row]),
        }
        for row, name in enumerate(after.category_names)
    ]
    lines = np.searchsorted(np.asarray(bins), new.instance_counts, side="right")
    return {
        "images": after.num_images,
        "images_before": before.num_images,
        "annotations": len(after.label),
        "annotations_before": len(before.label),
        "count": count,
        "edges": list(edges),
        "groups": [_group(letter, name, classes) for letter, name in _NAMES.items() if letter in group],
        "bins": [
            {"from": low, "to": bins[number] if number < len(bins) else None, "classes": int((lines == number).sum())}
            for number, low in enumerate(bins, start=1)
        ],
        "classes": sorted(classes, key=lambda each: -int(each["reached"])),
    }


_NAMES = {"r": "rare", "c": "common", "f": "frequent", "-": "without an object"}


def _counts(statistics: ClassStatistics) -> NDArray[np.int64]:
    return statistics.image_counts if statistics.count == "images" else statistics.instance_counts


def _group(letter: str, name: str, classes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    members = [each for each in classes if each["group"] == letter]
    targets = [each["target"] for each in members if each["target"] is not None]
    return {
        "group": name,
        "classes": len(members),
        "before": sum(each["before"] for each in members),
        "target": sum(targets) if targets else None,
        "reached": sum(each["reached"] for each in members),
        "at_target": sum(each["reached"] == each["target"] for each in members) if targets else None,
    }


def report_text(report: dict[str, Any]) -> str:
    """For people: groups, bins, and the most frequent and rarest classes."""
    count = report["count"]
    lines = [
        f"{report['images']} of {report['images_before']} images, {report['annotations']} of "
        f"{report['annotations_before']} annotations"
    ]
    for each in report["groups"]:
        wanted = "" if each["target"] is None else f", wanted {each['target']}, {each['at_target']} classes at target"
        lines.append(
            f"  {each['group']}: {each['classes']} classes, {each['reached']} {count} (before {each['before']}{wanted})"
        )
    ends = [f"[{each['from']}, {each['to'] or '-'})  {each['classes']}" for each in report["bins"]]
    lines.append("  classes by instances: " + "   ".join(ends))
    rows = report["classes"]
    shown = rows if len(rows) <= SHOWN else [*rows[: SHOWN // 2], *rows[-SHOWN // 2 :]]
    width = max((len(each["name"]) for each in shown), default=5)
    lines.append(f"  {'class':<{width}}  group  before  target  reached ({count})")
    for number, each in enumerate(shown):
        if len(rows) > SHOWN and number == SHOWN // 2:
            lines.append(f"  ... {len(rows) - SHOWN} more classes")
        target = "-" if each["target"] is None else each["target"]
        lines.append(
            f"  {each['name']:<{width}}  {each['group']:<5}  {each['before']:>6}  {target:>6}  {each['reached']:>7}"
        )
    return "\n".join(lines)
