"""SimCal's second head: which regions it learns from, what it trains, and whose scores are used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from longtail.losses import SoftmaxCrossEntropy
from longtail.losses.boxes import L1Loss
from longtail.models import BoxStage, CalibratedHead, LinearClassifier, Matcher
from longtail.models.calibrated import bi_level_regions
from longtail.models.classifiers import Classifier
from longtail.sampling import RandomRegions
from longtail.schema.errors import UsageError

C, D, SIZE = 4, 8, (64, 64)
TAIL = torch.tensor([False, True, False, True])
BOXES = torch.tensor([[4.0, 4, 24, 24], [30, 30, 60, 60]])


def stage(start: Any = "copy") -> BoxStage:
    torch.manual_seed(0)
    box = BoxStage(
        num_classes=C,
        pool=MultiScaleRoIAlign(["0"], 3, 2),
        head=TwoMLPHead(4 * 9, D),
        classifier=LinearClassifier(D, C + 1),
        regressor=nn.Linear(D, 4),
        classification_loss=SoftmaxCrossEntropy(C),
        box_loss=L1Loss(),
        matcher=Matcher(0.5, 0.5),
        sampler=RandomRegions(16, 0.5),
        class_agnostic=True,
    )
    box.calibrated = CalibratedHead.beside(box.head, box.classifier, TAIL, start=start)
    return box


def inputs() -> tuple[dict[str, Tensor], list[Tensor], list[dict[str, Any]]]:
    maps = {"0": torch.rand(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))}
    far = torch.tensor([[0.0, 40, 10, 60], [40, 0, 60, 12], [26, 2, 36, 12], [2, 28, 12, 38], [44, 14, 62, 26]])
    proposals = [torch.cat([BOXES, BOXES + 1, far]), torch.cat([BOXES - 1, far])]
    targets = [
        {"boxes": BOXES, "labels": torch.tensor([1, 2]), "sampled_class": 2},
        {"boxes": BOXES, "labels": torch.tensor([3, 0]), "sampled_class": 3},
    ]
    return maps, proposals, targets


def randomised(head: CalibratedHead) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.3, generator=generator)


def test_regions_by_hand() -> None:
    """Two pictures: three candidates of class 2, one of class 3; so four of the five background candidates."""
    matched = [torch.tensor([1, -1, 0, 1, -2, 1]), torch.tensor([-1, 0, -1, 1, -1, -1])]
    labels = [torch.tensor([1, 2]), torch.tensor([3, 0])]
    first, second = bi_level_regions(matched, labels, [2, 3], torch.Generator().manual_seed(0))
    assert first[0].tolist() == [0, 3, 5]
    assert second[0].tolist() == [1]
    assert set(first[1].tolist()) <= {1}
    assert set(second[1].tolist()) <= {0, 2, 4, 5}
    assert len(first[1]) + len(second[1]) == 4


def test_the_background_comes_from_the_whole_batch_alike() -> None:
    matched = [torch.tensor([0, -1, -1, -1]), torch.tensor([-1])]
    labels = [torch.tensor([1]), torch.zeros(0, dtype=torch.int64)]
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(800):
        (_, near), (_, far) = bi_level_regions(matched, labels, [1, 1], generator)
        counts[near - 1] += 1
        counts[3] += len(far)
    assert counts.sum() == 800
    assert (counts - 200).abs().max() < 62  # five standard deviations


def test_a_class_that_was_cropped_away_leaves_nothing() -> None:
    ((positive, negative),) = bi_level_regions([torch.tensor([0, -1])], [torch.tensor([1])], [2], None)
    assert len(positive) == len(negative) == 0
    box = stage()
    maps, proposals, targets = inputs()
    losses = box.losses(maps, SIZE, proposals, [{**target, "sampled_class": 1 - i} | {"labels": torch.tensor([2, 2])}
                                                for i, target in enumerate(targets)]).losses  # fmt: skip
    assert losses["loss_calibrated"] == 0
    losses["loss_calibrated"].backward()


def test_the_loss_is_the_mean_cross_entropy_of_the_sampled_class_and_background() -> None:
    box = stage()
    assert box.calibrated is not None
    randomised(box.calibrated)
    maps, proposals, targets = inputs()
    result = box.losses(maps, SIZE, proposals, targets, step_generator=torch.Generator().manual_seed(2))
    assert set(result.losses) == {"loss_calibrated"}
    labels = torch.cat(result.regions.labels)
    # with the objects' own boxes: three of class 2 in the first picture, two of class 3 in the second
    assert torch.bincount(labels, minlength=C + 1).tolist() == [0, 0, 3, 2, 5]
    assert [len(own) for own in result.regions.gt_boxes] == [3, 2]
    expected = 0.0
    for image, boxes in enumerate(result.regions.proposals):
        for row, label in zip(boxes, result.regions.labels[image], strict=True):
            one = {"0": maps["0"][image : image + 1]}
            logits = box.calibrated(box.pool(one, [row[None]], [SIZE]))[0].double()
            expected -= float(logits.log_softmax(0)[label])
    assert result.losses["loss_calibrated"].item() == pytest.approx(expected / len(labels), rel=1e-5)


def test_without_a_sampled_class_the_region_sampler_decides() -> None:
    box = stage()
    maps, proposals, targets = inputs()
    plain = [{name: value for name, value in target.items() if name != "sampled_class"} for target in targets]
    seeds = [torch.Generator().manual_seed(i) for i in range(2)]
    found = box.losses(maps, SIZE, proposals, plain, generators=seeds).regions
    again = box.sample(maps, SIZE, proposals, plain, [torch.Generator().manual_seed(i) for i in range(2)])
    assert all(torch.equal(a, b) for a, b in zip(found.proposals, again.proposals, strict=True))
    assert {0, 1, 2, 3} <= set(torch.cat(found.labels).tolist())


def test_only_the_second_head_gets_a_gradient() -> None:
    box = stage()
    maps, proposals, targets = inputs()
    box.losses(maps, SIZE, proposals, targets).losses["loss_calibrated"].backward()
    moved = {name for name, parameter in box.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in box.named_parameters() if name.startswith("calibrated.")}


def test_tail_columns_come_from_the_second_head_and_nothing_is_normalised() -> None:
    box = stage().eval()
    assert box.calibrated is not None
    maps, proposals, _ = inputs()
    randomised(box.calibrated)
    mixed, deltas = box.predict(maps, SIZE, proposals)
    own = box.calibrated(box.pool(maps, proposals, [SIZE])).softmax(dim=1)
    head, box.calibrated = box.calibrated, None
    original, plain_deltas = box.predict(maps, SIZE, proposals)
    assert torch.equal(mixed[:, [0, 2, 4]], original[:, [0, 2, 4]])
    torch.testing.assert_close(mixed[:, [1, 3]], own[:, [1, 3]])
    assert (mixed[:, [1, 3]] - original[:, [1, 3]]).abs().max() > 0.01
    assert (mixed.sum(dim=1) - 1).abs().max() > 0.01
    assert torch.equal(deltas, plain_deltas)
    assert torch.equal(head.tail, TAIL)


def test_a_copy_scores_as_the_original_and_a_new_one_does_not() -> None:
    maps, proposals, _ = inputs()
    for start in ("copy", "new"):
        box = stage(start).eval()
        mixed, _ = box.predict(maps, SIZE, proposals)
        box.calibrated = None
        same = torch.equal(mixed, box.predict(maps, SIZE, proposals)[0])
        assert same == (start == "copy")


def test_copies_are_taken_when_asked_for_and_are_their_own() -> None:
    box = stage("new")
    assert box.calibrated is not None
    box.calibrated.copy_from(box.head, box.classifier)
    for own, other in zip(box.calibrated.classifier.parameters(), box.classifier.parameters(), strict=True):
        assert torch.equal(own, other)
        assert own.data_ptr() != other.data_ptr()


def test_the_tail_is_not_saved() -> None:
    assert not any("tail" in name for name in stage().state_dict())


def test_classifiers_on_pooled_features_are_refused() -> None:
    class Pooled(LinearClassifier):
        name = "whole"
        level = "pooled"

    classifier: Classifier = Pooled(3, 2)
    with pytest.raises(UsageError, match="whole"):
        CalibratedHead(nn.Identity(), classifier, TAIL)
