"""What can be wrong with annotations and pictures: one table for the checker, its repairs and its documentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]
Mend = Literal["", "drop", "clip", "box from mask", "new id", "drop part", "area from box"]


@dataclass(frozen=True)
class Rule:
    """One kind of defect.

    Attributes:
        code: its name in reports.
        severity: an error makes the file unusable for training or evaluation; a warning deserves a look.
        what: follows the number of cases, e.g. "boxes with a negative width or height".
        remedy: what to do about it.
        mend: how ``--fix`` mends it; empty = it cannot.
        readable: whether a file with this error can be read all the same, for what does not need the broken part. Any
            error keeps training from starting.
    """

    code: str
    severity: Severity
    what: str
    remedy: str
    mend: Mend = ""
    readable: bool = False


RULES: tuple[Rule, ...] = (
    # the file
    Rule("file-missing", "error", "annotation file that is not there", "correct the path"),
    Rule("file-archive", "error", "archive in place of an annotation file", "unpack it and name the file in it"),
    Rule("file-unreadable", "error", "file that cannot be read", "copy it again; it must be UTF-8 JSON, plain or .gz"),
    Rule("json-syntax", "error", "file that is not valid JSON", "copy it again, it may be cut off"),
    Rule("json-nan", "error", "NaN or Infinity in place of numbers", "JSON has no such numbers; replace them"),
    Rule("key-missing", "error", "of images, annotations and categories missing", "write all three lists"),
    Rule("key-repeated", "error", "lists that the file has twice", "keep one of them"),
    Rule("entry-invalid", "error", "entries that are not JSON objects", "write every entry as an object"),
    Rule("images-none", "error", "file without images", "list the pictures under images", readable=True),
    Rule("annotations-none", "error", "file without annotations", "add some; nothing can be learned or measured",
         readable=True),
    Rule("categories-none", "error", "file without categories", "list the classes under categories", readable=True),
    # images
    Rule("image-id-invalid", "error", "images whose id is neither a number nor text", "give every image an id"),
    Rule("image-id-duplicate", "error", "images whose id another image has", "give every image its own id"),
    Rule("image-size-invalid", "error", "images with an impossible height or width", "give whole pixels, or none"),
    Rule("image-size-missing", "warning", "images without height or width", "add them; else boxes cannot be compared"),
    Rule("image-lists-invalid", "error", "images with unknown classes in their LVIS lists", "list ids from categories"),
    Rule("file-name-missing", "error", "images without a file_name", "give every image one"),
    Rule("file-name-escapes", "error", "file names that lead out of the image folder", "use names inside it"),
    Rule("file-name-duplicate", "warning", "images whose file_name another image has", "merge the images"),
    Rule("file-name-case", "warning", "file names that differ only in upper and lower case",
         "rename; some file systems hold only one of them"),
    Rule("file-name-unicode", "warning", "file names that differ only in their Unicode form (NFC, NFD)",
         "rename; some file systems hold only one of them"),
    # pictures
    Rule("picture-missing", "error", "pictures that are not there", "correct the folder or file_name, or remove them"),
    Rule("picture-spelling", "error", "pictures that are there under another case or Unicode form",
         "rename the file or correct file_name"),
    Rule("picture-broken", "error", "pictures that cannot be read", "replace them, or remove the images"),
    Rule("picture-size", "error", "pictures of another size than the file says (EXIF rotation applied)",
         "correct height and width; if they are swapped, the boxes belong to the unrotated picture"),
    Rule("picture-huge", "error", "pictures with too many pixels", "make them smaller"),
    # categories
    Rule("category-id-invalid", "error", "categories whose id is neither a number nor text", "give every class an id"),
    Rule("category-id-duplicate", "error", "categories whose id another category has", "give every class its own id"),
    Rule("category-name-duplicate", "error", "categories whose name another category has", "rename or merge them",
         readable=True),
    Rule("category-name-missing", "warning", "categories without a name", "name them; the id stands in for the name"),
    Rule("category-unused", "warning", "categories without any annotation",
         "nothing to do; they are left out of means and weights"),
    Rule("category-crowd-only", "warning", "categories with crowd or ignored annotations only",
         "they cannot be learned; add single objects"),
    # annotations
    Rule("annotation-id-invalid", "error", "annotations whose id is neither a number nor text", "give them ids",
         "new id"),
    Rule("annotation-id-duplicate", "error", "annotations whose id another annotation has", "give each its own id",
         "new id"),
    Rule("image-id-unknown", "error", "annotations of images that are not listed", "correct image_id, or remove them",
         "drop"),
    Rule("category-id-unknown", "error", "annotations of categories that are not listed",
         "correct category_id, or remove them", "drop"),
    Rule("bbox-missing", "error", "annotations without a bbox", "add [left, top, width, height]", "drop"),
    Rule("bbox-type", "error", "boxes that are not lists of numbers", "write [left, top, width, height]", "drop"),
    Rule("bbox-length", "error", "boxes without exactly four numbers", "write [left, top, width, height]", "drop"),
    Rule("bbox-nan", "error", "boxes with a number that is not finite", "correct or remove them", "drop"),
    Rule("bbox-negative", "error", "boxes with a negative width or height",
         "write [left, top, width, height], not two corners", "drop"),
    Rule("bbox-zero", "error", "boxes without area", "correct or remove them", "drop"),
    Rule("bbox-outside", "error", "boxes wholly outside their picture", "correct or remove them", "drop"),
    Rule("bbox-partly-outside", "warning", "boxes that stick out of their picture by more than a pixel", "clip them",
         "clip"),
    Rule("bbox-duplicate", "warning", "annotations with image, class and box of another one", "remove them", "drop"),
    Rule("area-invalid", "error", "annotations whose area is not a number from 0", "correct it, or leave it out",
         "area from box"),
    Rule("flag-invalid", "error", "annotations whose iscrowd or ignore is neither 0 nor 1", "write 0 or 1, or neither"),
    # masks
    Rule("mask-missing", "error", "annotations without a segmentation in a file that has some",
         "add them, or train boxes alone (model=faster_rcnn)", "drop", readable=True),
    Rule("mask-type", "error", "segmentations that are neither polygons nor run lengths", "correct or remove them",
         "drop part", readable=True),
    Rule("mask-points", "error", "segmentations with a polygon of fewer than three points", "remove the polygon",
         "drop part", readable=True),
    Rule("mask-odd", "error", "segmentations with a polygon of an odd number of coordinates", "write x, y, x, y, ...",
         "drop part", readable=True),
    Rule("mask-rle", "error", "run-length encodings that are broken or do not fill their size", "encode them again",
         "drop part", readable=True),
    Rule("mask-empty", "error", "masks without a pixel", "correct or remove them", "drop part", readable=True),
    Rule("mask-size", "error", "run-length encodings of another size than the picture", "encode them at its size",
         "drop part", readable=True),
    Rule("mask-box", "warning", "masks whose bounds and bbox overlap by less than half (IoU < 0.5)",
         "find out which of the two is right", "box from mask"),
    Rule("index-stale", "warning", "stored index of an earlier content with the same size and time of change",
         "nothing to do; it has been removed"),
    # two files
    Rule("against-unreadable", "error", "other file that cannot be used", "check that file by itself"),
    Rule("split-leakage", "warning", "images that both files hold (same file or same content)",
         "remove them from one; figures would be too good"),
    Rule("category-only-against", "warning", "categories annotated in the other file only",
         "no detector trained here can find them"),
)  # fmt: skip

RULE_OF: dict[str, Rule] = {rule.code: rule for rule in RULES}


def markdown_table() -> str:
    """The rules as the table of the documentation."""
    lines = ["| code | severity | finds | remedy | `--fix` |", "|---|---|---|---|---|"]
    lines += [f"| `{r.code}` | {r.severity} | {r.what} | {r.remedy} | {r.mend or '–'} |" for r in RULES]
    return "\n".join(lines)
