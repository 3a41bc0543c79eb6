"""Several annotation tables as one.

What "not annotated" means after joining. LVIS lists per image which classes are absent (negatives) and which are marked
incompletely; about every other class nothing is known there. A source without such lists is taken to be complete for
*its own* classes: in its images they are present or absent. About a class only other sources have, it says nothing. So
as soon as any source has the lists, or the sources' classes differ, the joined table has the lists for every image:
absent are the classes of the image's own source that have no object in it, and the classes the source does not know are
in neither list, which is to say unknown. They are never taken for absent.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.masks import MaskColumn
from longtail.data.table import AnnotationTable, Classes, LabelLists, Source, id_array
from longtail.schema.errors import DataError, UsageError

Ids = list[int | str]


def join_tables(tables: Sequence[AnnotationTable], *, aliases: Mapping[str, str] | None = None) -> AnnotationTable:
    """One table of the images of several, in their order, each with its own picture folder.

    Classes are matched by name (by name and id where a source has a name twice) and come in the order of their first
    occurrence. Ids of images, annotations and classes are kept where they are disjoint; otherwise all ids of that kind
    count from 1, and a note says so.

    Args:
        tables: at least one.
        aliases: class name -> the name it goes by in the joined table, e.g. ``{"motorcycle": "motorbike"}``.

    Raises:
        UsageError: no table, or an alias for a class that no source has.
    """
    if not tables:
        raise UsageError("there is nothing to join; give at least one annotation source")
    if len(tables) == 1 and not aliases:
        return tables[0]
    classes, label_maps, notes = _classes(tables, aliases or {})
    sources, source_of_image = _sources(tables)
    image_ids = _ids("image", [table.image_ids.tolist() for table in tables], notes)
    annotation_ids = _ids("annotation", [table.annotation_ids.tolist() for table in tables], notes)
    first_image = np.concatenate(([0], np.cumsum([table.num_images for table in tables]))).tolist()
    start = np.concatenate([np.diff(table.image_start) for table in tables])
    negatives, not_exhaustive = _lists(tables, label_maps, len(classes.names), notes)
    return AnnotationTable(
        source=" + ".join(table.source for table in tables),
        image_ids=id_array(image_ids),
        file_names=[name for table in tables for name in table.file_names],
        heights=np.concatenate([table.heights for table in tables]),
        widths=np.concatenate([table.widths for table in tables]),
        category_ids=id_array(classes.ids),
        category_names=classes.names,
        annotation_ids=id_array(annotation_ids),
        image_index=np.concatenate(
            [table.image_index + first for table, first in zip(tables, first_image, strict=False)]
        ).astype(np.int32),
        label=np.concatenate([own[table.label] for own, table in zip(label_maps, tables, strict=True)]).astype(
            np.int32
        ),
        boxes_xywh=np.concatenate([table.boxes_xywh for table in tables]),
        area=np.concatenate([table.area for table in tables]),
        iscrowd=np.concatenate([table.iscrowd for table in tables]),
        ignore=np.concatenate([table.ignore for table in tables]),
        masks=join_masks([table.masks for table in tables], [len(table.label) for table in tables]),
        negatives=negatives,
        not_exhaustive=not_exhaustive,
        image_start=np.concatenate(([0], np.cumsum(start))).astype(np.int64),
        sources=sources,
        source_of_image=source_of_image,
        notes=(*(note for table in tables for note in table.notes), *notes),
        findings=tuple(finding for table in tables for finding in table.findings),
    )


def join_masks(columns: Sequence[MaskColumn | None], lengths: Sequence[int]) -> MaskColumn | None:
    """One column after the other; ``lengths`` says how many annotations those have that are None."""
    if all(column is None for column in columns):
        return None
    given = [
        MaskColumn.from_json([None] * length) if column is None else column
        for column, length in zip(columns, lengths, strict=True)
    ]
    return MaskColumn.joined(given)


def in_one_folder(table: AnnotationTable) -> AnnotationTable:
    """The same table with file names that start from the deepest folder that holds all sources' folders.

    Raises:
        DataError: a source's folder is not known, or the folders have nothing in common.
    """
    if len(table.sources) < 2:
        return table
    unknown = [source.name for source in table.sources if source.images is None]
    if unknown:
        raise DataError(f"{unknown[0]} does not say where its pictures are; give their folder (--images DIR)")
    roots = [os.path.abspath(source.images or "") for source in table.sources]
    try:
        folder = os.path.commonpath(roots)
    except ValueError as error:
        raise DataError(f"the picture folders {', '.join(roots)} have no folder in common: {error}") from None
    inner = [Path(os.path.relpath(root, folder)) for root in roots]
    assert table.source_of_image is not None
    names = [
        (inner[source] / name).as_posix()
        for source, name in zip(table.source_of_image.tolist(), table.file_names, strict=True)
    ]
    return replace(table, file_names=names, sources=(Source(table.source, folder),), source_of_image=None)


def _classes(
    tables: Sequence[AnnotationTable], aliases: Mapping[str, str]
) -> tuple[Classes, list[NDArray[np.int64]], list[str]]:
    """The joined label set, every table's map to it, and notes on ids."""
    occurring = {name for table in tables for name in table.category_names}
    unused = [name for name in aliases if name not in occurring]
    if unused:
        raise UsageError(f"no source has a class {unused[0]!r}, for which an alias is given; correct its name")
    repeated = {
        name for table in tables for name, times in Counter(table.category_names).items() if times > 1
    } - aliases.keys()
    keys: dict[Any, int] = {}
    ids: Ids = []
    names: list[str] = []
    maps = []
    for table in tables:
        own = []
        for name, identity in zip(table.category_names, table.category_ids.tolist(), strict=True):
            key = (name, identity) if name in repeated else aliases.get(name, name)
            if key not in keys:
                keys[key] = len(names)
                names.append(aliases.get(name, name))
                ids.append(identity)
            own.append(keys[key])
        maps.append(np.array(own, dtype=np.int64))
    notes = []
    if len(set(ids)) < len(ids):
        ids = list(range(1, len(ids) + 1))
        notes.append("class ids of the sources stand for different classes: all count from 1 now")
    return Classes(ids, names, "the joined sources"), maps, notes


