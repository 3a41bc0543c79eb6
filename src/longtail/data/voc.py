"""Reads Pascal VOC folders (Everingham et al., 2010): ``Annotations``, ``JPEGImages``, ``ImageSets/Main``."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from longtail.data.assemble import Object, Picture, Problems, columns, inside, picture_size, read_lines
from longtail.data.table import IMAGE_SUFFIXES
from longtail.data.voc_masks import InstanceMasks
from longtail.schema.errors import DataError, UsageError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
MOST_PIXELS = 2**31


@dataclass(frozen=True)
class VocObject:
    """One ``object`` element: class name, box ``x, y, width, height`` in pixels counted from 0, ``difficult``."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def read_voc(
    root: Path | str,
    *,
    split: str | None = None,
    names: Sequence[str] | None = None,
    images: Path | str | None = None,
    masks: bool = False,
) -> dict[str, Any]:
    """The columns of an :class:`~longtail.data.table.AnnotationTable`.

    VOC counts pixels from 1 and its boxes include both corners, so a box becomes ``xmin - 1``, ``ymin - 1``,
    ``xmax - xmin + 1``, ``ymax - ymin + 1``. ``difficult`` objects are kept and flagged as ignored: they are not
    trained on, and detections of them are neither right nor wrong. Parts of objects are not read.

    Args:
        root: a folder with ``Annotations``.
        split: a list in ``ImageSets/Main`` (with ``masks``: ``ImageSets/Segmentation`` where it has one), e.g.
            ``"trainval"``; None = every file in ``Annotations``.
        names: the class list; None = the names that occur, in the order of their first occurrence.
        images: folder of the pictures; None = ``JPEGImages``.
        masks: whether instance masks are read from ``SegmentationObject``. An instance belongs to the object whose box
            it fits best.

    Raises:
        UsageError: masks of a folder that has none, or repeated names.
        DataError: everything that makes the folder unusable, with file, object and remedy.
    """
    root = Path(root)
    if not (root / "Annotations").is_dir():
        raise DataError(f"{root} has no folder Annotations; give the folder that holds it, e.g. VOCdevkit/VOC2007")
    if names is not None and len(set(names)) < len(names):
        raise UsageError("a class name occurs twice in the given list; names must differ")
    if masks and not (root / "SegmentationObject").is_dir():
        raise UsageError(f"{root} has no folder SegmentationObject, so there are no masks to read; leave masks away")
    folder = root / "JPEGImages" if images is None else Path(images)
    instances = InstanceMasks(root / "SegmentationObject") if masks else None
    label_of = {name: label for label, name in enumerate(names or ())}
    pictures: list[Picture] = []
    objects: list[Object] = []
    problems = Problems(root)
    for stem in read_stems(root, split, segmented=masks):
        path = root / "Annotations" / f"{stem}.xml"
        try:
            annotation = parse_xml(path)
            picture = _picture(path, stem, annotation, folder)
        except DataError as error:
            problems.add(error)
            continue
        found: list[VocObject] = []
        for number, entry in enumerate(annotation.findall("object"), start=1):
            try:
                each = _object(path, number, entry)
            except DataError as error:
                problems.add(error)
                continue
            if names is None:
                label_of.setdefault(each.name, len(label_of))
            elif each.name not in label_of:
                problems.add(f"{path}: object {number} has the class {each.name!r}, which is not in the given list")
                continue
            found.append(each)
        row = len(pictures)
        pictures.append(picture)
        segmentations: list[Any] = [None] * len(found)
        if instances is not None and not problems.found:
            try:
                segmentations = instances.of(stem, picture.height, picture.width, [each.box for each in found])
            except DataError as error:
                problems.add(error)
        for each, segmentation in zip(found, segmentations, strict=True):
            objects.append(Object(row, label_of[each.name], each.box, each.difficult, segmentation))
    problems.refuse()
    notes = _notes(root, instances)
    source = root if split is None else f"{root}:{split}"
    return columns(source, folder, pictures, objects, list(label_of), notes)


