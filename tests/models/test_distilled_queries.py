"""What a detector with queries gives to distillation, to the scores of objects, and to ignored objects."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from longtail.losses import ClassificationDistillation, FocalLoss, MaskedFeatureDistillation
from longtail.losses.auxiliary import Record
from longtail.models import DeformableDETR, deformable_detr, tiny32
from longtail.models.object_scores import query_scores
from longtail.models.query_losses import Objects, QueryCriterion, QueryOutputs
from longtail.schema.stage import Trainable
from longtail.training.trainable import freeze, train_mode

CLASSES = 3
HEAD = torch.tensor([True, True, False])
SMALL = {"channels": 64, "heads": 4, "hidden": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 12}


def detector(dropout: float = 0.0) -> DeformableDETR:
    torch.manual_seed(0)
    found = deformable_detr(tiny32(width=8), num_classes=CLASSES, dropout=dropout, **SMALL)
    with torch.no_grad():  # queries differ in class from the start
        for layer in found.class_embed:
            torch.nn.init.normal_(layer.weight, std=0.3)
    return found


def batch() -> tuple[list[Tensor], list[dict[str, Any]]]:
    draw = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 64, generator=draw), torch.rand(3, 40, 56, generator=draw)]
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([0, 2])},
        {"boxes": torch.tensor([[5.0, 5.0, 25.0, 30.0]]), "labels": torch.tensor([1])},
    ]
    return images, targets


def losses(student: DeformableDETR, teacher: DeformableDETR, parts: list[Any]) -> dict[str, Tensor]:
    wanted = frozenset().union(*(part.wants for part in parts))
    shared = frozenset().union(*(part.shares for part in parts))
    images, targets = batch()
    given = Record(wanted)
    with torch.no_grad():
        teacher.observe(images, targets, given)
    record = Record(wanted, {name: given[name] for name in shared})
    student.losses(images, targets, record=record)
    found: dict[str, Tensor] = {}
    for part in parts:
        found |= part(record, given, targets)
    return found


@pytest.mark.parametrize(
    "part",
    [
        MaskedFeatureDistillation(HEAD),
        ClassificationDistillation(HEAD),
        ClassificationDistillation(HEAD, shared=False),
        ClassificationDistillation(HEAD, shared=False, align="matched"),
    ],
)
def test_a_teacher_that_is_the_student_costs_nothing(part: Any) -> None:
    model = detector()
    train_mode(model)
    teacher = copy.deepcopy(model).requires_grad_(False)
    (value,) = losses(model, teacher, [part]).values()
    assert value.item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("transformer.input_proj", "class_embed")):
                parameter += 0.1 * torch.randn_like(parameter)
    (value,) = losses(model, teacher, [part]).values()
    assert value.item() > 1e-4


def trained_by(part: Any) -> set[str]:
    model = detector()
    train_mode(model)
    freeze(model, Trainable(only=("transformer.input_proj", "class_embed")))
    teacher = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if name.startswith(("transformer.input_proj", "class_embed")):
                parameter += 0.1 * torch.randn_like(parameter)
    (value,) = losses(model, teacher, [part]).values()
    value.backward()
    return {name for name, own in model.named_parameters() if own.grad is not None and bool((own.grad != 0).any())}


def test_where_the_gradients_go() -> None:
    maps = trained_by(MaskedFeatureDistillation(HEAD, mask_round="cover"))
    assert {name.rsplit(".", 2)[0] for name in maps} == {f"transformer.input_proj.{level}" for level in range(4)}
    shared = trained_by(ClassificationDistillation(HEAD))
    assert shared == {f"class_embed.{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")}
    own = trained_by(ClassificationDistillation(HEAD, shared=False))
    assert any(name.startswith("transformer.input_proj") for name in own)


def test_shared_logits_are_the_students_classifiers_on_the_teachers_states() -> None:
    model, other = detector().eval(), detector().eval()
    with torch.no_grad():
        other.class_embed[0].weight += 0.5
    images, targets = batch()
    given = Record({"query_features", "query_logits"})
    model.observe(images, targets, given)
    record = Record({"shared_query_logits"}, {"query_features": given["query_features"]})
    other.observe(images, targets, record)
    for layer in range(2):
        weight, bias = other.class_embed[layer].weight, other.class_embed[layer].bias
        wanted = given["query_features"][layer] @ weight.T + bias
        torch.testing.assert_close(record["shared_query_logits"][layer], wanted)
    assert torch.equal(record["shared_query_logits"][1], given["query_logits"][1])
    assert not torch.equal(record["shared_query_logits"][0], given["query_logits"][0])


def test_observing_computes_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = detector()
    monkeypatch.setattr(QueryCriterion, "forward", None)
    images, targets = batch()
    record = Record({"maps", "image_sizes", "batch_size", "query_logits"})
    model.observe(images, targets, record)
    assert set(record.values) == {"maps", "image_sizes", "batch_size", "query_logits"}


def outputs(queries: int, seed: int = 2) -> QueryOutputs:
    draw = torch.Generator().manual_seed(seed)
    logits = [torch.randn(2, queries, CLASSES, generator=draw, dtype=torch.float64) for _ in range(2)]
    boxes = [0.1 + 0.4 * torch.rand(2, queries, 4, generator=draw, dtype=torch.float64) for _ in range(2)]
    places = 0.1 + 0.4 * torch.rand(2, 7, 4, generator=draw, dtype=torch.float64)
    return QueryOutputs(logits, boxes, torch.randn(2, 7, generator=draw, dtype=torch.float64), places)


def objects(chosen: list[list[bool]] | None = None) -> list[dict[str, Any]]:
    targets: list[dict[str, Any]] = [
        {"boxes": torch.tensor([[8.0, 8.0, 32.0, 40.0], [20.0, 10.0, 60.0, 50.0], [1.0, 1.0, 20.0, 9.0]]).double(),
         "labels": torch.tensor([0, 2, 1]), "input_size": (64, 64)},
        {"boxes": torch.tensor([[9.0, 9.0, 30.0, 40.0]]).double(), "labels": torch.tensor([1]), "input_size": (40, 56)},
    ]  # fmt: skip
    for target, own in zip(targets, chosen or [], strict=False):
        target["chosen"] = torch.tensor(own)
    return targets


def cost(logits: list[float], box: list[float], label: int, wanted: list[float]) -> float:
    """Section 1 of the specification, for one pair."""
    chance = 1 / (1 + math.exp(-logits[label]))
    focal = 0.25 * (1 - chance) ** 2 * -math.log(chance + 1e-8) - 0.75 * chance**2 * -math.log(1 - chance + 1e-8)
    l1 = sum(abs(a - b) for a, b in zip(box, wanted, strict=True))
    (ax, ay, aw, ah), (bx, by, bw, bh) = box, wanted
    a, b = ((x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in ((ax, ay, aw, ah), (bx, by, bw, bh)))
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = aw * ah + bw * bh - inner
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return 2 * focal + 5 * l1 - 2 * (inner / union - (hull - union) / hull)


@pytest.mark.parametrize("queries", [6, 2])
def test_scores_of_objects_pair_by_pair(queries: int) -> None:
    found, criterion = outputs(queries), QueryCriterion(CLASSES, FocalLoss(CLASSES), repeats=3)
    own = Objects.of(objects())
    scores = query_scores(criterion, found, own)
    assert [len(part) for part in scores] == own.counts
    boxes, labels = own.boxes.split(own.counts), own.labels.split(own.counts)
    for image in range(2):
        rows = [
            [
                cost(logits, box, label, wanted)
                for label, wanted in zip(labels[image].tolist(), boxes[image].tolist(), strict=True)
            ]
            for logits, box in zip(found.logits[-1][image].tolist(), found.boxes[-1][image].tolist(), strict=True)
        ]
        pairs = dict(zip(*reversed(linear_sum_assignment(rows)), strict=True))
        for index, label in enumerate(labels[image].tolist()):
            if index in pairs:
                chances = found.logits[-1][image, pairs[index]].sigmoid()
                wanted = [chances[label].item(), chances.max().item()]
            else:
                wanted = [0.0, 0.0]
            assert scores[image][index].tolist() == pytest.approx(wanted, abs=1e-6)


def test_ignored_objects_are_matched_but_have_no_loss() -> None:
    """Pair by pair: the queries that all objects together match, without those of the ignored ones."""
    found, chosen = outputs(6), [[True, False, True], [False]]
    criterion = QueryCriterion(CLASSES, FocalLoss(CLASSES), classification_weight=3.0, proposal_weight=3.0)
    values, labels = criterion(found, objects(chosen))
    matched = criterion.match(found, Objects.of(objects()))
    marks = [mark for own in chosen for mark in own]
    own = Objects.of(objects())
    classified = []
    for layer in (0, 1):
        pairs = dict(zip(matched[layer].rows.tolist(), matched[layer].objects.tolist(), strict=True))
        total = 0.0
        for row, logits in enumerate(found.logits[layer].flatten(0, 1).tolist()):
            if row in pairs and not marks[pairs[row]]:
                continue
            for column, logit in enumerate(logits):
                chance = 1 / (1 + math.exp(-logit))
                positive = row in pairs and own.labels[pairs[row]].item() == column
                total += (
                    -0.25 * (1 - chance) ** 2 * math.log(chance)
                    if positive
                    else -0.75 * chance**2 * math.log(1 - chance)
                )
        classified.append(3.0 * total / sum(marks))
    assert values["loss_classifier"].item() == pytest.approx(classified[1])
    boxes = found.boxes[1].flatten(0, 1)
    pairs = zip(matched[1].rows.tolist(), matched[1].objects.tolist(), strict=True)
    l1 = sum((boxes[row] - own.boxes[index]).abs().sum().item() for row, index in pairs if marks[index])
    assert values["loss_l1"].item() == pytest.approx(5 * l1 / sum(marks))
    assert (labels < CLASSES).sum() == sum(marks)
    everything, _ = criterion(found, objects())
    marked, _ = criterion(found, objects([[True] * 3, [True]]))
    assert all(torch.equal(everything[name], marked[name]) for name in everything)
    places = dict(zip(matched[-1].rows.tolist(), matched[-1].objects.tolist(), strict=True))
    assert found.proposal_logits is not None
    objectness = 0.0
    for row, logit in enumerate(found.proposal_logits.flatten().tolist()):
        chance = 1 / (1 + math.exp(-logit))
        if row not in places:
            objectness += -0.75 * chance**2 * math.log(1 - chance)
        elif marks[places[row]]:
            objectness += -0.25 * (1 - chance) ** 2 * math.log(chance)
    assert found.proposal_boxes is not None
    wanted = 3.0 * objectness / sum(marks)
    kept = [(row, index) for row, index in places.items() if marks[index]]
    flat = found.proposal_boxes.flatten(0, 1)
    for row, index in kept:
        pair = (flat[row].tolist(), own.boxes[index].tolist())
        without = cost([0.0] * CLASSES, pair[0], 0, pair[1]) - cost([0.0] * CLASSES, pair[1], 0, pair[1])
        wanted += without / sum(marks)  # L1 and GIoU have the same factors in cost and loss
    assert values["loss_proposal"].item() == pytest.approx(wanted, rel=1e-5)


def test_a_batch_without_any_object() -> None:
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in range(2)]
    images, _ = batch()
    model = detector()
    found = model.losses(images, empty)
    assert all(math.isfinite(value) for value in found.values())
    assert found["loss_l1"].item() == 0
    assert [part.shape for part in model.score_objects(images, empty)] == [(0, 2), (0, 2)]
