"""Both distillation losses of step-wise learning against loops; what takes part, and in which direction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longtail.losses import ClassificationDistillation, MaskedFeatureDistillation, Record, RegionFeatureDistillation

HEAD = torch.tensor([True, False, True, True, False])


def record(given: dict[str, object] | None = None, **values: object) -> Record:
    found = Record(values)
    for name, value in values.items():
        found.keep(name, value)
    return found


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def loop(student: Tensor, teacher: Tensor, columns: list[int], temperature: float = 1.0) -> float:
    """KL(teacher || student) over ``columns``, mean over pictures and queries, sum over layers."""
    total = 0.0
    for own_layer, other_layer in zip(student.tolist(), teacher.tolist(), strict=True):
        rows = [
            (o, t) for own, other in zip(own_layer, other_layer, strict=True) for o, t in zip(own, other, strict=True)
        ]
        layer = 0.0
        for own, other in rows:
            p = softmax([other[c] / temperature for c in columns])
            q = softmax([own[c] / temperature for c in columns])
            layer += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        total += temperature**2 * layer / len(rows)
    return total


def test_shared_queries_against_a_loop():
    student, teacher = logits(0, 3, 2, 4, 5), logits(1, 3, 2, 4, 5)
    loss = ClassificationDistillation(HEAD, loss_weight=0.3)
    found = loss(record(shared_query_logits=student), record(query_logits=teacher), [])
    assert found["loss_classification_distillation"].item() == pytest.approx(0.3 * loop(student, teacher, [0, 2, 3]))
    reverse = loop(teacher, student, [0, 2, 3])
    assert abs(loop(student, teacher, [0, 2, 3]) - reverse) > 1e-3  # so that the direction is seen


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_own_queries_all_classes_last_layer(temperature: float):
    student, teacher = logits(0, 3, 2, 4, 5), logits(1, 3, 2, 4, 5)
    loss = ClassificationDistillation(
        HEAD, loss_weight=1.0, shared=False, classes="all", layers="last", temperature=temperature
    )
    found = loss(record(query_logits=student), record(query_logits=teacher), [])
    wanted = loop(student[-1:], teacher[-1:], [0, 1, 2, 3, 4], temperature)
    assert found["loss_classification_distillation"].item() == pytest.approx(wanted)


def test_matched_queries_are_compared_by_their_objects():
    student, teacher = logits(0, 2, 1, 4, 5), logits(1, 2, 1, 4, 5)
    own = torch.tensor([[2, 0, -1], [1, 3, 0]])
    other = torch.tensor([[1, 3, 2], [0, -1, 3]])
    loss = ClassificationDistillation(HEAD, loss_weight=1.0, shared=False, align="matched")
    found = loss(
        record(query_logits=student, object_queries=own), record(query_logits=teacher, object_queries=other), []
    )
    wanted = 0.0
    for layer, pairs in enumerate(([(2, 1), (0, 3)], [(1, 0), (0, 3)])):
        for mine, theirs in pairs:
            one = loop(student[layer, :, mine][None, None], teacher[layer, :, theirs][None, None], [0, 2, 3])
            wanted += one / len(pairs)
    assert found["loss_classification_distillation"].item() == pytest.approx(wanted)


def test_tail_classes_and_the_background_get_no_gradient():
    student = logits(0, 6, 6).requires_grad_()  # regions: five classes and the background
    loss = ClassificationDistillation(HEAD, rows="region")
    found = loss(record(shared_region_logits=student), record(region_logits=logits(1, 6, 6)), [])
    found["loss_classification_distillation"].backward()
    assert student.grad is not None
    assert (student.grad[:, [1, 4, 5]] == 0).all()
    assert (student.grad[:, [0, 2, 3]] != 0).all()


def test_the_same_gives_zero_and_nothing_gives_zero():
    same = logits(0, 2, 1, 3, 5)
    loss = ClassificationDistillation(HEAD)
    assert loss(record(shared_query_logits=same), record(query_logits=same), [])[
        "loss_classification_distillation"
    ].item() == pytest.approx(0, abs=1e-12)
    regions = ClassificationDistillation(HEAD, rows="region")
    none = torch.zeros(0, 6, requires_grad=True)
    value = regions(record(shared_region_logits=none), record(region_logits=none), [])
    assert value["loss_classification_distillation"].item() == 0
    value["loss_classification_distillation"].backward()


def test_other_numbers_of_rows_are_an_error():
    with pytest.raises(ValueError, match="other shapes"):
        ClassificationDistillation(HEAD, shared=False)(
            record(query_logits=logits(0, 1, 1, 2, 5)), record(query_logits=logits(0, 1, 1, 3, 5)), []
        )


def test_region_features_against_a_loop():
    own, other = logits(0, 5, 3).requires_grad_(), logits(1, 5, 3)
    labels = torch.tensor([0, 1, 5, 3, 0])
    found = RegionFeatureDistillation(HEAD, loss_weight=2.0)(
        record(region_features=own, region_labels=labels), record(region_features=other), []
    )["loss_region_features"]
    rows = [0, 3, 4]
    total = sum((own[r, k].item() - other[r, k].item()) ** 2 for r in rows for k in range(3))
    assert found.item() == pytest.approx(2.0 * total / (2 * len(rows)))
    found.backward()
    assert own.grad is not None
    assert (own.grad[[1, 2]] == 0).all()
    tail = torch.full((5,), 1)
    none = RegionFeatureDistillation(HEAD)(
        record(region_features=own, region_labels=tail), record(region_features=other), []
    )
    assert none["loss_region_features"].item() == 0


def test_masks_leave_out_objects_without_a_loss():
    maps = {"0": logits(0, 1, 2, 4, 4)}
    others = {"0": logits(1, 1, 2, 4, 4)}
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 8.0, 16.0, 16.0]])
    labels = torch.tensor([0, 0])
    shared = {"image_sizes": [(16, 16)], "batch_size": (16, 16)}
    loss = MaskedFeatureDistillation(HEAD)
    both = loss(record(maps=maps, **shared), record(maps=others), [{"boxes": boxes, "labels": labels}])
    chosen = torch.tensor([True, False])
    one = loss(record(maps=maps, **shared), record(maps=others), [{"boxes": boxes, "labels": labels, "chosen": chosen}])
    alone = loss(record(maps=maps, **shared), record(maps=others), [{"boxes": boxes[:1], "labels": labels[:1]}])
    assert torch.equal(one["loss_masked_features"], alone["loss_masked_features"])
    assert not torch.equal(both["loss_masked_features"], alone["loss_masked_features"])
