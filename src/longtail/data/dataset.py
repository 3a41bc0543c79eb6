"""Pictures with their targets, for training and evaluation."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import Transform

from longtail.data.copy_paste import CopyPaste, CutOut
from longtail.data.geometry import PROPOSALS, as_boxes
from longtail.data.proposals import ProposalTable
from longtail.data.sources import picture_folders
from longtail.data.table import AnnotationTable
from longtail.schema.errors import DataError, UsageError

MAX_PIXELS = 178_000_000
# What decoders raise for damaged files: most of it OSError, and the rest where bytes are taken apart by hand.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


class Target(TypedDict, total=False):
    """What is known of one picture.

    Shapes:
        boxes (G, 4) float32, corners x1, y1, x2, y2 in pixels of the picture as given; labels (G,) int64 in 0..C-1;
        masks (G, H, W) uint8; image_index row of the annotation table; draw_seed seed of every draw made for this
        picture in this step; original_size (height, width) of the file after EXIF rotation; dropped objects that lost
        their whole area to the transform or too much of it to pasted ones; pasted (G,) bool, with copy-paste alone:
        objects that come from other pictures; proposals (P, 4) float32, with a table of proposals alone: regions, moved
        as the boxes are, best first; sampled_class the class the picture was drawn for, with bi-level sampling alone;
        chosen (G,) bool, where some objects have no loss: those that have one.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    image_index: int
    draw_seed: int
    original_size: tuple[int, int]
    dropped: int
    pasted: Tensor
    proposals: Tensor
    sampled_class: int
    chosen: Tensor


@dataclass(frozen=True)
class Draw:
    """A request for a picture: its row, the seed of all draws made for it, and the class it was drawn for, if any."""

    image: int
    seed: int
    label: int | None = None