def _sources(tables: Sequence[AnnotationTable]) -> tuple[tuple[Source, ...], NDArray[np.int32]]:
    sources: list[Source] = []
    rows = []
    for table in tables:
        own = table.source_of_image
        rows.append((np.zeros(table.num_images, np.int64) if own is None else own) + len(sources))
        sources += table.sources or (Source(table.source, None),)
    return tuple(sources), np.concatenate(rows).astype(np.int32)


def _ids(kind: str, given: Sequence[Ids], notes: list[str]) -> Ids:
    joined = [identity for ids in given for identity in ids]
    if len(set(joined)) == len(joined):
        return joined
    notes.append(f"{kind} ids occur in more than one source: all count from 1 now")
    return list(range(1, len(joined) + 1))


def _lists(
    tables: Sequence[AnnotationTable], maps: Sequence[NDArray[np.int64]], num_classes: int, notes: list[str]
) -> tuple[LabelLists | None, LabelLists | None]:
    """Negatives and not exhaustive classes of all images, or None if every source is complete for all classes."""
    complete = all(len(set(own.tolist())) == num_classes for own in maps)
    if complete and not any(table.federated for table in tables):
        return None, None
    if not complete:
        notes.append(
            "the sources have different classes: in the images of a source, classes that it does not have are unknown, "
            "not absent"
        )
    negatives, not_exhaustive = [], []
    for table, own in zip(tables, maps, strict=True):
        if table.negatives is not None and table.not_exhaustive is not None:
            negatives.append(LabelLists(table.negatives.start, own[table.negatives.labels].astype(np.int32)))
            not_exhaustive.append(
                LabelLists(table.not_exhaustive.start, own[table.not_exhaustive.labels].astype(np.int32))
            )
            continue
        absent = np.zeros((table.num_images, num_classes), dtype=np.bool_)
        absent[:, own] = True
        absent[table.image_index, own[table.label]] = False
        start = np.concatenate(([0], np.cumsum(absent.sum(axis=1)))).astype(np.int64)
        negatives.append(LabelLists(start, np.nonzero(absent)[1].astype(np.int32)))
        not_exhaustive.append(LabelLists(np.zeros(table.num_images + 1, np.int64), np.zeros(0, np.int32)))
    return _join_lists(negatives), _join_lists(not_exhaustive)


def _mapped(lists: LabelLists, label_map: NDArray[np.int64]) -> LabelLists:
    return LabelLists(lists.start, label_map[lists.labels].astype(np.int32))


def _join_lists(lists: Sequence[LabelLists]) -> LabelLists:
    return LabelLists(_chain([each.start for each in lists]), np.concatenate([each.labels for each in lists]))


def _chain(starts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Offsets of one column after the other."""
    return np.concatenate(([0], np.cumsum(np.concatenate([np.diff(start) for start in starts])))).astype(np.int64)
