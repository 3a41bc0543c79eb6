"""Our Mask R-CNN with plain parts against torchvision's, same weights, same sampled regions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from longtail.models.backbones import resnet_fpn
from longtail.models.postprocess import Inference, paste_masks
from longtail.models.preprocess import ImageBatcher
from longtail.models.rcnn import RCNN, faster_rcnn, mask_rcnn, proposal_network
from longtail.models.torchvision_weights import from_torchvision
from longtail.sampling.regions import RegionSampler
from longtail.schema.errors import DataError

CLASSES = 12
SHORT, LONG = 144, 240
TOLERANCE = 1e-5


class RecordingSampler(BalancedPositiveNegativeSampler):
    """Torchvision's sampler, which remembers what it drew."""

    def __init__(self, count: int, positive_fraction: float) -> None:
        super().__init__(count, positive_fraction)
        self.drawn: list[tuple[Tensor, Tensor]] = []

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = super().__call__(matched_idxs)
        self.drawn += [(p.nonzero()[:, 0], n.nonzero()[:, 0]) for p, n in zip(positive, negative, strict=True)]
        return positive, negative


class InjectedSampler(RegionSampler):
    """Repeats what another sampler drew, after a check that it is asked the same question."""

    def __init__(self, source: RecordingSampler) -> None:
        super().__init__(source.batch_size_per_image, source.positive_fraction)
        self.source = source
        self.answers: Iterator[tuple[Tensor, Tensor]] = iter(())

    def __call__(self, iou, matched_gt, gt_labels, generator, loss_of=None):  # type: ignore[no-untyped-def]
        positive, negative = next(self.answers)
        assert (matched_gt[positive] >= 0).all()
        assert (matched_gt[negative] == -1).all()
        return positive, negative