def read_stems(root: Path, split: str | None, *, segmented: bool = False) -> list[str]:
    """Names of the annotation files of a split, without suffix, in the order of the list.

    Raises:
        DataError: no such split, an empty one, or lines that are no names.
    """
    if split is None:
        found = sorted((root / "Annotations").rglob("*.xml"))
        if not found:
            raise DataError(f"there are no .xml files in {root / 'Annotations'}")
        return [path.relative_to(root / "Annotations").with_suffix("").as_posix() for path in found]
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if segmented and os.path.isfile(root / "ImageSets" / "Segmentation" / f"{split}.txt"):
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not os.path.isfile(path):
        known = splits_of(root)
        raise DataError(f"there is no split {path}; {root} has {', '.join(known) or 'none'}")
    stems: dict[str, int] = {}
    problems = Problems(path)
    for number, stem in enumerate(read_lines(path), start=1):
        if not stem:
            continue
        if len(stem.split()) > 1:
            problems.add(f"{path}, line {number}: {stem!r} is more than a name; a class's own list is not a split")
        elif not inside(stem):
            problems.add(f"{path}, line {number}: {stem!r} leads out of the folder; list names without suffix")
        elif stem in stems:
            problems.add(f"{path}, line {number}: {stem!r} is in line {stems[stem]} already; remove one")
        stems.setdefault(stem, number)
    problems.refuse()
    if not stems:
        raise DataError(f"{path} is empty; a split lists one picture per line, without suffix")
    return list(stems)


def splits_of(root: Path) -> list[str]:
    """Names of the splits of a VOC folder; lists of single classes (``cat_train``) are not among them."""
    return sorted(each.stem for each in (root / "ImageSets" / "Main").glob("*.txt") if "_" not in each.stem)


def parse_xml(path: Path) -> Element:
    """The root element of an XML file. Document types and entities are refused: nothing can be blown up or fetched.

    Raises:
        DataError: no such file, not XML (with line and column), or a file with a document type.
    """

    def refuse(*_: object) -> NoReturn:
        raise DataError(f"{path} has a DOCTYPE or ENTITY declaration, which is never read; remove it")

    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except FileNotFoundError:
        raise DataError(f"there is no annotation file {path}; add it, or take the picture off the split") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise DataError(f"{path} is not valid XML: {error}; was it copied completely?") from None
    root: Element = builder.close()
    return root


def _picture(path: Path, stem: str, annotation: Element, folder: Path) -> Picture:
    """The picture of an annotation file; its size is read from its header where the file states none."""
    given = (annotation.findtext("filename") or "").strip().replace("\\", "/")
    suffix = Path(given).suffix.lower()
    candidates = [f"{stem}{suffix}"] if suffix in IMAGE_SUFFIXES else []
    candidates += [f"{stem}{each}" for each in IMAGE_SUFFIXES if each != suffix]
    candidates += [name for name in (given, given.rpartition("/")[2]) if inside(name)]
    name = next((name for name in candidates if os.path.isfile(folder / name)), candidates[0])
    size = annotation.find("size")
    stated = ["" if size is None else (size.findtext(key) or "").strip() for key in ("height", "width")]
    if all(text.isascii() and text.isdigit() and 0 < int(text) < MOST_PIXELS for text in stated):
        return Picture(name, int(stated[0]), int(stated[1]))
    try:
        return Picture(name, *picture_size(folder / name))
    except DataError as error:
        raise DataError(f"{path} states no size (height and width in pixels), and {error}") from None


def _object(path: Path, number: int, entry: Element) -> VocObject:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{path}: object {number} has no name; give it the name of its class")
    where = f"{path}: object {number} ({name!r})"
    difficult = (entry.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise DataError(f"{where} has the flag difficult {difficult!r}; write 0 or 1")
    box = entry.find("bndbox")
    if box is None:
        raise DataError(f"{where} has no bndbox; add {', '.join(CORNERS)}, or remove the object")
    corners = []
    for key in CORNERS:
        text = (box.findtext(key) or "").strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not abs(value) < MOST_PIXELS:
            raise DataError(f"{where} has the {key} {text!r}; give a number of pixels")
        corners.append(value)
    left, top, right, bottom = corners
    if right - left <= -1 or bottom - top <= -1:
        raise DataError(
            f"{where} has the corners {', '.join(f'{value:g}' for value in corners)} ({', '.join(CORNERS)}), which "
            "enclose nothing; correct or remove it"
        )
    return VocObject(name, (left - 1, top - 1, right - left + 1, bottom - top + 1), difficult == "1")


def _notes(root: Path, instances: InstanceMasks | None) -> list[str]:
    if instances is not None:
        return instances.notes()
    if (root / "SegmentationObject").is_dir():
        return [f"{root}: the masks in SegmentationObject are not read; `longtail convert --masks` or masks=True do"]
    return []
