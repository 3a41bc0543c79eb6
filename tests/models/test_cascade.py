"""Cascade R-CNN against the plain detector, and stage by stage against loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longtail.losses import SeesawLoss, SoftmaxCrossEntropy
from longtail.losses.auxiliary import Record
from longtail.models import (
    PUBLISHED_STAGES,
    CascadeRCNN,
    CascadeStage,
    CosineClassifier,
    ImageBatcher,
    Inference,
    Proposals,
    TopN,
    adjust_logits,
    cascade_rcnn,
    mask_rcnn,
    proposal_network,
    tau_normalise,
    tiny32,
)
from longtail.models.cascade import moved_boxes, regions_of_next_stage
from longtail.models.region_head import StageResult
from longtail.models.regions import Regions
from longtail.models.two_stage import Pyramid
from longtail.replay import ObjectMemory
from longtail.sampling.random_regions import RandomRegions
from longtail.schema import UsageError

C = 4
NAMES = ("loss_classifier", "loss_box_reg", "loss_mask")


def parts(**options: Any) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    backbone = tiny32(width=8, fpn_channels=16)
    given: dict[str, Any] = {
        "num_classes": C,
        "embedding_size": 16,
        "proposal": proposal_network(
            backbone, sampler=RandomRegions(16, 0.5), top_in_losses=TopN(60, 40), top_in_detect=TopN(60, 40)
        ),
        "preprocess": ImageBatcher(backbone.mean, backbone.std, short_side=64, long_side=96),
        "inference": Inference(score_threshold=0.01, detections_per_image=20),
        "mask_layers": (8,),
        "mask_hidden": 8,
    }
    return backbone, {**given, **options}


def cascade(*, masks: bool = True, **options: Any) -> CascadeRCNN:
    backbone, given = parts(**options)
    count = len(given.get("stages", PUBLISHED_STAGES))
    given.setdefault("region_samplers", [RandomRegions(16, 0.25)] * count)
    return cascade_rcnn(backbone, with_masks=masks, **given)


def batch(objects: tuple[int, ...] = (2, 1)) -> tuple[list[Tensor], list[Any]]:
    generator = torch.Generator().manual_seed(1)
    images, targets = [], []
    for index, count in enumerate(objects):
        height, width = 64 + 8 * index, 90 - 10 * index
        images.append(torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8))
        corner = torch.rand(count, 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + 12 + torch.rand(count, 2, generator=generator) * 18], dim=1)
        masks = torch.zeros(count, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        targets.append({"boxes": boxes, "labels": torch.arange(count) % C, "masks": masks, "draw_seed": 100 + index})
    return images, targets


class Spy:
    """Keeps what the stages of a cascade were given and made."""

    def __init__(self, model: CascadeRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proposals: list[list[Tensor]] = []
        self.results: list[StageResult] = []
        for stage in model.stages:
            monkeypatch.setattr(stage, "losses", self.watched(stage.losses))

    def watched(self, losses: Any) -> Any:
        def call(maps: Any, size: Any, proposals: Any, *rest: Any, **options: Any) -> StageResult:
            self.proposals.append([own.clone() for own in proposals])
            self.results.append(losses(maps, size, proposals, *rest, **options))
            return self.results[-1]

        return call


def test_one_stage_is_mask_rcnn_bit_for_bit() -> None:
    only = cascade(stages=PUBLISHED_STAGES[:1])
    backbone, given = parts()
    plain = mask_rcnn(backbone, region_sampler=RandomRegions(16, 0.25), class_agnostic_box=True, **given)
    state = {name.replace("box.0.", "box.").replace("mask.0.", "mask."): v for name, v in only.state_dict().items()}
    plain.load_state_dict(state)
    images, targets = batch()
    ours, theirs = only(images, targets), plain(images, targets)
    assert set(ours) == {f"{name}_0" if name in NAMES else name for name in theirs}
    for name, value in theirs.items():
        assert torch.equal(ours[f"{name}_0" if name in NAMES else name], value), name
    sum(ours.values()).backward()
    sum(theirs.values()).backward()
    gradients = dict(plain.named_parameters())
    for name, parameter in only.named_parameters():
        other = gradients[name.replace("box.0.", "box.").replace("mask.0.", "mask.")]
        assert torch.equal(parameter.grad, other.grad), name  # type: ignore[arg-type]
    for found, wanted in zip(only.eval().detect(images), plain.eval().detect(images), strict=True):
        assert len(wanted["boxes"])
        for key, value in wanted.items():
            assert torch.equal(found[key], value), key


def decoded(deltas: list[float], box: list[float], weights: tuple[float, ...]) -> list[float]:
    """The definition (Girshick et al., 2014, appendix C), number by number."""
    width, height = box[2] - box[0], box[3] - box[1]
    dx, dy = deltas[0] / weights[0], deltas[1] / weights[1]
    dw = min(deltas[2] / weights[2], math.log(1000 / 16))
    dh = min(deltas[3] / weights[3], math.log(1000 / 16))
    x, y = box[0] + width / 2 + dx * width, box[1] + height / 2 + dy * height
    w, h = width * math.exp(dw), height * math.exp(dh)
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def test_regions_of_the_next_stage_are_moved_clipped_and_rid_of_objects() -> None:
    model = cascade(masks=False).double()
    stage = model.stages[1]
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(9, 2, generator=generator, dtype=torch.float64) * 40
    boxes = torch.cat([corner, corner + 10], dim=1)
    is_object = torch.tensor([True, False, False, True, False, False, True, False, False])
    features = torch.randn(9, 16, generator=generator, dtype=torch.float64)
    features[5] = 0
    stage.regressor.weight.data.mul_(30)
    stage.regressor.bias.data = torch.tensor([0.0, 0, 0, 0], dtype=torch.float64)
    boxes[5] = torch.tensor([70.0, 3, 80, 9])  # stays, and lies outside the second picture
    regions = Regions([boxes[:4], boxes[4:]], [], [], [], [], is_object=[is_object[:4], is_object[4:]])
    sizes = [(64, 90), (50, 60)]
    found = regions_of_next_stage(stage, StageResult({}, regions, features, features), sizes)

    deltas = F.linear(features, stage.regressor.weight, stage.regressor.bias).tolist()
    wanted: list[list[list[float]]] = [[], []]
    for row in range(9):
        image = int(row >= 4)
        height, width = sizes[image]
        x1, y1, x2, y2 = decoded(deltas[row], boxes[row].tolist(), PUBLISHED_STAGES[1].box_weights)
        x1, x2 = min(max(x1, 0), width), min(max(x2, 0), width)
        y1, y2 = min(max(y1, 0), height), min(max(y2, 0), height)
        if not is_object[row] and x2 > x1 and y2 > y1:
            wanted[image].append([x1, y1, x2, y2])
    assert [len(own) for own in wanted] == [2, 3], "an object or a lost box on either side"
    for own, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, torch.tensor(expected, dtype=torch.float64))
        assert not own.requires_grad


def iou(first: list[float], second: list[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0) * max(height, 0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return common / (area - common)


def test_every_stage_learns_from_what_the_one_before_made_at_its_own_iou(monkeypatch: pytest.MonkeyPatch) -> None:
    model = cascade(masks=False, region_samplers=[RandomRegions(64, 1.0)] * 3)
    spy = Spy(model, monkeypatch)
    images, targets = batch((2, 3))
    generator = torch.Generator().manual_seed(2)
    beside = [
        target["boxes"].repeat(8, 1) + 8 * torch.rand(8 * len(target["boxes"]), 4, generator=generator) - 4
        for target in targets
    ]
    proposals = Proposals(beside, [torch.ones(len(own)) for own in beside])
    monkeypatch.setattr(model.rpn, "losses", lambda *given, **options: (proposals, {}))
    model.losses(images, targets)
    assert len(spy.results) == 3
    bands = 0
    for number, (result, limit) in enumerate(zip(spy.results, (0.5, 0.6, 0.7), strict=True)):
        for image, target in enumerate(targets):
            objects = target["boxes"].tolist()
            columns = result.regions.proposals, result.regions.labels
            for box, label in zip(*(own[image].tolist() for own in columns), strict=True):
                best = max(iou(box, own) for own in objects)
                assert (label < C) == (best >= limit)
                bands += best < limit and best >= 0.5
            own_boxes = result.regions.proposals[image][result.regions.is_object[image]]
            assert {tuple(box) for box in own_boxes.tolist()} == {tuple(box) for box in objects}
        if number:
            before = spy.results[number - 1]
            handed = regions_of_next_stage(model.stages[number - 1], before, [(64, 90), (72, 80)])
            assert all(torch.equal(a, b) for a, b in zip(spy.proposals[number], handed, strict=True))
    assert bands, "no region tells the stages' thresholds apart"


def test_no_gradient_runs_through_the_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = cascade(masks=False, box_weight=0.0)
    losses = model.losses(*batch())
    losses["loss_classifier_2"].backward()
    assert all(p.grad is None or not p.grad.any() for stage in model.stages[:2] for p in stage.parameters())
    assert all(p.grad is None or not p.grad.any() for p in model.rpn.parameters())
    assert model.stages[2].classifier.weight.grad.any()  # type: ignore[union-attr]


def test_losses_of_a_stage_carry_its_weight() -> None:
    images, targets = batch()
    heavy = tuple(CascadeStage(s.iou, 3 * s.loss_weight, s.box_weights) for s in PUBLISHED_STAGES)
    memory = [ObjectMemory(C, torch.tensor([True] * C), count=2)]
    plain = cascade(replay=memory).losses(images, targets)
    heavier = cascade(replay=memory, stages=heavy).losses(images, targets)
    for number in range(3):
        for name in NAMES:
            torch.testing.assert_close(heavier[f"{name}_{number}"], 3 * plain[f"{name}_{number}"])
    assert torch.equal(plain["loss_objectness"], heavier["loss_objectness"])
    unweighted = tuple(CascadeStage(s.iou, 1.0, s.box_weights) for s in PUBLISHED_STAGES)
    ones = cascade(replay=memory, stages=unweighted).losses(images, targets)
    for number, weight in enumerate((1.0, 0.5, 0.25)):
        for name in NAMES:
            torch.testing.assert_close(plain[f"{name}_{number}"], weight * ones[f"{name}_{number}"])


def test_detections_have_the_mean_of_the_scores_and_the_last_boxes() -> None:
    model = cascade().eval()
    for stage in model.stages:
        stage.regressor.weight.data.mul_(20)
    images, _ = batch()
    prepared, _ = model.preprocess(images, resize=True)
    maps = model.backbone(prepared.tensors)
    size = tuple(prepared.tensors.shape[-2:])
    boxes = model.rpn.detect(prepared, maps).boxes
    scores = []
    for stage in model.stages:
        before = boxes
        own, deltas = stage.predict(maps, size, boxes)
        scores.append(own)
        boxes = moved_boxes(stage, deltas, boxes, prepared.image_sizes)
    mean = (scores[0] + scores[1] + scores[2]) / 3
    first = len(before[0])
    found = model.detect(images)
    assert all(len(each["boxes"]) for each in found)
    for each, own_boxes, own_mean, image, network_size in zip(
        found, boxes, (mean[:first], mean[first:]), images, prepared.image_sizes, strict=True
    ):
        scale = torch.tensor([image.shape[-1] / network_size[1], image.shape[-2] / network_size[0]]).repeat(2)
        for box, score, label in zip(each["boxes"], each["scores"], each["labels"], strict=True):
            region = int((own_boxes * scale - box).abs().sum(dim=1).argmin())
            torch.testing.assert_close(own_boxes[region] * scale, box)
            torch.testing.assert_close(own_mean[region, label], score)
    masks = [branch.predict(maps, size, boxes, [torch.zeros(len(own), dtype=torch.int64) for own in boxes])
             for branch in model.branches]  # fmt: skip
    pyramid = Pyramid(maps, (int(size[0]), int(size[1])), prepared.image_sizes)
    together = model.masks(pyramid, boxes, [torch.zeros(len(own), dtype=torch.int64) for own in boxes])
    assert together is not None
    for image in range(2):
        torch.testing.assert_close(together[image], (masks[0][image] + masks[1][image] + masks[2][image]) / 3)


def test_stages_have_losses_classifiers_and_replay_of_their_own() -> None:
    loss = SeesawLoss(C)
    model = cascade(
        masks=False, classification_loss=loss, replay=[ObjectMemory(C, torch.tensor([True] * C), count=2)]
    ).train()
    model.losses(*batch((2, 3)))
    stages = model.stages
    for kind in ("classification_loss", "box_loss", "classifier", "head"):
        assert len({id(getattr(stage, kind)) for stage in stages}) == 3, kind
    assert len({id(stage.replay[0]) for stage in stages}) == 3
    counts = [stage.classification_loss.state_dict() for stage in stages]
    assert all(any(value.any() for value in own.values()) for own in counts)
    assert not any(value.any() for value in loss.state_dict().values()), "the given loss is not one of theirs"
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.losses(*batch((2, 3)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_record_has_every_stage_and_the_last_under_the_plain_name() -> None:
    wanted = {"maps", "region_labels", "region_logits", *(f"region_labels_{n}" for n in range(3)), "region_logits_2"}
    record = Record(wanted)
    model = cascade(masks=False)
    model.losses(*batch(), record=record)
    assert set(record.values) == wanted
    assert torch.equal(record["region_labels"], record["region_labels_2"])
    assert torch.equal(record["region_logits"], record["region_logits_2"])
    assert not torch.equal(record["region_labels_0"], record["region_labels_2"])


def test_adjustments_reach_every_stage() -> None:
    images, _ = batch()
    model = cascade(masks=False).eval()
    plain = model.detect(images)[0]["scores"]
    tau_normalise(model, tau=1.0)
    assert all(stage.adjustment is not None for stage in model.stages)
    assert not torch.equal(model.detect(images)[0]["scores"], plain)
    adjust_logits(model, torch.tensor([1, 10, 100, 1000]), tau=0.0)
    torch.testing.assert_close(model.detect(images)[0]["scores"], plain)
    with pytest.raises(UsageError, match="linear"):
        tau_normalise(cascade(classifier=CosineClassifier, classification_loss=SoftmaxCrossEntropy(C)))


def test_pictures_without_objects_and_without_proposals() -> None:
    model = cascade()
    model.rpn.top_in_losses = model.rpn.top_in_detect = TopN(0, 0)
    for objects in ((0, 2), (0, 0)):
        losses = model.losses(*batch(objects))
        assert all(bool(torch.isfinite(value)) for value in losses.values())
        sum(losses.values()).backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert [len(found["boxes"]) for found in model.eval().detect(batch()[0])] == [0, 0]


def test_refuses_what_is_no_cascade() -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        cascade(stages=())
    with pytest.raises(ValueError, match="one per stage"):
        cascade(region_samplers=[RandomRegions(16, 0.25)])
    backbone, given = parts()
    plain = mask_rcnn(backbone, **given)
    with pytest.raises(ValueError, match="class-agnostic"):
        CascadeRCNN(preprocess=plain.preprocess, backbone=backbone, rpn=plain.rpn, box=[plain.box])
