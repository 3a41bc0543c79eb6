"""Our RetinaNet with plain parts against torchvision's, same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.ops import box_iou

from longtail.losses import L1Loss
from longtail.models import ImageBatcher, Inference, RetinaNet, resnet_fpn, retinanet, retinanet_from_torchvision
from longtail.models.torchvision_weights import retinanet_classes
from longtail.schema.errors import DataError

CLASSES = 7
SHORT, LONG = 128, 192
TOLERANCE = 1e-5
SIZES = [(x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)]


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, RetinaNet]:
    torch.manual_seed(0)
    theirs = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, min_size=SHORT, max_size=LONG
    )
    theirs.transform._skip_resize = True
    generator = torch.Generator().manual_seed(3)
    last = theirs.head.classification_head.cls_logits
    with torch.no_grad():
        last.weight.normal_(0, 0.05, generator=generator)
        last.bias.normal_(-2, 1, generator=generator)
        # its class 0 stands for the background: no object has it, and ours has no such output
        last.weight.view(9, CLASSES + 1, -1)[:, 0] = 0
        last.bias.view(9, CLASSES + 1)[:, 0] = -60
        theirs.head.regression_head.bbox_reg.weight.normal_(0, 0.02, generator=generator)
        norms = [module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        theirs.train().backbone(torch.randn(2, 3, SHORT, SHORT, generator=generator))
        for norm in norms:
            norm.momentum = 0.0  # no step of a test changes what the next one sees
    backbone = resnet_fpn(
        "resnet50", weights=None, norm="batch", trainable_layers=5, returned_layers=(2, 3, 4), extra_level="p6p7"
    )
    model = retinanet(
        backbone,
        num_classes=CLASSES,
        box_loss=L1Loss(),
        anchor_sizes=SIZES,
        preprocess=ImageBatcher(short_side=SHORT, long_side=LONG),
        inference=Inference(score_threshold=0.05, detections_per_image=10_000),
    )
    assert retinanet_classes(theirs.state_dict()) == CLASSES
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    model.load_state_dict(retinanet_from_torchvision(theirs.state_dict(), CLASSES))
    return theirs, model


def picture(height: int, width: int, count: int, seed: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width * 0.5, height * 0.5])
    extent = 16 + torch.rand(count, 2, generator=generator) * torch.tensor([width * 0.4, height * 0.4])
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    target = {"boxes": torch.cat([corner, corner + extent], dim=1), "labels": labels}
    return [torch.rand(3, height, width, generator=generator)], [target]


def shifted(target: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**target, "labels": target["labels"] + 1}


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize(("height", "width", "count"), [(128, 160, 5), (144, 130, 1), (128, 128, 0)])
def test_losses_and_gradients_equal_torchvision(
    pair: tuple[nn.Module, RetinaNet], height: int, width: int, count: int
) -> None:
    theirs, model = pair
    images, targets = picture(height, width, count, seed=count)
    theirs.train().zero_grad()
    model.train().zero_grad()
    expected = theirs(images, [shifted(target) for target in targets])
    got = model.losses(images, targets)
    assert relative_difference(got["loss_classifier"], expected["classification"]) < TOLERANCE
    assert relative_difference(got["loss_box_reg"], expected["bbox_regression"]) < TOLERANCE
    assert (got["loss_box_reg"] > 0) == (count > 0)
    sum(expected.values()).backward()
    sum(got.values()).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    converted = retinanet_from_torchvision(gradients, CLASSES)
    own = {name: p.grad for name, p in model.named_parameters()}
    assert set(own) == set(converted)
    for name, value in converted.items():
        assert relative_difference(own[name], value) < 1e-4, name


def test_a_batch_divides_by_the_positives_of_all_its_pictures(pair: tuple[nn.Module, RetinaNet]) -> None:
    """Torchvision averages over pictures instead; with the statistics fixed, its pictures alone give ours together."""
    theirs, model = pair
    first, second = picture(128, 160, 5, seed=1), picture(128, 160, 1, seed=2)
    theirs.eval()
    model.eval()
    sums = {"classification": 0.0, "bbox_regression": 0.0}
    positives = 0
    for images, targets in (first, second):
        batch, scaled = theirs.transform(images, [shifted(target) for target in targets])
        maps = list(theirs.backbone(batch.tensors).values())
        anchors = theirs.anchor_generator(batch, maps)
        found = theirs.compute_loss(scaled, theirs.head(maps), anchors)
        matched = theirs.proposal_matcher(box_iou(scaled[0]["boxes"], anchors[0]))
        own = int((matched >= 0).sum())
        positives += own
        for name, value in found.items():
            sums[name] += float(value) * own
    got = model.losses([*first[0], *second[0]], [*first[1], *second[1]])
    assert float(got["loss_classifier"]) == pytest.approx(sums["classification"] / positives, rel=1e-4)
    assert float(got["loss_box_reg"]) == pytest.approx(sums["bbox_regression"] / positives, rel=1e-4)


def test_detections_equal_torchvision(pair: tuple[nn.Module, RetinaNet]) -> None:
    """All of them: torchvision also returns boxes without area, from anchors outside of the picture, which are no
    detections here."""
    theirs, model = pair
    theirs.detections_per_img = 10_000
    theirs.eval()
    model.eval()
    images = [picture(128, 160, 0, seed=5)[0][0], picture(144, 132, 0, seed=6)[0][0]]
    with torch.no_grad():
        expected = theirs(images)
    got = model.detect(images)
    for mine, found in zip(got, expected, strict=True):
        real = ((found["boxes"][:, 2:] - found["boxes"][:, :2]) >= 0.01).all(dim=1)
        reference = {name: values[real] for name, values in found.items()}
        assert len(mine["boxes"]) == len(reference["boxes"]) > 100
        assert len(mine["labels"].unique()) > 2
        torch.testing.assert_close(mine["labels"], reference["labels"] - 1)
        assert relative_difference(mine["scores"], reference["scores"]) < TOLERANCE
        assert relative_difference(mine["boxes"], reference["boxes"]) < TOLERANCE


def test_other_weights_are_refused(pair: tuple[nn.Module, RetinaNet]) -> None:
    state = pair[0].state_dict()
    with pytest.raises(DataError, match="72 rows and should have 81"):
        retinanet_from_torchvision(state, CLASSES + 1)
    with pytest.raises(DataError, match=r"'stem.weight' belongs to no part"):
        retinanet_from_torchvision({**state, "stem.weight": torch.zeros(1)}, CLASSES)
    assert retinanet_classes({"fc.weight": torch.zeros(1)}) is None
