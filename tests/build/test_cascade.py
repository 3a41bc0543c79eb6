"""From recipes to cascades: every loss, box loss, sampler, neck, head and replay builds and trains, or is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from longtail.build.model import build_model
from longtail.data import ClassStatistics
from longtail.models import CascadeRCNN, DeformableConv2d
from longtail.models.base import TrainableModel
from longtail.replay import VirtualFeatures
from longtail.schema import UsageError, load_recipe

SMALL = [
    "scale=tiny",
    "model.backbone=tiny32",
    "model.neck.channels=8",
    "model.regions.channels=16",
    "model.masks.channels=[8]",
    "images.test_short_side=64",
    "model.inference.detections_per_image=5",
]
LOSSES = [
    "softmax", "objectness_softmax", "sigmoid", "{type: focal, form: softmax}", "balanced_softmax", "class_balanced",
    "group_softmax", "logit_adjusted", "acsl", "drop_loss", "eql", "eqlv2", "federated", "seesaw", "lgr_ce",
    "{type: bcr, num_buckets: 3, lgr: true}",
]  # fmt: skip
BOX_LOSSES = ["smooth_l1", "l1", "giou", "ghm_r", "lgr_l1", "{type: balanced_l1, beta: 0.5}"]
REGIONS = [
    "{type: random, count: 16}", "{type: iou_balanced, count: 16, positives: per_class}",
    "{type: hard_examples, count: 16}",
]  # fmt: skip
NECKS = ["fpn", "pafpn", "{type: fpn, balance: bfp}"]
HEADS = ["mlp", "{type: conv, layers: 1, channels: 8}"]


def statistics() -> ClassStatistics:
    return ClassStatistics(
        names=["a", "b", "c"],
        image_counts=np.array([40, 12, 2]),
        instance_counts=np.array([90, 20, 2]),
        num_images=60,
        num_nonempty=50,
    )


def built(name: str, *overrides: str) -> TrainableModel:
    recipe = load_recipe(name, [*SMALL, *overrides])
    torch.manual_seed(0)
    return build_model(recipe, recipe.stages[0], statistics(), pretrained=False)


def pairs() -> Iterator[tuple[str, ...]]:
    others = zip(cycle(BOX_LOSSES), cycle(REGIONS), cycle(NECKS[::-1]), cycle(HEADS), strict=False)
    for number, (loss, other) in enumerate(zip(LOSSES, others, strict=False)):
        yield loss, *other, ("cascade_rcnn", "cascade_mask_rcnn")[number // 2 % 2]


@pytest.mark.parametrize(("loss", "box", "regions", "neck", "head", "detector"), pairs())
def test_two_steps_and_detections(loss: str, box: str, regions: str, neck: str, head: str, detector: str) -> None:
    model = built(
        "baseline",
        f"model={detector}",
        f"stages.*.classification_loss={loss}",
        f"stages.*.box_loss={box}",
        f"stages.*.region_sampler={regions}",
        f"model.neck={neck}",
        f"model.regions.head={head}",
        "stages.*.replay=[{type: object_memory, count: 3, max_images: 30}]",
    )
    assert isinstance(model, CascadeRCNN)
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[:, 12:38, 22:28] = 1
    target = {"boxes": boxes, "labels": torch.tensor([0, 2]), "masks": masks, "draw_seed": 5}
    empty = {"boxes": boxes[:0], "labels": target["labels"][:0], "masks": masks[:0], "draw_seed": 6}  # type: ignore[index]
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    for _ in range(2):
        losses = model.losses(images, [target, empty])
        total = torch.stack(list(losses.values())).sum()
        assert torch.isfinite(total)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    for stage in model.stages:
        gradients = [p.grad for p in stage.classifier.parameters() if p.requires_grad]
        assert all(g is not None and g.isfinite().all() and g.any() for g in gradients)
    model.eval()
    assert all(("masks" in found) == (detector == "cascade_mask_rcnn") for found in model.detect(images))
    assert all(found["scores"].isfinite().all() for found in model.detect(images))


def test_options_of_the_stages_arrive() -> None:
    first = "{iou: 0.4, loss_weight: 2, box_weights: [1, 1, 1, 1]}"
    second = "{iou: 0.8, loss_weight: 3, box_weights: [2, 2, 3, 3]}"
    model = built(
        "baseline",
        "model=cascade_mask_rcnn",
        f"model.regions.stages=[{first}, {second}]",
        "model.regions.centre_in_gt=negative",
        "stages.*.region_sampler=iou_balanced",
        "stages.*.box_weight=5",
        "stages.*.classification_loss={type: softmax, loss_weight: 7}",
        "stages.*.mask_weight=11",
    )
    assert isinstance(model, CascadeRCNN)
    found: list[Any] = [
        (s.matcher.high, s.matcher.low, s.matcher.centre_in_gt, s.sampler.negative_iou, s.box_coder.weights,
         s.classification_weight, s.box_weight, b.weight)
        for s, b in zip(model.stages, model.branches, strict=True)
    ]  # fmt: skip
    assert found == [
        (0.4, 0.4, "negative", 0.4, (1, 1, 1, 1), 14, 10, 22),
        (0.8, 0.8, "negative", 0.8, (2, 2, 3, 3), 21, 15, 33),
    ]


def test_the_published_cascade() -> None:
    model = load_recipe("cascade").model
    assert model.type == "cascade_mask_rcnn"
    assert [(s.iou, s.loss_weight, s.box_weights) for s in model.regions.stages] == [
        (0.5, 1, (10, 10, 5, 5)), (0.6, 0.5, (20, 20, 10, 10)), (0.7, 0.25, (30, 30, 15, 15))
    ]  # fmt: skip


@pytest.mark.parametrize(("stages", "drawing"), [("all", [0, 1, 2]), ([0], [0]), ([2, 1], [1, 2])])
def test_virtual_features_are_drawn_in_the_named_stages_only(stages: object, drawing: list[int]) -> None:
    """The others collect moments and follow the probabilities."""
    part = {"type": "virtual_features", "scale": 1000, "warmup_images": 0, "stages": stages}
    replay = json.dumps([{"type": "object_memory"}, part])
    model = built("cascade", "model=cascade_rcnn", f"stages.*.replay={replay}").train()
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    target = {"boxes": boxes, "labels": torch.tensor([0, 2]), "draw_seed": 3}
    losses = model.losses([torch.rand(3, 64, 64)] * 2, [target] * 2)
    assert [name for name in losses if name.startswith("loss_replay")] == [f"loss_replay_{n}" for n in drawing]
    own = [part for part in model.modules() if isinstance(part, VirtualFeatures)]
    assert len(own) == 3
    assert all(int(part.steps) == 1 and part.moments.seen.any() for part in own)


def test_stages_that_a_model_does_not_have_are_refused() -> None:
    part = "stages.*.replay=[{type: virtual_features, stages: [0, 3]}]"
    with pytest.raises(UsageError, match=r"has stages \[0, 3\], but the model's are \[0, 1, 2\]; use some of these"):
        built("cascade", part)
    with pytest.raises(UsageError, match=r"but the model's are \[0\]; use some of these"):
        built("baseline", "model=faster_rcnn", part)


def test_what_does_not_go_together_is_refused_on_a_cascade_too() -> None:
    with pytest.raises(UsageError, match="classifier"):
        built("baseline", "model=cascade_rcnn", "stages.*.classification_loss=ldam")


def test_the_strongest_libra_is_built_of_its_parts() -> None:
    recipe = load_recipe("libra-x101", ["model.backbone.name=resnet18", "model.backbone.weights=null"])
    spec = load_recipe("libra-x101").model.backbone
    assert (spec.name, spec.norm, spec.trainable_layers) == ("resnext101_64x4d", "frozen_batch", 3)
    assert (recipe.stages[0].schedule.epochs, recipe.images.short_sides[0]) == (24, 640)
    model = build_model(recipe, recipe.stages[0], statistics(), pretrained=False)
    deformable = [name for name, module in model.named_modules() if isinstance(module, DeformableConv2d)]
    assert {name.split(".")[2] for name in deformable} == {"layer2", "layer3", "layer4"}
    assert model.rpn.matcher.centre_in_gt == "negative"
    widths = [module.num_channels for module in model.box.head.modules() if isinstance(module, nn.GroupNorm)]
    assert widths == [256] * 4


def test_libra_on_voc_has_its_scale_and_protocol() -> None:
    recipe = load_recipe("libra-voc")
    assert (recipe.images.short_sides, recipe.images.long_side, recipe.evaluation.protocol) == ((600,), 1000, "voc")
    stage = recipe.stages[0]
    assert (stage.optimiser.lr, stage.schedule.epochs, stage.schedule.milestones) == (0.01, 12, (0.75,))
    assert (stage.box_loss.type, stage.region_sampler.count) == ("lgr_l1", 512)
