"""The region head without replay: its losses from their definition, and what it shows and refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from region_head_parts import (
    CHANNELS,
    SIZE,
    C,
    D,
    Scripted,
    ScriptedPooled,
    inputs,
    plain_box_rows,
    rows_like,
    run,
    seeds,
    stage,
)
from torch import Tensor, nn
from torch.nn import functional as F

from longtail.losses.auxiliary import Record
from longtail.losses.base import ClassificationLoss
from longtail.losses.boxes import GIoULoss, SmoothL1Loss
from longtail.losses.softmax import SoftmaxCrossEntropy
from longtail.models.classifiers import Classifier, CosineClassifier
from longtail.sampling.regions import RegionSampler
from longtail.schema.errors import UsageError


@pytest.mark.parametrize("options", [{}, {"class_agnostic": True}, {"box_loss": GIoULoss()}])
def test_plain_losses_follow_their_definition(options: dict[str, Any]) -> None:
    head = stage(**options, classification_weight=2.0, box_weight=3.0)
    result = run(head)
    labels = torch.cat(result.regions.labels)
    assert len(labels) == 32
    assert sum(result.regions.num_positive) >= 8
    assert set(result.losses) == {"loss_classifier", "loss_box_reg"}
    torch.testing.assert_close(result.losses["loss_classifier"], 2 * F.cross_entropy(result.logits, labels))
    torch.testing.assert_close(result.losses["loss_box_reg"], 3 * plain_box_rows(head, result).sum() / 32)


def test_regions_are_positives_then_negatives() -> None:
    result = run(stage())
    _, _, targets = inputs()
    for image, target in enumerate(targets):
        count = result.regions.num_positive[image]
        labels = result.regions.labels[image]
        assert (labels[:count] < C).all()
        assert (labels[count:] == C).all()
        assert torch.equal(labels[:count], target["labels"][result.regions.gt_index[image]])
        assert torch.equal(result.regions.gt_boxes[image], target["boxes"][result.regions.gt_index[image]])


def test_objects_are_candidates_unless_told_otherwise() -> None:
    maps, proposals, targets = inputs()
    far = [boxes[-12:] for boxes in proposals]
    with_objects = stage().losses(maps, SIZE, far, targets).regions
    without = stage(add_objects=False).losses(maps, SIZE, far, targets).regions
    assert [int(count) for count in with_objects.num_positive] == [2, 3]
    assert sum(without.num_positive) < 5


def test_hard_example_samplers_get_the_classification_loss() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Watching(RegionSampler):
        needs_loss = True

        def __call__(self, iou, matched_gt, gt_labels, generator, loss_of=None):  # type: ignore[no-untyped-def]
            positive, negative = torch.where(matched_gt >= 0)[0], torch.where(matched_gt == -1)[0]
            losses = loss_of(torch.cat([positive, negative]))
            assert not losses.requires_grad
            seen.append((losses, loss_of(negative[:0])))
            return positive, negative

    head = stage(sampler=Watching(512, 1.0))
    result = run(head, objects=(2, 0, 3))
    for losses, nothing in seen:
        assert nothing.shape == (0,)
        assert losses.shape[0] > 0
    rows = F.cross_entropy(result.logits, torch.cat(result.regions.labels), reduction="none")
    torch.testing.assert_close(torch.cat([losses for losses, _ in seen]), rows)


@pytest.mark.parametrize("proposals", ["none", "some"])
def test_batch_without_objects(proposals: str) -> None:
    head = stage()
    maps, boxes, targets = inputs((0, 0))
    if proposals == "none":
        boxes = [box[:0] for box in boxes]
    result = head.losses(maps, SIZE, boxes, targets, generators=seeds())
    assert result.losses["loss_box_reg"] == 0
    assert torch.isfinite(result.losses["loss_classifier"])
    sum(result.losses.values()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_no_proposals_leave_the_objects_themselves() -> None:
    maps, boxes, targets = inputs((2, 0))
    result = stage().losses(maps, SIZE, [box[:0] for box in boxes], targets)
    assert result.regions.num_positive == [2, 0]
    assert [len(labels) for labels in result.regions.labels] == [2, 0]


def test_record_holds_this_steps_rows() -> None:
    record = Record({"region_features", "region_logits", "region_labels"})
    result = run(stage(Scripted(lambda rows: rows_like(rows, [1]))), record=record)
    assert torch.equal(record["region_features"], result.features)
    assert torch.equal(record["region_logits"], result.logits)
    assert torch.equal(record["region_labels"], torch.cat(result.regions.labels))


def test_prediction_has_one_row_per_proposal() -> None:
    head = stage()
    maps, proposals, _ = inputs()
    scores, deltas = head.predict(maps, SIZE, proposals)
    count = sum(len(boxes) for boxes in proposals)
    assert scores.shape == (count, C + 1)
    assert deltas.shape == (count, 4 * C)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(count))


class PooledClassifier(Classifier):
    name = "linear"
    level = "pooled"

    def __init__(self, in_features: int, num_logits: int) -> None:
        super().__init__(in_features, num_logits)
        self.layer = nn.Linear(CHANNELS * 9, num_logits)

    def initialise(self, bias_prior: float | None = None) -> None:
        self.layer.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features.flatten(1))


def test_classifiers_on_pooled_features() -> None:
    part = ScriptedPooled(lambda rows: rows_like(rows, [1]))
    head = stage(part, classifier=PooledClassifier(D, C + 1))
    run(head)
    pooled = torch.cat([part.shown[0].features, rows_like(part.shown[0], [1]).features])
    torch.testing.assert_close(part.after[0][1], head.classifier(pooled))
    maps, proposals, _ = inputs()
    assert head.predict(maps, SIZE, proposals)[0].shape[1] == C + 1
    with pytest.raises(UsageError, match="takes pooled features"):
        stage(Scripted(), classifier=PooledClassifier(D, C + 1))


class DenseOnly(SoftmaxCrossEntropy):
    heads = frozenset({"dense"})


class LinearOnly(SoftmaxCrossEntropy):
    classifiers = frozenset({"linear"})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (DenseOnly(C), "is a loss for dense heads"),
        (LinearOnly(C), "cannot be used with the classifier 'cosine'; it can with: linear"),
        (SoftmaxCrossEntropy(C + 1), "built for 6 classes, the detector has 5"),
    ],
)
def test_combinations_without_meaning_are_refused(loss: ClassificationLoss, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stage(classification_loss=loss, classifier=CosineClassifier(D, loss.num_logits))


def test_smooth_l1_of_one_ninth_is_torchvisions_box_loss() -> None:
    head = stage(box_loss=SmoothL1Loss(beta=1 / 9))
    result = run(head)
    torch.testing.assert_close(result.losses["loss_box_reg"], plain_box_rows(head, result).sum() / 32)
