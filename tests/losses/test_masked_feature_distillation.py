"""Masked feature distillation against loops written from the specification of step-wise learning, section 6.1."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import MaskedFeatureDistillation, Record

HEAD = torch.tensor([True, False, True])


def make_record(maps: dict[str, torch.Tensor], sizes: list[tuple[int, int]], padded: tuple[int, int]) -> Record:
    record = Record(MaskedFeatureDistillation.wants)
    record.keep("maps", maps)
    record.keep("image_sizes", sizes)
    record.keep("batch_size", padded)
    record.keep("something else", 1)
    return record


def oracle(student, teacher, targets, sizes, padded, space: str, rounding: str) -> float:
    terms = []
    for name in student:
        own, other = student[name].double(), teacher[name].double()
        _, channels, h, w = own.shape
        for b, target in enumerate(targets):
            frame = padded if space == "image" else sizes[b]
            covered = set()
            for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
                if not HEAD[label]:
                    continue
                x1, x2 = (float(torch.tensor(v) / frame[1] * w) for v in (box[0], box[2]))
                y1, y2 = (float(torch.tensor(v) / frame[0] * h) for v in (box[1], box[3]))
                if rounding == "code":
                    rows, columns = range(math.ceil(y1), math.ceil(y2)), range(math.floor(x1), math.floor(x2))
                else:
                    rows = range(math.floor(y1), max(math.ceil(y2), math.floor(y1) + 1))
                    columns = range(math.floor(x1), max(math.ceil(x2), math.floor(x1) + 1))
                covered |= {(i, j) for i in rows for j in columns if 0 <= i < h and 0 <= j < w}
            total = 0.0
            for i, j in covered:
                for c in range(channels):
                    total += float(own[b, c, i, j] - other[b, c, i, j]) ** 2
            terms.append(total / (2 * max(len(covered), 1)))
    return sum(terms) / len(terms)


@given(seed=st.integers(0, 50), space=st.sampled_from(["image", "padded"]), rounding=st.sampled_from(["code", "cover"]))
@settings(max_examples=40, deadline=None)
def test_equals_the_loops(seed: int, space: str, rounding: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    padded, sizes = (64, 96), [(64, 80), (50, 96)]
    shapes = {"0": (2, 3, 8, 12), "1": (2, 3, 4, 6)}
    student = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    teacher = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    targets = []
    for (height, width), count in zip(sizes, (3, seed % 3), strict=True):
        corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([width, height])
        targets.append({"boxes": corners.reshape(-1, 4), "labels": torch.randint(0, 3, (count,), generator=generator)})
    loss = MaskedFeatureDistillation(HEAD, mask_space=space, mask_round=rounding)
    found = loss(make_record(student, sizes, padded), make_record(teacher, sizes, padded), targets)
    expected = oracle(student, teacher, targets, sizes, padded, space, rounding)
    assert float(found["loss_masked_features"]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_equal_networks_cost_nothing_and_only_the_student_gets_a_gradient() -> None:
    maps = {"0": torch.randn(1, 2, 4, 4, requires_grad=True)}
    other = {"0": torch.randn(1, 2, 4, 4, requires_grad=True)}
    targets = [{"boxes": torch.tensor([[0.0, 0.0, 30.0, 30.0]]), "labels": torch.tensor([0])}]
    size = [(32, 32)]
    loss = MaskedFeatureDistillation(HEAD, loss_weight=2.0)
    same = loss(make_record(maps, size, (32, 32)), make_record(maps, size, (32, 32)), targets)
    assert float(same["loss_masked_features"]) == 0
    value = loss(make_record(maps, size, (32, 32)), make_record(other, size, (32, 32)), targets)["loss_masked_features"]
    value.backward()
    assert maps["0"].grad is not None
    inside = maps["0"].grad.abs().sum(dim=(0, 1)) > 0  # the box covers all rows and the first three columns
    assert inside.tolist() == [[True, True, True, False]] * 4
    assert other["0"].grad is None
    plain = MaskedFeatureDistillation(HEAD)(
        make_record(maps, size, (32, 32)), make_record(other, size, (32, 32)), targets
    )
    assert float(value) == pytest.approx(2 * float(plain["loss_masked_features"]))


def test_tail_classes_and_empty_pictures_cost_nothing() -> None:
    maps, other = {"0": torch.zeros(2, 1, 4, 4)}, {"0": torch.ones(2, 1, 4, 4)}
    targets = [
        {"boxes": torch.tensor([[0.0, 0.0, 32.0, 32.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    sizes = [(32, 32), (32, 32)]
    found = MaskedFeatureDistillation(HEAD)(
        make_record(maps, sizes, (32, 32)), make_record(other, sizes, (32, 32)), targets
    )
    assert float(found["loss_masked_features"]) == 0


def test_a_thin_box_vanishes_as_in_the_released_code_unless_it_must_cover() -> None:
    arguments = (torch.tensor([[9.0, 9.0, 12.0, 30.0]]), torch.tensor([0]), (32, 32), (32, 32), (4, 4))
    assert not MaskedFeatureDistillation(HEAD).mask(*arguments).any()
    assert MaskedFeatureDistillation(HEAD, mask_round="cover").mask(*arguments).any()


@pytest.mark.parametrize("chosen", [[True, False, True], [False, False, False], [True, True, True]])
def test_objects_that_are_not_chosen_are_as_if_they_were_not_there(chosen: list[bool]) -> None:
    generator = torch.Generator().manual_seed(3)
    maps, other = ({"0": torch.randn(1, 2, 8, 8, generator=generator)} for _ in range(2))
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [30.0, 8.0, 60.0, 40.0], [4.0, 40.0, 40.0, 60.0]])
    labels, kept, size = torch.tensor([0, 2, 0]), torch.tensor(chosen), [(64, 64)]
    loss = MaskedFeatureDistillation(HEAD)
    records = make_record(maps, size, size[0]), make_record(other, size, size[0])
    marked = loss(*records, [{"boxes": boxes, "labels": labels, "chosen": kept}])
    without = loss(*records, [{"boxes": boxes[kept], "labels": labels[kept]}])
    assert torch.equal(marked["loss_masked_features"], without["loss_masked_features"])
    if all(chosen):
        assert torch.equal(
            marked["loss_masked_features"], loss(*records, [{"boxes": boxes, "labels": labels}])["loss_masked_features"]
        )


def test_boxes_are_not_taken_out_by_their_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    # a mask as an index makes the host wait for the number of its true entries
    asked: list[torch.dtype] = []
    original = torch.Tensor.__getitem__

    def watched(own: torch.Tensor, key: object) -> torch.Tensor:
        asked.extend([key.dtype] if isinstance(key, torch.Tensor) else [])
        return original(own, key)

    monkeypatch.setattr(torch.Tensor, "__getitem__", watched)
    maps = {"0": torch.zeros(1, 1, 4, 4)}
    record = make_record(maps, [(32, 32)], (32, 32))
    target = {
        "boxes": torch.tensor([[0.0, 0.0, 32.0, 32.0]]),
        "labels": torch.tensor([0]),
        "chosen": torch.tensor([True]),
    }
    MaskedFeatureDistillation(HEAD)(record, record, [target])
    assert asked
    assert torch.bool not in asked


def test_masks_of_boxes_that_touch_the_borders_end_there() -> None:
    loss, cover = MaskedFeatureDistillation(HEAD), MaskedFeatureDistillation(HEAD, mask_round="cover")
    frame = ((40, 48), (64, 64), (8, 8))  # a picture of 5 x 6 cells within a batch of 8 x 8
    head = torch.tensor([0])
    whole = torch.zeros(8, 8, dtype=torch.bool)
    whole[:5, :6] = True
    corner = torch.zeros(8, 8, dtype=torch.bool)
    corner[3:5, 4:6] = True
    for each in (loss, cover):
        assert torch.equal(each.mask(torch.tensor([[0.0, 0.0, 48.0, 40.0]]), head, *frame), whole)
        assert torch.equal(each.mask(torch.tensor([[32.0, 24.0, 48.0, 40.0]]), head, *frame), corner)
    full = ((64, 64), (64, 64), (8, 8))
    assert loss.mask(torch.tensor([[0.0, 0.0, 64.0, 64.0]]), head, *full).all()
    assert cover.mask(torch.tensor([[60.0, 60.0, 64.0, 64.0]]), head, *full).nonzero().tolist() == [[7, 7]]
    assert not loss.mask(torch.tensor([[60.0, 60.0, 63.0, 64.0]]), head, *full).any(), (
        "less than a cell, no border in it"
    )
    padded = MaskedFeatureDistillation(HEAD, mask_space="padded")
    assert padded.mask(torch.tensor([[0.0, 0.0, 48.0, 40.0]]), head, *frame).all(), "stretched over the padding"


def test_a_missing_record_and_a_wrong_mask_of_classes_are_named() -> None:
    with pytest.raises(KeyError, match="was not recorded"):
        Record({"maps"})["maps"]
    with pytest.raises(ValueError, match="boolean"):
        MaskedFeatureDistillation(torch.ones(3))
