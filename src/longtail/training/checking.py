"""The check before training: what the rules say about annotations and pictures."""

from __future__ import annotations

import numpy as np

from longtail.data import AnnotationTable
from longtail.data.check_pictures import Pictures, examine_pictures
from longtail.data.findings import Findings
from longtail.data.report import Finding, listed
from longtail.data.sources import picture_folders
from longtail.schema import DataError, Recipe
from longtail.training.assemble import has_masks
from longtail.training.material import TrainingData

MOST_KINDS = 8
"""An error names so many kinds of defects."""


def check_data(recipe: Recipe, data: TrainingData, *, pictures: bool) -> list[str]:
    """Refuses data with errors; returns a line per warning.

    Args:
        recipe: says whether masks are needed, and how large pictures may be.
        data: what is trained and measured on.
        pictures: whether the headers of all pictures are read: there, sound, of their size, not huge.

    Raises:
        DataError: names every kind of error with its number, ids and remedy.
    """
    found: list[tuple[AnnotationTable, Finding]] = []
    for table in (data.table, data.val_table):
        if table is None:
            continue
        found += [(table, finding) for finding in table.findings if concerns(finding, masks=has_masks(recipe))]
        if pictures:
            found += [(table, finding) for finding in picture_findings(table, recipe.images.max_pixels)]
    errors = [(table, finding) for table, finding in found if finding.severity == "error"]
    if errors:
        first = errors[0][0].source
        parts = [f"{table.source}: {finding.message} ({finding.code}); {finding.remedy}" for table, finding in errors]
        more = f", and {len(parts) - MOST_KINDS} more kinds" if len(parts) > MOST_KINDS else ""
        raise DataError(
            f"{len(parts)} kind{'s' * (len(parts) > 1)} of errors in the data: {' | '.join(parts[:MOST_KINDS])}{more}. "
            f"`longtail check {first} --images DIR` lists everything"
        )
    return [
        f"warning: {table.source}: {finding.message} ({finding.code}); {finding.remedy}" for table, finding in found
    ]


def concerns(finding: Finding, *, masks: bool) -> bool:
    """Whether a finding matters where masks are or are not needed."""
    return masks or not finding.code.startswith("mask-")


def picture_findings(table: AnnotationTable, max_pixels: int) -> list[Finding]:
    """What is wrong with the pictures of a table, by their headers."""
    findings = Findings()
    folders = picture_folders(table)
    own = np.zeros(table.num_images, np.int64) if table.source_of_image is None else table.source_of_image
    pictures = Pictures(
        table.image_ids.tolist(),
        table.file_names,
        np.stack((table.heights, table.widths), axis=1),
        [folders[source] for source in own.tolist()],
    )
    examine_pictures(pictures, findings, deep=False, max_pixels=max_pixels)
    return listed(findings)
