"""Copy-paste on pictures in which an object's colour says which object it is, so that pixels are the truth."""

import gc
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as codec
from torch import Tensor

from longtail.data import AnnotationTable
from longtail.data.copy_paste import CopyPaste, DonorIndex, require_masks
from longtail.data.dataset import DetectionDataset, Draw
from longtail.data.geometry import mask_boxes
from longtail.data.loader import PositionBatches, make_loader
from longtail.data.photometric import ColourAndBlur
from longtail.data.scale_jitter import LargeScaleJitter
from longtail.data.scenes import GeneratedSet
from longtail.data.sources import read_sources
from longtail.data.transforms import train_transform
from longtail.schema import DataError

CLASSES = 6
WHITE = (255, 255, 255)
CROWD = 3  # place, in every picture, of the annotation that is a crowd or ignored


def paint(folder: Path) -> AnnotationTable:
    """24 pictures of several sizes, the last two without objects. Object k of picture i with label c is painted in
    (10 c + 10, i + 1, 100 + k); class c is in every (c + 1)-th picture or so."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(24):
        height, width = int(rng.integers(20, 60)), int(rng.integers(20, 60))
        pixels = np.zeros((height, width, 3), np.uint8)
        y, x = np.mgrid[:height, :width]
        wanted = [] if i >= 22 else [c for c in range(CLASSES) if i % (c + 1) == 0][:5]
        for k, c in enumerate(wanted):
            cy, cx, ry, rx = rng.integers(height), rng.integers(width), rng.integers(3, 12), rng.integers(3, 12)
            pixels[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1] = (10 * c + 10, i + 1, 100 + k)
        for k, c in enumerate(wanted):
            seen = np.asfortranarray((pixels == (10 * c + 10, i + 1, 100 + k)).all(axis=2).astype(np.uint8))
            if seen.any():
                code = codec.encode(seen)
                annotations.append({
                    "id": 100 * i + k + 1, "image_id": i, "category_id": c, "area": int(seen.sum()),
                    "bbox": codec.toBbox(code).tolist(), "iscrowd": int(k == CROWD and i % 12 == 0),
                    "ignore": int(k == CROWD and i % 12 != 0),
                    "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
                })  # fmt: skip
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c, "name": f"class {c}"} for c in range(CLASSES)],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return AnnotationTable.from_coco(folder / "a.json")


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnnotationTable, Path]:
    folder = tmp_path_factory.mktemp("painted")
    return paint(folder), folder


def paste(table: AnnotationTable, **options: object) -> CopyPaste:
    settings = {"probability": 1.0, "max_objects": 4, "min_visible": 0.0, "nearest": True, "scale": (0.3, 2.0)}
    return CopyPaste(DonorIndex.from_table(table, power=0.5), **settings | options)


def regions(image: Tensor) -> dict[tuple[int, ...], Tensor]:
    """The pixels of every colour of an object that is neither crowd nor ignored."""
    found = {}
    for colour in torch.unique(image.flatten(1).T, dim=0).tolist():
        if 100 <= colour[2] < 110 and colour[2] != 100 + CROWD:
            found[tuple(colour)] = (image == torch.tensor(colour)[:, None, None]).all(dim=0)
    return found


def check(image: Tensor, target: dict[str, Tensor], *, tight_boxes: bool) -> None:
    """Boxes, masks and labels are what the pixels say; boxes to the pixel where nothing was resized."""
    shown = regions(image)
    assert (target["masks"].sum(dim=0) <= 1).all(), "no pixel belongs to two objects"
    covered = {colour: torch.zeros_like(where) for colour, where in shown.items()}
    for box, label, mask, pasted in zip(*(target[n] for n in ("boxes", "labels", "masks", "pasted")), strict=True):
        inside = torch.unique(image[:, mask > 0].T, dim=0).tolist()
        assert len(inside) == 1, "a mask holds one object's pixels"
        colour = tuple(inside[0])
        covered[colour] |= mask > 0
        assert int(label) == (colour[0] - 10) // 10
        if not pasted:
            assert colour[1] == target["image_index"] + 1
        tight = mask_boxes(mask[None])[0]
        assert (box[:2] - 1 <= tight[:2]).all() and (box[2:] + 1 >= tight[2:]).all()
        assert not tight_boxes or torch.equal(box, tight)
        assert (box >= 0).all() and box[2] <= image.shape[2] and box[3] <= image.shape[1]
    for colour, where in shown.items():
        assert torch.equal(covered[colour], where), "every visible pixel of an object is in a mask"


@pytest.mark.parametrize("jitter", [None, (40, 50), (16, 90)])
def test_masks_boxes_and_labels_are_what_the_pixels_say(
    painted: tuple[AnnotationTable, Path], jitter: tuple[int, int] | None
) -> None:
    table, folder = painted
    resize = torch.nn.Identity() if jitter is None else LargeScaleJitter(jitter, (0.5, 2.0), fill=WHITE, nearest=True)
    transform = None
    if jitter is not None:
        transform = train_transform([1], 1, flip=0.5, vertical_flip=0.5, transpose=0.5, resize=resize)
    dataset = DetectionDataset(table, folder, transform=transform, with_masks=True, copy_paste=paste(table))
    total = dropped = new = 0
    for image in range(table.num_images):
        for seed in range(4):
            picture, target = dataset[Draw(image, seed)]
            check(picture, target, tight_boxes=jitter is None)
            assert jitter is None or {picture.shape[1], picture.shape[2]} == set(jitter)
            new += int(target["pasted"].sum())
            total += len(target["labels"])
            dropped += target["dropped"]
    assert new > 100 and dropped > 5 and total > 200


def test_kept_and_dropped_add_up_and_too_little_is_removed(painted: tuple[AnnotationTable, Path]) -> None:
    table, folder = painted
    copy_paste = paste(table, min_visible=0.6)
    dataset = DetectionDataset(table, folder, with_masks=True, copy_paste=copy_paste)
    drawn: list[list[int]] = []
    draw = copy_paste.draw
    copy_paste.draw = lambda: drawn.append(draw()) or drawn[-1]  # type: ignore[method-assign]
    removed = 0
    for image in range(22):
        for seed in range(5):
            picture, target = dataset[Draw(image, seed)]
            usable = [r for r in range(*table.rows_of(image).indices(10**6)) if not (table.iscrowd | table.ignore)[r]]
            assert len(target["labels"]) + target["dropped"] == len(usable) + len(drawn[-1])
            if image in table.image_index[drawn[-1]]:
                continue  # the same colours twice
            shown, kept = regions(picture), target["labels"][~target["pasted"]].tolist()
            wanted = []
            for row in usable:
                k = int(table.annotation_ids[row]) % 100 - 1
                colour = (10 * int(table.label[row]) + 10, image + 1, 100 + k)
                left = int(shown[colour].sum()) if colour in shown else 0
                if left >= 0.6 * table.area[row]:
                    wanted.append(int(table.label[row]))
            assert kept == wanted
            removed += len(usable) - len(kept)
    assert removed > 10


def test_crowds_and_ignored_objects_are_no_donors(painted: tuple[AnnotationTable, Path]) -> None:
    table, _ = painted
    donors = DonorIndex.from_table(table, power=0.5)
    assert sorted(donors.rows.tolist()) == np.flatnonzero(~(table.iscrowd | table.ignore)).tolist()
    assert table.iscrowd.sum() >= 1 and table.ignore.sum() >= 1
    for c in range(CLASSES):
        assert (table.label[donors.rows[donors.start[c] : donors.start[c + 1]]] == c).all()


# 99.9 % quantiles of the chi-square distribution, by degrees of freedom
CRITICAL = {4: 18.47, 5: 20.52}


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 2.0])
def test_donors_are_drawn_by_class_frequency(painted: tuple[AnnotationTable, Path], power: float) -> None:
    table, _ = painted
    donors = DonorIndex.from_table(table, power=power)
    pictures = np.array([
        len({int(i) for i, c, out in zip(table.image_index, table.label, table.iscrowd | table.ignore, strict=True)
             if c == label and not out}) for label in range(CLASSES)
    ], dtype=float)  # fmt: skip
    expected = pictures**-power / (pictures**-power).sum()
    assert np.allclose(donors.probability, expected)
    assert len(set(pictures.tolist())) > 3
    torch.manual_seed(1)
    drawn = np.array([donors.draw() for _ in range(4000)])
    counts = np.bincount(table.label[drawn], minlength=CLASSES)
    assert ((counts - 4000 * expected) ** 2 / (4000 * expected)).sum() < CRITICAL[CLASSES - 1]
    rows = donors.rows[donors.start[1] : donors.start[2]][:5]  # within a class, every object alike
    among = np.bincount(np.searchsorted(rows, drawn[np.isin(drawn, rows)]), minlength=5)
    assert ((among - among.mean()) ** 2 / among.mean()).sum() < CRITICAL[4]


def test_classes_without_donors_are_never_drawn(painted: tuple[AnnotationTable, Path]) -> None:
    table, _ = painted
    wider = replace(table, category_ids=np.arange(9), category_names=[f"class {c}" for c in range(9)])
    donors = DonorIndex.from_table(wider, power=1.0)
    assert donors.probability[6:].tolist() == [0, 0, 0]
    torch.manual_seed(0)
    assert set(wider.label[[donors.draw() for _ in range(300)]].tolist()) == set(range(CLASSES))


def test_arrays_that_cannot_be_written_to_will_do(painted: tuple[AnnotationTable, Path]) -> None:
    table, folder = painted
    frozen = replace(table)
    for array in (frozen.label, frozen.boxes_xywh, frozen.iscrowd, frozen.ignore, frozen.image_index):
        array.setflags(write=False)
    assert len(DetectionDataset(frozen, folder, copy_paste=paste(frozen))[Draw(0, 3)][1]["pasted"])


def test_pictures_are_a_function_of_the_draw_with_any_number_of_workers(painted: tuple[AnnotationTable, Path]) -> None:
    table, folder = painted
    transform = train_transform([1], 1, resize=LargeScaleJitter((32, 40)), colour=ColourAndBlur())
    copy_paste = paste(table, nearest=False, blur=1.0, probability=0.7)
    dataset = DetectionDataset(table, folder, transform=transform, with_masks=True, copy_paste=copy_paste)

    class Rows:
        def epoch(self, epoch: int) -> np.ndarray:
            return np.random.default_rng(epoch).permutation(24)

        def labels(self, epoch: int) -> None:
            return None

    def batches(workers: int, start: int = 0) -> list[tuple[Tensor, dict[str, Tensor]]]:
        plan = PositionBatches(Rows(), seed=3, batch_size=4, num_batches=8, start_batch=start)
        loader = make_loader(dataset, plan, workers=workers)
        found = [item for images, targets in loader for item in zip(images, targets, strict=True)]
        gc.collect()
        return found

    def same(one: list, other: list) -> None:
        assert len(one) == len(other) > 0
        for (image, target), (picture, again) in zip(one, other, strict=True):
            assert torch.equal(image, picture)
            assert target.keys() == again.keys()
            for name, value in target.items():
                assert torch.equal(value, again[name]) if isinstance(value, Tensor) else value == again[name]

    alone = batches(0)
    same(alone, batches(2))
    same(alone[20:], batches(0, start=5))


def test_without_masks_in_the_target_pictures_and_objects_are_the_same(painted: tuple[AnnotationTable, Path]) -> None:
    table, folder = painted
    one = DetectionDataset(table, folder, with_masks=True, copy_paste=paste(table))
    other = DetectionDataset(table, folder, with_masks=False, copy_paste=paste(table))
    for image in range(24):
        (picture, target), (again, boxes) = one[Draw(image, 7)], other[Draw(image, 7)]
        assert torch.equal(picture, again)
        assert "masks" not in boxes
        for name in ("boxes", "labels", "pasted"):
            assert torch.equal(target[name], boxes[name])
        assert target["dropped"] == boxes["dropped"]


def test_masks_that_are_not_asked_for_go_before_the_transform(painted: tuple[AnnotationTable, Path]) -> None:
    table, folder = painted
    seen: list[set[str]] = []

    def watch(image: Tensor, sample: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(set(sample))
        return image, sample

    DetectionDataset(table, folder, transform=watch, copy_paste=paste(table))[Draw(0, 7)]
    DetectionDataset(table, folder, transform=watch, copy_paste=paste(table), with_masks=True)[Draw(0, 7)]
    assert seen == [{"boxes", "labels", "pasted"}, {"boxes", "labels", "pasted", "masks"}]


def test_with_probability_0_nothing_changes(painted: tuple[AnnotationTable, Path]) -> None:
    table, folder = painted
    plain = DetectionDataset(table, folder, with_masks=True)[Draw(2, 1)]
    image, target = DetectionDataset(table, folder, with_masks=True, copy_paste=paste(table, probability=0.0))[
        Draw(2, 1)
    ]
    assert torch.equal(image, plain[0])
    assert torch.equal(target["boxes"], plain[1]["boxes"])
    assert not target.pop("pasted").any()
    assert target.keys() == plain[1].keys()


def test_donors_come_from_every_source_of_a_joined_table(
    painted: tuple[AnnotationTable, Path], smoke_set: GeneratedSet
) -> None:
    _, folder = painted
    joined = read_sources([folder / "a.json", smoke_set.train], [folder, smoke_set.images])
    dataset = DetectionDataset(joined, None, with_masks=True, copy_paste=paste(joined))
    pasted: set[int] = set()
    for seed in range(20):
        _, target = dataset[Draw(0, seed)]
        pasted |= set(target["labels"][target["pasted"]].tolist())
    assert min(pasted) < CLASSES <= max(pasted)


def test_data_without_all_masks_are_refused(painted: tuple[AnnotationTable, Path]) -> None:
    table, _ = painted
    with pytest.raises(DataError, match=r"a\.json: copy-paste needs a mask .* have none .*copy_paste=none"):
        DonorIndex.from_table(replace(table, masks=None), power=0.5)
    assert table.masks is not None
    kind = table.masks.kind.copy()
    kind[[4, 7]] = 0
    usable = ~(table.iscrowd | table.ignore)
    one, two = table.annotation_ids[[4, 7]].tolist()
    with pytest.raises(DataError, match=rf"2 of {usable.sum()} have none \(annotations {one}, {two}\)"):
        require_masks(replace(table, masks=replace(table.masks, kind=kind)), usable)
    kind = np.where(usable, table.masks.kind, 0).astype(np.uint8)
    require_masks(replace(table, masks=replace(table.masks, kind=kind)), usable)  # a crowd needs none
    crowds = replace(table, iscrowd=np.ones_like(table.iscrowd))
    with pytest.raises(DataError, match="no object that could be pasted"):
        DonorIndex.from_table(crowds, power=0.5)
