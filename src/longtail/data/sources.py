"""One or several annotation sources of a run, each with its own picture folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longtail.data.formats import read_annotations, recognise, require_own_pictures, split_path
from longtail.data.join import join_tables
from longtail.data.table import AnnotationTable, Source
from longtail.schema.errors import DataError, UsageError

Paths = Path | str | Sequence[Path | str] | None
RunPaths = dict[str, str | list[str] | None]


def read_sources(
    paths: Paths, images: Paths = None, *, prefer: str | None = None, pictures: bool = True
) -> AnnotationTable:
    """Reads and joins annotations, and makes sure that their pictures are there.

    Args:
        paths: one or several; see :func:`longtail.data.formats.read_annotations`.
        images: picture folders; see :func:`pair_folders`.
        prefer: the split of VOC and YOLO sets where none is named.
        pictures: whether pictures are needed at all.

    Raises:
        UsageError: folders that cannot be told apart.
        DataError: annotations or pictures that cannot be used.
    """
    sources = as_list(paths)
    folders = pair_folders(sources, as_list(images)) if pictures else [None for _ in sources]
    for folder in folders:
        if folder is not None and not Path(folder).is_dir():
            raise DataError(f"there is no image folder {folder}")
    table = join_tables(
        [read_annotations(path, images=folder, prefer=prefer) for path, folder in zip(sources, folders, strict=True)]
    )
    if pictures and None in folders:  # the others have been looked at
        require_own_pictures(table)
    return table


def run_paths(train: Paths, images: Paths, val: Paths, val_images: Paths) -> RunPaths:
    """The paths of a run, absolute, ready for JSON: one as a text, several as a list. Validation pictures lie where the
    training pictures do if nobody says otherwise and their annotations do not bring a folder along."""
    if val_images is None and any(recognise(split_path(path)[0]) == "coco" for path in as_list(val)):
        val_images = images
    named = {"train": train, "images": images, "val": val, "val_images": val_images}
    absolute = {name: [str(Path(path).resolve()) for path in as_list(paths)] for name, paths in named.items()}
    return {name: paths if len(paths) > 1 else next(iter(paths), None) for name, paths in absolute.items()}


def pair_folders(paths: Sequence[str], images: Sequence[str]) -> list[str | None]:
    """The picture folder of every source, None = the source's own.

    As many folders as sources belong to them in order; as many as there are COCO files among the sources belong to
    those, in order; a single one belongs to all COCO files. VOC and YOLO sets know their own.

    Raises:
        UsageError: any other number of folders.
    """
    if len(images) == len(paths):
        return list(images)
    coco = [recognise(split_path(path)[0]) == "coco" for path in paths]
    if len(images) not in (1, sum(coco)):
        if not images:
            lacking = paths[coco.index(True)]
            raise UsageError(f"{lacking} does not say where its pictures are; give their folder (--images DIR)")
        raise UsageError(
            f"{len(paths)} annotation sources and {len(images)} picture folders; give one folder for each source, or "
            "one for each COCO file, in the same order"
        )
    remaining = list(images) if len(images) == sum(coco) else [*images] * sum(coco)
    return [remaining.pop(0) if needs else None for needs in coco]


def picture_folders(table: AnnotationTable, root: Path | str | None = None) -> list[Path]:
    """The picture folder of every source, resolved; for a table of one source, ``root`` or what the table names.

    Raises:
        DataError: nobody says where a source's pictures are.
    """
    if root is not None and len(table.sources) < 2:
        return [Path(root).resolve()]
    for source in table.sources or (Source(table.source, None),):
        if source.images is None:
            raise DataError(f"{source.name} does not say where its pictures are; give their folder (--images DIR)")
    return [Path(source.images).resolve() for source in table.sources if source.images is not None]


def as_list(paths: Paths) -> list[str]:
    """One path, several or none, as texts."""
    if paths is None:
        return []
    return [str(paths)] if isinstance(paths, str | Path) else [str(path) for path in paths]
