"""RetinaNet and the proposal network alone, from recipes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from longtail.build.losses import classification_loss
from longtail.build.model import build_model
from longtail.data import ClassStatistics
from longtail.losses import BalancedL1Loss, EqualizedFocalLoss, FocalLoss, GHMClassification, GHMRegression, GIoULoss
from longtail.models import ATSSMatcher, BalancedFeaturePyramid, ProposalDetector, RetinaNet
from longtail.sampling import IoUBalancedNegatives, RandomRegions
from longtail.schema import UsageError, load_recipe

TINY = ("model.backbone=tiny32", "model.neck.norm=none", "model.neck.channels=16")
STATISTICS = ClassStatistics(
    names=["a", "b", "c"],
    image_counts=np.array([40, 12, 2]),
    instance_counts=np.array([90, 20, 2]),
    num_images=60,
    num_nonempty=50,
)


def built(name: str, *overrides: str, scale: str = "tiny") -> Any:
    recipe = load_recipe(name, overrides, scale=scale)
    return build_model(recipe, recipe.stages[0], STATISTICS, pretrained=False)


def test_retinanet_at_published_settings() -> None:
    recipe = load_recipe("retinanet", ["model.backbone.norm=group", "model.backbone.weights=null"])
    assert (recipe.scale, recipe.stages[0].optimiser.lr, recipe.stages[0].schedule.epochs) == ("coco", 0.01, 12)
    model = build_model(recipe, recipe.stages[0], STATISTICS, pretrained=False)
    assert isinstance(model, RetinaNet)
    assert model.backbone.strides == (8, 16, 32, 64, 128)
    extra = model.backbone.fpn.extra_blocks
    assert (extra.p6.in_channels, extra.use_P5) == (2048, False)
    head = model.head
    assert head.anchor_generator.num_anchors_per_location() == [9] * 5
    assert [level[0] for level in head.anchor_generator.sizes] == [32, 64, 128, 256, 512]
    assert (head.matcher.high, head.matcher.low, head.matcher.low_quality) == (0.5, 0.4, True)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in head.class_tower.modules()) == 4
    loss = head.classification_loss
    assert isinstance(loss, FocalLoss)
    assert (loss.gamma, loss.alpha) == (2.0, 0.25)
    assert head.box_loss.beta == pytest.approx(1 / 9)
    assert head.box_coder.weights == (1.0, 1.0, 1.0, 1.0)


def test_levels_on_the_pyramid_instead_of_the_backbone() -> None:
    model = built("retinanet", *TINY, "model.dense.extra_levels=p5", "model.dense.anchor_sizes=[8,16,32,64,128]")
    assert model.backbone.strides == (4, 8, 16, 32, 64)
    assert (model.backbone.fpn.extra_blocks.p6.in_channels, model.backbone.fpn.extra_blocks.use_P5) == (16, True)
    maps = model.backbone(torch.rand(1, 3, 64, 64))
    assert [m.shape[-1] for m in maps.values()] == [16, 8, 4, 2, 1]
    on_body = built("retinanet", *TINY, "model.dense.extra_levels=c5", "model.dense.anchor_sizes=[8,16,32,64,128]")
    assert (on_body.backbone.fpn.extra_blocks.p6.in_channels, on_body.backbone.fpn.extra_blocks.use_P5) == (128, False)
    assert [m.shape[-1] for m in on_body.backbone(torch.rand(1, 3, 64, 64)).values()] == [16, 8, 4, 2, 1]


def test_libra_retinanet() -> None:
    model = built("libra-retinanet", *TINY)
    assert isinstance(model.backbone.balance, BalancedFeaturePyramid)
    assert model.backbone.balance.level == 1
    assert isinstance(model.head.box_loss, BalancedL1Loss)
    assert model.head.box_loss.beta == 0.11


def test_ghm() -> None:
    model = built("ghm", *TINY)
    loss, box = model.head.classification_loss, model.head.box_loss
    assert isinstance(loss, GHMClassification)
    assert (loss.density.bins, loss.density.momentum) == (30, 0.75)
    assert isinstance(box, GHMRegression)
    assert (box.mu, box.density.bins, box.density.momentum, model.head.box_weight) == (0.02, 10, 0.7, 10.0)


@pytest.mark.parametrize(("name", "loss"), [("efl", EqualizedFocalLoss), ("efl-control", FocalLoss)])
def test_efl_and_its_control(name: str, loss: type) -> None:
    model = built(name, *TINY)
    head = model.head
    assert type(head.classification_loss) is loss
    assert isinstance(head.matcher, ATSSMatcher)
    assert head.matcher.top == 18
    assert head.anchor_generator.num_anchors_per_location() == [2] * 3
    assert head.quality is not None
    assert isinstance(head.box_loss, GIoULoss)
    recipe = load_recipe(name)
    assert (recipe.scale, recipe.stages[0].schedule.epochs) == ("lvis_v1", 24)
    assert (recipe.stages[0].sampler.threshold, recipe.stages[0].sampler.rounding) == (0.001, "ceil")


@pytest.mark.parametrize(
    "loss", ["softmax", "objectness_softmax", "seesaw", "eqlv2", "group_softmax", "{type: eql, form: softmax}", "bcr"]
)
def test_losses_of_regions_are_refused_with_what_works(loss: str) -> None:
    with pytest.raises(
        UsageError, match=r"is not for the anchors of a retinanet, which works with: focal, sigmoid, efl"
    ):
        built("retinanet", *TINY, f"stages.*.classification_loss={loss}")


@pytest.mark.parametrize(
    "loss",
    [
        "focal", "sigmoid", "efl", "ghm_c", "federated", "{type: eql, form: sigmoid}",
        "{type: class_balanced, form: focal}", "{type: class_balanced, form: sigmoid}",
    ],
)  # fmt: skip
def test_losses_of_anchors_are_built(loss: str) -> None:
    model = built("retinanet", *TINY, f"stages.*.classification_loss={loss}")
    spec = load_recipe("retinanet", [f"stages.*.classification_loss={loss}"], scale="tiny").stages[0]
    assert type(model.head.classification_loss) is type(classification_loss(spec.classification_loss, STATISTICS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.*.classifier=cosine", "classifies by a convolution, which is linear; the classifier 'cosine'"),
        ("model.classifier=normed_linear", "the classifier 'normed_linear'"),
        ("stages.*.region_sampler=iou_balanced", "learns from all anchors, so the region sampler 'iou_balanced'"),
        ("stages.*.replay=[{type: object_memory, count: 3}]", "feature replay adds regions, and a retinanet has none"),
        ("model.dense.anchor_sizes=[8]", "has 1 sizes, but there are 3 levels of strides"),
        ("stages.*.proposals=cached", "looks at no proposals"),
        ("model.inference.adjust=adjust_logits", "adjust_logits needs scores made by a softmax"),
        ("model.regions.channels=8", "regions"),
    ],
)
def test_what_has_no_place_is_refused(change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        built("retinanet", *TINY, change)


def test_efl_on_regions_is_refused() -> None:
    with pytest.raises(UsageError, match="EqualizedFocalLoss is a loss for dense, query heads, not for regions"):
        built("baseline", *TINY, "stages.*.classification_loss=efl")


def test_proposal_networks() -> None:
    plain, libra = built("rpn", *TINY), built("libra-rpn", *TINY)
    assert isinstance(plain, ProposalDetector)
    assert plain.class_heads() == []
    assert plain.rpn.top_in_detect.after == 1000
    assert plain.inference.detections_per_image == 1000
    assert isinstance(plain.rpn.sampler, RandomRegions)
    assert isinstance(libra.rpn.sampler, IoUBalancedNegatives)
    assert libra.rpn.sampler.negative_iou == 0.3
    assert isinstance(libra.rpn.box_loss, BalancedL1Loss)
    assert libra.rpn.box_loss.beta == pytest.approx(1 / 9)
    assert isinstance(libra.backbone.balance, BalancedFeaturePyramid)
    with pytest.raises(UsageError, match=r"set its own sampler, model\.proposals\.region_sampler"):
        built("rpn", *TINY, "stages.*.region_sampler=iou_balanced")
    with pytest.raises(UsageError, match="looks at no proposals"):
        built("rpn", *TINY, "stages.*.proposals=only")
