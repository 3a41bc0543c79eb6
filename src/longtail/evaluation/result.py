"""What an evaluation says: metrics, the classes behind them, one row per class, and how it was done."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from longtail.data.files import write_text


@dataclass(frozen=True)
class ClassResult:
    """One class. All metrics are fractions; None where there is nothing to measure.

    Attributes:
        id, name: of the file.
        group: ``r``, ``c``, ``f``, ``-`` (no training image), or empty where unknown.
        train_images, train_instances: in the training annotations.
        objects: in the evaluated annotations, without crowds and ignored ones.
        detections: that were given, before caps and filters.
        ap, ap50, ar: average precision over IoU .50-.95 (VOC: equal to ap50), at .50, and average recall.
        best_f1, best_score: largest F1 at IoU .50 and the score at which it is reached: where to cut this class for
            display.
    """

    id: int | str
    name: str
    group: str
    train_images: int | None
    train_instances: int | None
    objects: int
    detections: int
    ap: float | None = None
    ap50: float | None = None
    ar: float | None = None
    best_f1: float | None = None
    best_score: float | None = None

    def measured(
        self,
        ap: float | None,
        ap50: float | None,
        ar: float | None,
        best_f1: float | None = None,
        best_score: float | None = None,
    ) -> ClassResult:
        """The same class with metrics."""
        return replace(self, ap=ap, ap50=ap50, ar=ar, best_f1=best_f1, best_score=best_score)


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of one set of detections under one protocol.

    Attributes:
        protocol: ``lvis``, ``coco``, ``voc``, ``fixed``, ``pool``, ``bins``, ``proposals`` or ``top1``.
        iou_type: ``bbox`` or ``segm``; ``picture`` where whole pictures are classified.
        metrics: fractions; None where no class has an object, which is never averaged as 0.
        classes_behind: for every metric ``{"classes": total, "with_objects": those the mean is over}``.
        per_class: one row for every class, by the file's class id; empty for ``proposals``.
        notes: what a reader must know to trust the numbers, in plain words.
        settings: protocol, caps, source, versions, whether they are the reference's.
    """

    protocol: str
    iou_type: str
    metrics: dict[str, float | None]
    classes_behind: dict[str, dict[str, int]]
    per_class: dict[int | str, ClassResult]
    notes: list[str]
    settings: dict[str, Any]

    @property
    def headline(self) -> str:
        """Name of the metric to quote first."""
        return "AP" if "AP" in self.metrics else next(iter(self.metrics))

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; classes as a list, because JSON keys are text and ids may be numbers."""
        return {
            "protocol": self.protocol,
            "iou_type": self.iou_type,
            "metrics": dict(self.metrics),
            "classes_behind": {name: dict(count) for name, count in self.classes_behind.items()},
            "per_class": [asdict(row) for row in self.per_class.values()],
            "notes": list(self.notes),
            "settings": dict(self.settings),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EvaluationResult:
        """The inverse of :meth:`to_dict`."""
        rows = [ClassResult(**row) for row in content["per_class"]]
        return cls(
            protocol=content["protocol"],
            iou_type=content["iou_type"],
            metrics=dict(content["metrics"]),
            classes_behind={name: dict(count) for name, count in content["classes_behind"].items()},
            per_class={row.id: row for row in rows},
            notes=list(content["notes"]),
            settings=dict(content["settings"]),
        )

    def write(self, folder: str | Path) -> None:
        """Write ``metrics.json`` and ``per_class.csv``; each file is replaced in one step."""
        content = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(Path(folder) / "metrics.json", content + "\n")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([field.name for field in fields(ClassResult)])
        writer.writerows(
            ["" if value is None else value for value in asdict(row).values()] for row in self.per_class.values()
        )
        write_text(Path(folder) / "per_class.csv", text.getvalue())


def format_table(results: Mapping[str, EvaluationResult]) -> str:
    """Results as plain text: percentages, under each the number of classes behind it, then the notes.

    Args:
        results: by the name of the row.
    """
    metrics = list(dict.fromkeys(name for result in results.values() for name in result.metrics))
    rows = [["", "protocol", "type", *metrics]]
    for name, result in results.items():
        rows.append(
            [name, result.protocol, result.iou_type, *(_percent(result.metrics.get(metric)) for metric in metrics)]
        )
        rows.append(["", "", "classes", *(_classes(result.classes_behind.get(metric)) for metric in metrics)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if column < 3 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
    for name, result in results.items():
        lines.extend(f"{name}: {note}" for note in result.notes)
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _classes(count: Mapping[str, int] | None) -> str:
    return "" if count is None else f"{count['with_objects']}/{count['classes']}"
