"""RetinaNet: the head, what it learns from, and what it detects, against loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from longtail.losses import (
    EqualizationLoss,
    EqualizedFocalLoss,
    FederatedLoss,
    FocalLoss,
    GHMClassification,
    GHMRegression,
    GIoULoss,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
)
from longtail.losses.auxiliary import Record
from longtail.models import (
    ATSSMatcher,
    ImageBatcher,
    Inference,
    Matcher,
    RetinaNet,
    remap_classes,
    retinanet,
    tiny32,
)
from longtail.models.dense_head import paired_iou
from longtail.models.dense_layers import ConvClassifier
from longtail.models.retinanet import octaves
from longtail.schema.errors import UsageError

CLASSES = 4
SIZES = [[12.0, 18.0], [24.0, 36.0], [48.0, 72.0]]
DENSE_LOSSES = [
    FocalLoss(CLASSES),
    SigmoidCrossEntropy(CLASSES),
    EqualizedFocalLoss(CLASSES),
    GHMClassification(CLASSES),
    FederatedLoss(torch.tensor([9, 4, 2, 1]), subset=2),
    EqualizationLoss(torch.tensor([0.5, 0.2, 0.001, 0.001])),
]


def model(**options: Any) -> RetinaNet:
    torch.manual_seed(0)
    backbone = tiny32(width=8, fpn_channels=8)
    options = {"layers": 1, "anchor_sizes": SIZES, "preprocess": ImageBatcher(short_side=64, long_side=128)} | options
    return retinanet(backbone, num_classes=CLASSES, **options)


def batch(seed: int = 0, kinds: str = "o-o") -> tuple[list[Tensor], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for index, kind in enumerate(kinds):
        count = 3 if kind == "o" else 0
        corner = torch.rand(count, 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + 10 + torch.rand(count, 2, generator=generator) * 20], dim=1)
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        images.append(torch.rand(3, 64, 64, generator=generator))
        targets.append({"boxes": boxes, "labels": labels, "draw_seed": 7 + index})
    return images, targets


@pytest.mark.parametrize("loss", DENSE_LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("box_loss", [None, GIoULoss(), GHMRegression()], ids=["smooth_l1", "giou", "ghm_r"])
@pytest.mark.parametrize("kinds", ["oo", "--"])
def test_every_dense_loss_trains(loss: Any, box_loss: Any, kinds: str) -> None:
    detector = model(classification_loss=loss, box_loss=box_loss)
    images, targets = batch(kinds=kinds)
    losses = detector.losses(images, targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg"}
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in detector.parameters())
    assert (losses["loss_box_reg"] > 0) == (kinds == "oo")
    assert losses["loss_classifier"] < 50 or kinds == "--"  # a mean over positives


def test_other_losses_are_refused() -> None:
    with pytest.raises(UsageError, match=r"SoftmaxCrossEntropy is a loss for roi heads, not for the anchors"):
        model(classification_loss=SoftmaxCrossEntropy(CLASSES))
    with pytest.raises(UsageError, match="not for the anchors"):
        model(classification_loss=EqualizationLoss(torch.rand(CLASSES), form="softmax"))
    with pytest.raises(UsageError, match="built for 9 classes, the detector has 4"):
        model(classification_loss=FocalLoss(9))


def test_first_scores_are_the_prior_of_the_loss() -> None:
    detector = model().eval()
    outputs = detector.head(detector.backbone(torch.rand(1, 3, 64, 64)))
    scores = torch.cat([level.sigmoid().flatten() for level in outputs.logits])
    assert float(scores.mean()) == pytest.approx(0.01, rel=0.05)


def labels_by_hand(anchors: Tensor, target: dict[str, Any]) -> list[tuple[int, int]]:
    """(label, object) per anchor: at least .5 positive, below .4 background, between left out, and best ones."""
    found = []
    table = box_iou(target["boxes"], anchors)
    best = table.max(dim=1).values if len(table) else None
    for n in range(len(anchors)):
        column = table[:, n].tolist()
        label, own = CLASSES, -1
        if column:
            top = max(range(len(column)), key=lambda g: column[g])
            claimed = any(column[g] == float(best[g]) for g in range(len(column)))
            if column[top] >= 0.5 or claimed:
                label, own = int(target["labels"][top]), top
            elif column[top] >= 0.4:
                label, own = -1, -1
        found.append((label, own))
    return found


def test_losses_equal_a_loop_over_anchors() -> None:
    detector = model().double()
    detector.preprocess.double()
    images, targets = batch(seed=3)
    images = [image.double() for image in images]
    targets = [{**target, "boxes": target["boxes"].double()} for target in targets]
    got = detector.losses(images, targets)

    pictures, _ = detector.preprocess(images, targets, resize=False)
    maps = detector.backbone(pictures.tensors)
    outputs = detector.head(maps)
    head = detector.head
    shapes = [torch.empty(1, 1, *m.shape[-2:], dtype=torch.float64) for m in maps.values()]
    anchors = head.anchor_generator(ImageList(pictures.tensors, pictures.image_sizes[:1]), shapes)[0]
    logits, deltas = torch.cat(outputs.logits, dim=1), torch.cat(outputs.deltas, dim=1)
    classification, box, positives, left_out = 0.0, 0.0, 0, 0
    for image, target in enumerate(targets):
        for n, (label, own) in enumerate(labels_by_hand(anchors, target)):
            if label == -1:
                left_out += 1
                continue
            for c in range(CLASSES):
                p = 1 / (1 + math.exp(-float(logits[image, n, c])))
                classification -= (
                    0.25 * (1 - p) ** 2 * math.log(p) if c == label else 0.75 * p**2 * math.log(1 - p)
                )  # fmt: skip
            if label == CLASSES:
                continue
            positives += 1
            ax1, ay1, ax2, ay2 = anchors[n].tolist()
            gx1, gy1, gx2, gy2 = target["boxes"][own].tolist()
            aw, ah, gw, gh = ax2 - ax1, ay2 - ay1, gx2 - gx1, gy2 - gy1
            wanted = [
                ((gx1 + gx2) - (ax1 + ax2)) / 2 / aw,
                ((gy1 + gy2) - (ay1 + ay2)) / 2 / ah,
                math.log(gw / aw),
                math.log(gh / ah),
            ]
            for value, want in zip(deltas[image, n].tolist(), wanted, strict=True):
                x = abs(value - want)
                box += x * x / 2 * 9 if x < 1 / 9 else x - 1 / 18
    assert positives > 5
    assert left_out > 0
    assert float(got["loss_classifier"]) == pytest.approx(classification / positives, rel=1e-9)
    assert float(got["loss_box_reg"]) == pytest.approx(box / positives, rel=1e-6)


def test_classifier_lies_in_the_order_of_the_anchors() -> None:
    """Logit k of anchor a at place (y, x) is channel a * K + k there."""
    layer = ConvClassifier(3, 5, 2)
    torch.nn.init.normal_(layer.bias)
    maps = torch.rand(2, 3, 4, 6)
    channels = torch.nn.functional.conv2d(maps, layer.weight.flatten(0, 1), layer.bias.flatten(), padding=1)
    logits = layer(maps)
    assert logits.shape == (2, 4 * 6 * 2, 5)
    for image, y, x, a, k in [(0, 0, 0, 0, 0), (1, 3, 5, 1, 4), (0, 2, 1, 1, 0), (1, 1, 4, 0, 3)]:
        assert logits[image, (y * 6 + x) * 2 + a, k] == channels[image, a * 5 + k, y, x]
    with pytest.raises(ValueError, match="num_anchors"):
        ConvClassifier(3, 5, 0)


def test_classes_are_carried_over_by_name() -> None:
    source, target = model(), model()
    torch.nn.init.normal_(source.head.classifier.weight)
    torch.nn.init.normal_(source.head.classifier.bias)
    fresh = target.head.classifier.weight.detach().clone()
    state, report = remap_classes(
        target, source.state_dict(), source_classes=["a", "b", "c", "d"], target_classes=["c", "e", "a", "f"]
    )
    assert report.matched == ("c", "a")
    target.load_state_dict(state)
    weight = target.head.classifier.weight
    assert torch.equal(weight[:, 0], source.head.classifier.weight[:, 2])
    assert torch.equal(weight[:, 2], source.head.classifier.weight[:, 0])
    assert torch.equal(weight[:, 1], fresh[:, 1])


def test_class_mask_takes_classes_out_of_a_picture() -> None:
    detector = model()
    images, targets = batch(kinds="-o")
    everything = detector.losses(images, targets)["loss_classifier"]
    masked = [dict(target) for target in targets]
    masked[0]["class_mask"] = torch.tensor([True, False, False, True])
    got = detector.losses(images, masked)["loss_classifier"]
    outputs = detector.head(detector.backbone(detector.preprocess(images, resize=False)[0].tensors))
    cells = torch.cat(outputs.logits, dim=1)[0, :, 1:3].sigmoid()
    record = Record({"dense_labels"})
    detector.losses(images, targets, record=record)
    positives = int((record["dense_labels"] < CLASSES).sum())
    taken_out = float((-0.75 * cells**2 * torch.log(1 - cells)).sum()) / positives
    assert taken_out > 0
    assert float(everything - got) == pytest.approx(taken_out, rel=1e-3)


def test_record_holds_maps_logits_and_labels() -> None:
    detector = model()
    record = Record({"maps", "dense_logits", "dense_labels", "image_sizes"})
    detector.losses(*batch(), record=record)
    counts = [6 * 16 * 16, 6 * 8 * 8, 6 * 4 * 4]
    assert [tuple(level.shape) for level in record["dense_logits"]] == [(3, n, CLASSES) for n in counts]
    assert record["dense_labels"].shape == (3, sum(counts))
    assert (record["dense_labels"][1] == CLASSES).all()
    assert record["image_sizes"] == [(64, 64)] * 3


def test_state_changes_only_when_it_may() -> None:
    detector = model(classification_loss=EqualizedFocalLoss(CLASSES), matcher=ATSSMatcher(9))
    images, targets = batch()
    before = detector.head.classification_loss.gradients.positive.clone()
    detector.losses(images, targets, update_state=False)
    assert torch.equal(detector.head.classification_loss.gradients.positive, before)
    detector.losses(images, targets)
    assert (detector.head.classification_loss.gradients.positive > before).any()


def test_quality_learns_the_iou_of_the_predicted_box() -> None:
    detector = model(quality="iou", matcher=ATSSMatcher(9), box_loss=GIoULoss())
    images, targets = batch(kinds="o")
    torch.nn.init.normal_(detector.head.regressor.weight, std=0.05)
    losses = detector.losses(images, targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_quality"}
    pictures, _ = detector.preprocess(images, resize=False)
    maps = detector.backbone(pictures.tensors)
    outputs = detector.head(maps)
    shapes = [torch.empty(1, 1, *m.shape[-2:]) for m in maps.values()]
    anchors = detector.head.anchor_generator(ImageList(pictures.tensors, pictures.image_sizes[:1]), shapes)[0]
    _, matched = detector.head.matcher(targets[0]["boxes"], anchors, [level.shape[1] for level in outputs.logits])
    deltas, quality = torch.cat(outputs.deltas, dim=1)[0], torch.cat(outputs.quality, dim=1)[0]
    total, count = 0.0, 0
    for n, own in enumerate(matched.tolist()):
        if own >= 0:
            box = detector.head.box_coder.decode_single(deltas[n : n + 1], anchors[n : n + 1])
            iou = float(box_iou(box, targets[0]["boxes"][own : own + 1]))
            p = float(quality[n].sigmoid())
            total -= iou * math.log(p) + (1 - iou) * math.log(1 - p)
            count += 1
    assert count > 2
    assert float(losses["loss_quality"]) == pytest.approx(total / count, rel=1e-4)
    # the target carries no gradient to the boxes
    detector.zero_grad()
    losses["loss_quality"].backward()
    assert detector.head.regressor.weight.grad is None or not detector.head.regressor.weight.grad.any()


def test_paired_iou() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.rand(2, 20, 4, generator=generator).cumsum(dim=2)).unbind()
    torch.testing.assert_close(paired_iou(first, second), box_iou(first, second).diagonal())


@pytest.mark.parametrize("quality", ["none", "iou"])
def test_detections_equal_a_loop(quality: Any) -> None:
    inference = Inference(score_threshold=0.3, nms_threshold=0.5, detections_per_image=40)
    detector = model(quality=quality, inference=inference, top_per_level=50).eval()
    torch.manual_seed(4)
    torch.nn.init.normal_(detector.head.classifier.weight, std=0.5)
    torch.nn.init.normal_(detector.head.classifier.bias, std=0.5)
    torch.nn.init.normal_(detector.head.regressor.weight, std=0.1)
    if quality == "iou":
        torch.nn.init.normal_(detector.head.quality.weight, std=0.5)
    images = [torch.rand(3, 64, 64), torch.rand(3, 80, 64)]
    got = detector.detect(images)

    pictures, _ = detector.preprocess(images, resize=True)
    maps = detector.backbone(pictures.tensors)
    outputs = detector.head(maps)
    shapes = [torch.empty(1, 1, *m.shape[-2:]) for m in maps.values()]
    anchors = detector.head.anchor_generator(ImageList(pictures.tensors, pictures.image_sizes[:1]), shapes)[0]
    for image in range(2):
        height, width = pictures.image_sizes[image]
        candidates = []
        offset = 0
        for level, logits in enumerate(outputs.logits):
            rows = []
            for n in range(logits.shape[1]):
                for c in range(CLASSES):
                    score = float(logits[image, n, c].sigmoid())
                    if quality == "iou":
                        score = math.sqrt(score * float(outputs.quality[level][image, n].sigmoid()))
                    if score > 0.3:
                        rows.append((score, n, c))
            for score, n, c in sorted(rows, reverse=True)[:50]:
                delta = outputs.deltas[level][image, n][None]
                box = detector.head.box_coder.decode_single(delta, anchors[offset + n][None])[0]
                box = torch.stack(
                    [box[0].clamp(0, width), box[1].clamp(0, height), box[2].clamp(0, width), box[3].clamp(0, height)]
                )
                if min(float(box[2] - box[0]), float(box[3] - box[1])) >= 0.01:
                    candidates.append((score, c, box))
            offset += logits.shape[1]
        kept: list[tuple[float, int, Tensor]] = []
        for score, c, box in sorted(candidates, key=lambda row: -row[0]):
            if all(o != c or float(box_iou(box[None], other[None])) <= 0.5 for _, o, other in kept):
                kept.append((score, c, box))
        assert len(kept) > 40
        kept = kept[:40]
        assert got[image]["labels"].tolist() == [c for _, c, _ in kept]
        torch.testing.assert_close(got[image]["scores"], torch.tensor([s for s, _, _ in kept]), rtol=1e-5, atol=1e-6)
        scale = torch.tensor([images[image].shape[2] / width, images[image].shape[1] / height] * 2)
        expected = torch.stack([box for _, _, box in kept]) * scale
        torch.testing.assert_close(got[image]["boxes"], expected, rtol=1e-4, atol=1e-3)


def test_nothing_above_the_threshold_is_no_detection() -> None:
    detector = model(inference=Inference(score_threshold=0.9)).eval()
    found = detector.detect([torch.rand(3, 64, 64)])[0]
    assert (found["boxes"].shape, found["scores"].shape, found["labels"].shape) == ((0, 4), (0,), (0,))


def test_centre_constraint_reaches_the_anchors() -> None:
    images, targets = batch(kinds="o")
    counts = []
    for centre in ("off", "negative"):
        record = Record({"dense_labels"})
        matcher = Matcher(0.2, 0.1, low_quality=True, centre_in_gt=centre)
        model(matcher=matcher).losses(images, targets, record=record)
        counts.append(int((record["dense_labels"] < CLASSES).sum()))
    assert counts[0] > counts[1] > 0


def test_octaves() -> None:
    assert octaves([8.0], 1) == [(8.0,)]
    assert octaves([32.0, 64.0], 3)[1] == pytest.approx((64.0, 80.635, 101.594), abs=1e-3)