def randomise(model: nn.Module) -> None:
    """Weights with which losses are ordinary and there are detections of several classes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        predictor = model.roi_heads.box_predictor
        predictor.cls_score.weight.normal_(0, 0.25, generator=generator)
        predictor.cls_score.bias.normal_(0, 0.5, generator=generator)
        model.rpn.head.cls_logits.weight.normal_(0, 0.02, generator=generator)
        if model.roi_heads.mask_predictor is not None:
            model.roi_heads.mask_predictor.mask_fcn_logits.weight.normal_(0, 0.02, generator=generator)
        # batch norms, which torchvision uses where there are no weights, get statistics that fit
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        model.train().backbone(torch.randn(2, 3, SHORT, SHORT, generator=generator))
        for norm in norms:
            norm.momentum = 0.1


def plain_pair(build=maskrcnn_resnet50_fpn, ours=mask_rcnn) -> tuple[nn.Module, RCNN]:
    torch.manual_seed(0)
    theirs = build(weights=None, weights_backbone=None, num_classes=CLASSES + 1, min_size=SHORT, max_size=LONG)
    randomise(theirs)
    rpn_sampler, roi_sampler = RecordingSampler(256, 0.5), RecordingSampler(512, 0.25)
    theirs.rpn.fg_bg_sampler = rpn_sampler
    theirs.roi_heads.fg_bg_sampler = roi_sampler
    # as here the loader does, the pictures of a training step already have their size
    theirs.transform._skip_resize = True
    backbone = resnet_fpn("resnet50", weights=None, norm="batch", trainable_layers=5)
    model = ours(
        backbone,
        num_classes=CLASSES,
        region_sampler=InjectedSampler(roi_sampler),
        proposal=proposal_network(backbone, sampler=InjectedSampler(rpn_sampler)),
        preprocess=ImageBatcher(short_side=SHORT, long_side=LONG),
        inference=Inference(score_threshold=0.05, detections_per_image=100, pre_nms_cap=None),
    )
    model.load_state_dict(from_torchvision(theirs.state_dict(), CLASSES))
    return theirs, model


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, RCNN]:
    return plain_pair()


def batch(kinds: str, seed: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Pictures of different sizes; ``o`` = with objects, ``-`` = without."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for index, kind in enumerate(kinds):
        height, width = 128 + 16 * index, 160 - 24 * index
        images.append(torch.rand(3, height, width, generator=generator))
        count = 5 if kind == "o" else 0
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([width * 0.5, height * 0.5])
        extent = 12 + torch.rand(count, 2, generator=generator) * torch.tensor([width * 0.4, height * 0.4])
        boxes = torch.cat([corner, corner + extent], dim=1)
        masks = torch.zeros(count, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1 : (y1 + 2 * y2) // 3, x1:x2] = 1
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return images, targets


def losses_of_both(
    theirs: nn.Module, model: RCNN, images: list[Tensor], targets: list[dict[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    theirs.train()
    model.train()
    samplers = (theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler)
    for sampler in samplers:
        sampler.drawn.clear()
    torch.manual_seed(1)
    expected = theirs(images, [{**target, "labels": target["labels"] + 1} for target in targets])
    model.rpn.sampler.answers = iter(list(samplers[0].drawn))
    model.box.sampler.answers = iter(list(samplers[1].drawn))
    return expected, model.losses(images, targets)


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize("kinds", ["oo", "o-", "--"])
def test_losses_equal_torchvision(pair: tuple[nn.Module, RCNN], kinds: str) -> None:
    images, targets = batch(kinds, seed=11)
    expected, got = losses_of_both(*pair, images, targets)
    assert set(got) == set(expected)
    for name, value in expected.items():
        if value.abs() == 0:
            assert got[name] == 0, name
        else:
            assert relative_difference(got[name], value) < TOLERANCE, name
    if "o" in kinds:
        assert all(value > 0 for value in got.values())


def test_gradients_equal_torchvision(pair: tuple[nn.Module, RCNN]) -> None:
    theirs, model = pair
    images, targets = batch("o-", seed=12)
    expected, got = losses_of_both(theirs, model, images, targets)
    theirs.zero_grad()
    model.zero_grad()
    sum(expected.values()).backward()
    sum(got.values()).backward()
    gradients = {name: value.grad for name, value in theirs.named_parameters() if value.grad is not None}
    # what has no gradient there  (unused parts) or is dropped by the map (background rows) has none here
    converted = from_torchvision(gradients, CLASSES)
    own = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert set(own) == set(converted)
    for name, value in converted.items():
        # float32 sums of different order: relative to the largest entry
        assert relative_difference(own[name], value) < 1e-4, name


def test_detections_equal_torchvision(pair: tuple[nn.Module, RCNN]) -> None:
    theirs, model = pair
    theirs.eval()
    model.eval()
    images, _ = batch("oo", seed=13)
    with torch.no_grad():
        expected = theirs(images)
    got = model.detect(images)
    for mine, reference, image in zip(got, expected, images, strict=True):
        assert len(mine["boxes"]) == len(reference["boxes"]) > 20
        assert len(mine["labels"].unique()) > 2
        torch.testing.assert_close(mine["labels"], reference["labels"] - 1)
        assert relative_difference(mine["scores"], reference["scores"]) < TOLERANCE
        assert relative_difference(mine["boxes"], reference["boxes"]) < TOLERANCE
        pasted = paste_masks(mine["masks"], mine["boxes"], image.shape[-2:])
        differing = (pasted != (reference["masks"][:, 0] >= 0.5)).float().mean()
        assert pasted.any()
        assert differing < 1e-4


def test_faster_rcnn_equals_torchvision_too() -> None:
    theirs, model = plain_pair(fasterrcnn_resnet50_fpn, faster_rcnn)
    images, targets = batch("oo", seed=14)
    for target in targets:
        del target["masks"]
    expected, got = losses_of_both(theirs, model, images, targets)
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert relative_difference(got[name], value) < TOLERANCE, name


def test_weights_of_another_number_of_classes_are_refused(pair: tuple[nn.Module, RCNN]) -> None:
    theirs, _ = pair
    with pytest.raises(DataError, match=r"cls_score.*13 rows and should have 21"):
        from_torchvision(theirs.state_dict(), 20)
    with pytest.raises(DataError, match="belongs to no part"):
        from_torchvision({"head.weight": torch.zeros(1)}, 20)
