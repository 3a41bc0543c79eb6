"""The proposal network: seams, limits, seeds. Its equality with torchvision's is in test_torchvision_parity.py."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from longtail.losses.boxes import GIoULoss
from longtail.models.matching import Matcher
from longtail.models.proposals import LevelNMS, ProposalFilter, ProposalNetwork, TopN, make_anchors
from longtail.models.rcnn import proposal_network
from longtail.sampling.random_regions import RandomRegions
from longtail.sampling.regions import RegionSampler


class Pyramid(torch.nn.Module):
    out_channels = 8
    strides = (4, 8, 16)


def maps_of(batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> OrderedDict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict(
        (str(level), torch.randn(batch, 8, 64 // stride, 96 // stride, generator=generator).to(dtype))
        for level, stride in enumerate(Pyramid.strides)
    )


def images_of(batch: int) -> ImageList:
    return ImageList(torch.zeros(batch, 3, 64, 96), [(60, 90)] * batch)


def target(*boxes: list[float]) -> dict[str, Any]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.arange(len(boxes)),
    }


def network(**options: Any) -> ProposalNetwork:
    torch.manual_seed(0)
    rpn = proposal_network(Pyramid(), **options)
    for parameter in rpn.parameters():
        parameter.data.mul_(20)
    return rpn


TARGETS = [target([10.0, 10, 40, 50], [50, 5, 80, 30]), target()]


def generators(*seeds: int) -> list[torch.Generator | None]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_proposals_are_sorted_clipped_and_apart() -> None:
    found = network().detect(images_of(2), maps_of(2))
    for boxes, scores in zip(found.boxes, found.scores, strict=True):
        assert len(boxes) > 10
        assert (scores[:-1] >= scores[1:]).all()
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= 90
        assert boxes[:, 3].max() <= 60
        assert not boxes.requires_grad


def test_limits_are_those_of_the_call_not_of_the_mode() -> None:
    rpn = network(top_in_losses=TopN(50, 12), top_in_detect=TopN(40, 7))
    for mode in (True, False):
        rpn.train(mode)
        in_losses, _ = rpn.losses(images_of(2), maps_of(2), TARGETS)
        assert [len(boxes) for boxes in in_losses.boxes] == [12, 12]
        assert [len(boxes) for boxes in rpn.detect(images_of(2), maps_of(2)).boxes] == [7, 7]
        assert [len(boxes) for boxes in rpn.detect(images_of(2), maps_of(2), top=TopN(30, 5)).boxes] == [5, 5]


def test_candidates_of_the_filter_are_the_best_of_every_level() -> None:
    class All(ProposalFilter):
        def __call__(self, boxes, scores, levels, image_size, gt_boxes=None, gt_labels=None):  # type: ignore[no-untyped-def]
            assert levels.bincount().tolist() == [30, 30, 30]
            return scores.argsort(descending=True)

    rpn = network(proposal_filter=All(), top_in_detect=TopN(30, 1000))
    maps = maps_of(1)
    found = rpn.detect(images_of(1), maps)
    per_level = [logits.flatten().topk(30).values for logits in rpn.head(list(maps.values()))[0]]
    torch.testing.assert_close(found.scores[0], torch.cat(per_level).sigmoid().sort(descending=True).values)


def test_level_nms_lets_boxes_of_different_levels_be() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [3, 3, 3, 9], [20, 20, 30, 30]])
    scores = torch.tensor([0.2, 0.9, 0.4, 0.99, 0.05])
    levels = torch.tensor([0, 0, 1, 0, 0])
    assert LevelNMS(0.7)(boxes, scores, levels, (40, 40)).tolist() == [1, 2, 4]
    assert LevelNMS(0.7, score_threshold=0.1)(boxes, scores, levels, (40, 40)).tolist() == [1, 2]
    assert LevelNMS(0.7, min_size=0.0)(boxes, scores, levels, (40, 40)).tolist() == [3, 1, 2, 4]


def test_filter_can_be_replaced_and_sees_the_objects_in_losses_only() -> None:
    seen: list[Any] = []

    class Nearest(ProposalFilter):
        def __call__(self, boxes, scores, levels, image_size, gt_boxes=None, gt_labels=None):  # type: ignore[no-untyped-def]
            seen.append((image_size, gt_boxes, gt_labels))
            return scores.argsort(descending=True)[:3]

    rpn = network(proposal_filter=Nearest())
    found, _ = rpn.losses(images_of(2), maps_of(2), TARGETS)
    assert [len(boxes) for boxes in found.boxes] == [3, 3]
    assert torch.equal(seen[0][1], TARGETS[0]["boxes"])
    assert torch.equal(seen[0][2], TARGETS[0]["labels"])
    assert seen[1][0] == (60, 90)
    seen.clear()
    rpn.detect(images_of(2), maps_of(2))
    assert [(objects, labels) for _, objects, labels in seen] == [(None, None)] * 2


def test_draws_depend_on_the_seed_of_the_image_alone() -> None:
    rpn = network(sampler=RandomRegions(16, 0.5))
    maps, swapped = maps_of(2), OrderedDict((name, value.flip(0)) for name, value in maps_of(2).items())
    images = images_of(2)
    first = rpn.losses(images, maps, TARGETS, generators=generators(1, 2))[1]
    again = rpn.losses(images, maps, TARGETS, generators=generators(1, 2))[1]
    turned = rpn.losses(images, swapped, TARGETS[::-1], generators=generators(2, 1))[1]
    other = rpn.losses(images, maps, TARGETS, generators=generators(3, 2))[1]
    for name, value in first.items():
        assert torch.equal(again[name], value)
        torch.testing.assert_close(turned[name], value)
    assert other["loss_objectness"] != first["loss_objectness"]


def test_hard_example_samplers_get_the_objectness_loss() -> None:
    seen: list[Tensor] = []

    class Hardest(RegionSampler):
        needs_loss = True

        def __call__(self, iou, matched_gt, gt_labels, generator, loss_of=None):  # type: ignore[no-untyped-def]
            negative = torch.where(matched_gt == -1)[0]
            losses = loss_of(negative)
            assert not losses.requires_grad
            seen.append(losses)
            return torch.where(matched_gt >= 0)[0], negative[losses.argsort(descending=True)[:8]].sort().values

    rpn = network(sampler=Hardest(16, 0.5))
    random = network(sampler=RandomRegions(16, 0.5))
    hard_loss = rpn.losses(images_of(1), maps_of(1), [target()])[1]["loss_objectness"]
    assert (seen[0] >= 0).all()
    torch.testing.assert_close(hard_loss, seen[0].sort(descending=True).values[:8].mean())
    assert hard_loss > random.losses(images_of(1), maps_of(1), [target()])[1]["loss_objectness"]


def test_loss_in_the_space_of_boxes() -> None:
    """GIoU over the sampled anchors, from the definition."""

    class Everything(RegionSampler):
        def __call__(self, iou, matched_gt, gt_labels, generator, loss_of=None):  # type: ignore[no-untyped-def]
            return torch.where(matched_gt >= 0)[0], torch.where(matched_gt == -1)[0]

    matcher = Matcher(0.7, 0.3, low_quality=True)
    rpn = network(sampler=Everything(10**6, 1.0), matcher=matcher, box_loss=GIoULoss(), box_weight=2.0)
    images, maps = images_of(1), maps_of(1)
    loss = rpn.losses(images, maps, TARGETS[:1])[1]["loss_rpn_box_reg"]
    _, deltas, anchors, _ = rpn._predict(images, maps)
    _, matched = matcher(TARGETS[0]["boxes"], anchors)
    total = 0.0
    for n in torch.where(matched >= 0)[0].tolist():
        predicted = rpn.box_coder.decode_single(deltas[0, n : n + 1], anchors[n : n + 1])
        wanted = TARGETS[0]["boxes"][matched[n]][None]
        total += float(GIoULoss().row_losses(predicted, wanted).detach())
    torch.testing.assert_close(loss.item(), 2 * total / int((matched != -2).sum()))


def test_batch_without_any_object() -> None:
    rpn = network()
    found, losses = rpn.losses(images_of(2), maps_of(2), [target(), target()])
    assert losses["loss_rpn_box_reg"] == 0
    assert losses["loss_objectness"] > 0
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in rpn.parameters())
    assert all(len(boxes) for boxes in found.boxes)


def test_half_precision_maps_leave_anchors_exact() -> None:
    wide = OrderedDict([("0", torch.zeros(1, 8, 16, 200, dtype=torch.bfloat16))])
    rpn = proposal_network(Pyramid(), anchor_sizes=[(32,)])
    anchors = make_anchors(rpn.anchor_generator, ImageList(torch.zeros(1, 3, 64, 800), [(64, 800)]), wide)
    assert anchors.dtype == torch.float32
    centres = ((anchors[:, 0] + anchors[:, 2]) / 2).unique()
    assert torch.equal(centres, torch.arange(200) * 4.0)


def test_low_quality_matches_give_every_object_an_anchor() -> None:
    rpn = network()
    anchors = make_anchors(rpn.anchor_generator, images_of(1), maps_of(1))
    tiny = torch.tensor([[33.0, 21.0, 36.0, 24.0]])
    assert box_iou(tiny, anchors).max() < 0.3
    assert (rpn.matcher(tiny, anchors)[1] == 0).any()


@pytest.mark.parametrize("field", ["objectness_weight", "box_weight"])
def test_weights_scale_their_loss(field: str) -> None:
    one = network().losses(images_of(1), maps_of(1), TARGETS[:1], generators=generators(1))[1]
    three = network(**{field: 3.0}).losses(images_of(1), maps_of(1), TARGETS[:1], generators=generators(1))[1]
    name, other = "loss_objectness", "loss_rpn_box_reg"
    if field == "box_weight":
        name, other = other, name
    torch.testing.assert_close(three[name], 3 * one[name])
    torch.testing.assert_close(three[other], one[other])