def draw_seed(seed: int, epoch: int, position: int) -> int:
    """The seed of the draws for one position of an epoch's global list, in [0, 2**63): a hash of its arguments, so that
    it depends on nothing else (no worker, no process, no history)."""
    return int(np.random.SeedSequence([seed, epoch, position]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block, PyTorch's CPU, Python's and NumPy's global generators start from ``seed``; afterwards they are
    as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - third-party transforms
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Within the block Pillow's fixed limit on the number of pixels, and its warning, leave the decision to ours."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Pictures of an annotation table.

    Args:
        table: annotations.
        root: folder the file names start from, None = the one the table names; no name may lead out of it. Pictures of
            a joined table lie in the folders of their sources.
        transform: works on tv_tensors (image, boxes, masks), or None.
        with_masks: whether masks are decoded; every annotation must then have one.
        copy_paste: pastes objects of this table's pictures before the transform; needs masks, even without
            ``with_masks``.
        max_pixels: larger pictures are refused before they are decoded.
        proposals: table of proposals of these pictures, which then are in the target; not with ``copy_paste``, whose
            objects it does not know.
        top_proposals: so many of each picture, the best ones.
        chosen: (A,) annotations that have a loss, which then is in the target; None = all. Not with ``copy_paste``.

    An item is the picture (3, H, W) uint8, RGB, EXIF rotation applied, and its :class:`Target`. Crowd and ignored
    annotations are left out of the target. Asked for with a :class:`Draw`, an item depends on that alone; asked for
    with a row, its draws are the same every time.

    Raises:
        DataError: (from an item) a picture that is missing, broken, too large or of another size than annotated, or a
            missing mask; with file, id and remedy.
    """

    def __init__(
        self,
        table: AnnotationTable,
        root: Path | str | None = None,
        *,
        transform: Transform | None = None,
        with_masks: bool = False,
        copy_paste: CopyPaste | None = None,
        max_pixels: int = MAX_PIXELS,
        proposals: ProposalTable | None = None,
        top_proposals: int = 1000,
        chosen: NDArray[np.bool_] | None = None,
    ) -> None:
        if with_masks and len(table.label) and table.masks is None:
            raise DataError(f"{table.source} has no masks; add segmentations, or train boxes alone (model=faster_rcnn)")
        if proposals is not None and copy_paste is not None:
            raise UsageError("cached proposals know nothing of pasted objects; set images.copy_paste=none")
        if chosen is not None and copy_paste is not None:
            raise UsageError("objects that are ignored cannot be pasted; set images.copy_paste=none")
        self.chosen = chosen
        self.proposals = proposals
        self.top_proposals = top_proposals
        self.proposal_rows = None if proposals is None else proposals.rows_of(table.image_ids.tolist())
        self.table = table
        self.roots = picture_folders(table, root)
        self.transform = transform
        self.with_masks = with_masks
        self.copy_paste = copy_paste
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return self.table.num_images

    def __getitem__(self, request: int | Draw) -> tuple[Tensor, Target]:
        draw = request if isinstance(request, Draw) else Draw(int(request), draw_seed(0, 0, int(request)))
        picture = self.read(draw.image)
        height, width = picture.shape[-2:]
        own = self.table.rows_of(draw.image)
        rows = np.arange(own.start, own.stop)
        rows = rows[~(self.table.iscrowd[rows] | self.table.ignore[rows])]
        sample: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(self.table.boxes_xyxy(rows)), format="XYXY", canvas_size=(height, width)
            ),
            "labels": torch.from_numpy(self.table.label[rows].astype(np.int64)),
        }
        if self.with_masks:
            sample["masks"] = tv_tensors.Mask(torch.from_numpy(self.masks(rows, height, width)))
        if self.chosen is not None:
            sample["chosen"] = torch.from_numpy(self.chosen[rows])
        if self.proposals is not None and self.proposal_rows is not None:
            best = self.proposals.best(int(self.proposal_rows[draw.image]), self.top_proposals)
            sample[PROPOSALS] = as_boxes(torch.from_numpy(best), height, width)
        image: Tensor = tv_tensors.Image(picture)
        donors: list[int] = []
        with seeded(draw.seed):
            if self.copy_paste is not None:
                donors = self.copy_paste.draw()
                image, sample = self._pasted(image, sample, rows, donors)
            if self.transform is not None:
                image, sample = self.transform(image, sample)
        target = Target(
            boxes=sample["boxes"].as_subclass(Tensor),
            labels=sample["labels"],
            image_index=draw.image,
            draw_seed=draw.seed,
            original_size=(height, width),
            dropped=len(rows) + len(donors) - len(sample["labels"]),
        )
        if draw.label is not None:
            target["sampled_class"] = draw.label
        if self.copy_paste is not None:
            target["pasted"] = sample["pasted"]
        if self.chosen is not None:
            target["chosen"] = sample["chosen"]
        if self.proposals is not None:
            target["proposals"] = sample[PROPOSALS].as_subclass(Tensor)
        if self.with_masks:
            target["masks"] = sample["masks"].as_subclass(Tensor)
        return image.as_subclass(Tensor), target

    def _pasted(
        self, image: Tensor, sample: dict[str, Any], rows: NDArray[np.int64], donors: list[int]
    ) -> tuple[Tensor, dict[str, Any]]:
        """The picture and its sample with the objects of the rows ``donors``."""
        if not donors or self.copy_paste is None:
            return image, {**sample, "pasted": torch.zeros(len(rows), dtype=torch.bool)}
        height, width = image.shape[-2:]
        masks = sample["masks"] if self.with_masks else torch.from_numpy(self.masks(rows, height, width))
        image, sample = self.copy_paste.paste(image, {**sample, "masks": masks}, [self.cut_out(row) for row in donors])
        return image, sample if self.with_masks else {name: v for name, v in sample.items() if name != "masks"}

    def cut_out(self, row: int) -> CutOut:
        """One object, out of its picture."""
        picture = self.read(int(self.table.image_index[row]))
        mask = torch.from_numpy(self.masks(np.array([row]), picture.shape[-2], picture.shape[-1])[0])
        return CutOut.of(picture, mask, int(self.table.label[row]))

    def masks(self, rows: NDArray[np.int64], height: int, width: int) -> NDArray[np.uint8]:
        """Masks (n, H, W) of some annotations of one picture."""
        column = self.table.masks
        lacking = rows if column is None else rows[column.kind[rows] == 0]
        if len(lacking):
            annotation = self.table.annotation_ids[lacking[:1]].tolist()[0]
            raise DataError(
                f"{self.table.source}: annotation {annotation!r} has no segmentation; add one, or train boxes alone "
                "(model=faster_rcnn)"
            )
        if column is None:
            return np.zeros((0, height, width), dtype=np.uint8)
        decoded = np.zeros((len(rows), height, width), dtype=np.uint8)
        for place, row in enumerate(rows.tolist()):
            try:
                decoded[place] = column.decode([row], height, width)[0]
            except ValueError as error:
                annotation = self.table.annotation_ids[row : row + 1].tolist()[0]
                raise DataError(
                    f"{self.table.source}: annotation {annotation!r}: {error}; correct or remove its segmentation"
                ) from None
        return decoded

    def path(self, image: int) -> Path:
        """Where a picture lies.

        Raises:
            DataError: its name leads out of the image folder.
        """
        name = self.table.file_names[image]
        source = self.table.source_of_image
        root = self.roots[0 if source is None or len(self.roots) == 1 else int(source[image])]
        try:
            path = (root / name).resolve()
        except (ValueError, OSError, RuntimeError) as error:
            raise DataError(
                f"{self.table.source}: image {self._id(image)!r} cannot be named {name!r}: {error}; correct it"
            ) from None
        if not path.is_relative_to(root):
            raise DataError(
                f"{self.table.source}: image {self._id(image)!r} has the file_name {name!r}, which leads out of the "
                f"image folder {root}; use names inside it"
            )
        return path

    def read(self, image: int) -> Tensor:
        """A picture (3, H, W), uint8, RGB, upright."""
        path = self.path(image)
        try:
            with own_pixel_limit(), Image.open(path) as opened:
                if opened.width * opened.height > self.max_pixels:
                    raise DataError(
                        f"{path} (image {self._id(image)!r}) has {opened.width} x {opened.height} pixels, more than "
                        f"{self.max_pixels}; make it smaller or raise images.max_pixels"
                    )
                upright = ImageOps.exif_transpose(opened)
                pixels = to_rgb(upright)
        except FileNotFoundError:
            raise DataError(
                f"there is no picture {path} (image {self._id(image)!r} of {self.table.source}); put it there or give "
                "the folder that the file names start from"
            ) from None
        except UNREADABLE as error:
            raise DataError(
                f"{path} (image {self._id(image)!r}) cannot be read: {error}; replace it or remove the image"
            ) from None
        size = (int(self.table.heights[image]), int(self.table.widths[image]))
        if 0 not in size and size != pixels.shape[:2]:
            raise DataError(
                f"{path} is {pixels.shape[0]} x {pixels.shape[1]} (height x width, EXIF rotation applied), but image "
                f"{self._id(image)!r} of {self.table.source} says {size[0]} x {size[1]}; correct the annotation file"
            )
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def _id(self, image: int) -> Any:
        return self.table.image_ids[image : image + 1].tolist()[0]


def to_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) uint8. Transparent parts become white; 16-bit grey is scaled to 8 bits, as are 32-bit and float."""
    if picture.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(picture, dtype=np.float64)
        if picture.mode.startswith("I;16") or values.max(initial=0) > 255:
            values = values / 257
        return np.repeat(values.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, layered)
    return np.array(picture.convert("RGB"))
