"""Proposals that are given to a detector, and the network that makes them, against the detector that does both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longtail.models import (
    RCNN,
    CachedProposals,
    ImageBatcher,
    Inference,
    Proposer,
    TopN,
    cascade_rcnn,
    faster_rcnn,
    proposal_network,
    tiny32,
)
from longtail.models.proposed import ProposedDetector
from longtail.sampling.random_regions import RandomRegions
from longtail.schema import UsageError

C = 3


def detector(build: Any = faster_rcnn, *, resize_in_losses: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    backbone = tiny32(width=8, fpn_channels=16)
    network = proposal_network(
        backbone, sampler=RandomRegions(16, 0.5), top_in_losses=TopN(60, 40), top_in_detect=TopN(60, 40)
    )
    own: dict[str, Any] = {
        "num_classes": C,
        "embedding_size": 16,
        "proposal": network,
        "preprocess": ImageBatcher(
            backbone.mean, backbone.std, short_side=64, long_side=96, resize_in_losses=resize_in_losses
        ),
        "inference": Inference(score_threshold=0.01, detections_per_image=20),
    }
    return build(backbone, **{**own, **options})


def batch() -> tuple[list[Tensor], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 70, 90, generator=generator), torch.rand(3, 64, 80, generator=generator)]
    boxes = torch.tensor([[5.0, 8, 40, 50], [30, 20, 60, 60]])
    return images, [{"boxes": boxes, "labels": torch.tensor([0, 2]), "draw_seed": seed} for seed in (1, 2)]


@pytest.mark.parametrize("build", [faster_rcnn, cascade_rcnn])
def test_a_detector_on_given_proposals_finds_what_the_one_that_makes_them_does(build: Any) -> None:
    whole = detector(build).eval()
    given = detector(build, proposal=CachedProposals()).eval()
    given.load_state_dict({name: v for name, v in whole.state_dict().items() if not name.startswith("rpn.")})
    images, _ = batch()
    made = whole.propose(images)
    assert [len(boxes) for boxes, _ in made] == [40, 40]
    for (boxes, scores), image in zip(made, images, strict=True):
        assert (scores[:-1] >= scores[1:]).all()
        assert boxes[:, 2].max() <= image.shape[-1]
        assert boxes[:, 3].max() <= image.shape[-2]
    proposer = Proposer(preprocess=whole.preprocess, backbone=whole.backbone, rpn=whole.rpn).eval()
    together = ProposedDetector(given, proposer, top=TopN(60, 40))
    together.inference = Inference(score_threshold=0.01, detections_per_image=7)
    assert given.inference.detections_per_image == 7
    whole.inference = given.inference
    wanted = whole.detect(images)
    for found in (given.detect(images, proposals=[boxes for boxes, _ in made]), together.detect(images)):
        for own, expected in zip(found, wanted, strict=True):
            assert len(expected["boxes"]) == 7
            assert torch.equal(own["labels"], expected["labels"])
            torch.testing.assert_close(own["scores"], expected["scores"])
            torch.testing.assert_close(own["boxes"], expected["boxes"])
    fewer = ProposedDetector(given, proposer, top=TopN(60, 3)).detect(images)
    three = whole.detect(images, proposals=[boxes[:3] for boxes, _ in made])
    torch.testing.assert_close(fewer[0]["boxes"], three[0]["boxes"])


def test_the_network_alone_learns_as_within_the_detector() -> None:
    whole: RCNN = detector()
    alone = Proposer(preprocess=whole.preprocess, backbone=whole.backbone, rpn=whole.rpn)
    losses, own = whole.losses(*batch()), alone.losses(*batch())
    assert set(own) == {"loss_objectness", "loss_rpn_box_reg"}
    assert all(torch.equal(value, losses[name]) for name, value in own.items())
    assert alone.class_heads() == []
    assert set(alone.state_dict()) < set(whole.state_dict())


@pytest.mark.parametrize("resize", [False, True])
def test_losses_on_given_proposals(resize: bool) -> None:
    """All candidates are taken, so that the draws of the network's own sampler make no difference."""
    everything = RandomRegions(1000, 1.0)
    whole = detector(region_sampler=everything, resize_in_losses=resize)
    given = detector(region_sampler=everything, resize_in_losses=resize, proposal=CachedProposals())
    given.load_state_dict({name: v for name, v in whole.state_dict().items() if not name.startswith("rpn.")})
    images, targets = batch()
    scale = []
    for model in (whole, given):
        model.preprocess.short_side, model.preprocess.long_side = 32, 200
    made = whole.preprocess(images, resize=resize)[0]
    boxes = whole.rpn.losses(made, whole.backbone(made.tensors), whole.preprocess(images, targets, resize=resize)[1])
    for own, image, size in zip(boxes[0].boxes, images, made.image_sizes, strict=True):
        factor = torch.tensor([image.shape[-1] / size[1], image.shape[-2] / size[0]]).repeat(2)
        scale.append(own * factor)
    assert (made.image_sizes[0] == (70, 90)) != resize
    wanted = whole.losses(images, targets)
    found = given.losses(images, [{**t, "proposals": own} for t, own in zip(targets, scale, strict=True)])
    assert set(found) == {"loss_classifier", "loss_box_reg"}
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name])


def test_pictures_without_proposals_are_refused() -> None:
    given = detector(proposal=CachedProposals())
    images, targets = batch()
    with pytest.raises(UsageError, match="proposals=cached"):
        given.losses(images, targets)
    with pytest.raises(UsageError, match="detect\\(images, proposals"):
        given.detect(images)
    with pytest.raises(UsageError, match="table"):
        given.propose(images)
