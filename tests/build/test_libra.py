"""Libra R-CNN from recipes: necks and samplers are built as written, or refused with what would work."""

import numpy as np
import pytest
import torch

from longtail.build.features import balance
from longtail.build.losses import classification_loss
from longtail.build.model import build_model
from longtail.build.samplers import region_sampler
from longtail.data import ClassStatistics
from longtail.losses import BucketedReweightingLoss, LGRCrossEntropy, LGRL1Loss
from longtail.models import PAFPN, BalancedFeaturePyramid, EmbeddedGaussian
from longtail.sampling import ClassBalancedPositives, InstanceBalancedPositives, IoUBalancedNegatives, RandomRegions
from longtail.schema import UsageError, load_recipe
from longtail.schema import samplers as sampler_specs
from longtail.schema.features import Balance
from longtail.schema.losses import Bucketed

SMALL = ["scale=tiny", "model.backbone=tiny32", "model.neck.channels=8", "model.regions.channels=16",
         "model.masks.channels=[8]", "images.test_short_side=64"]  # fmt: skip


def statistics():
    return ClassStatistics(
        names=["a", "b", "c"],
        image_counts=np.array([40, 12, 2]),
        instance_counts=np.array([90, 20, 20]),
        num_images=60,
        num_nonempty=50,
    )


def built(name, *overrides):
    recipe = load_recipe(name, [*SMALL, *overrides])
    torch.manual_seed(0)
    return build_model(recipe, recipe.stages[0], statistics(), pretrained=False)


@pytest.mark.parametrize("neck", ["fpn", "pafpn"])
@pytest.mark.parametrize("refine", [None, "none", "conv", "non_local"])
def test_every_neck_trains_a_step(neck, refine):
    model = built("baseline", f"model.neck={neck}", *([f"model.neck.balance.refine={refine}"] if refine else []))
    assert isinstance(model.backbone.fpn, PAFPN) == (neck == "pafpn")
    assert (model.backbone.balance is None) == (refine is None)
    target = {"boxes": torch.tensor([[4.0, 4.0, 30.0, 40.0]]), "labels": torch.tensor([1]), "draw_seed": 5}
    losses = model.train().losses([torch.rand(3, 64, 64)], [target])
    torch.stack(list(losses.values())).sum().backward()
    own = [p for name, p in model.named_parameters() if "fpn." in name or "balance." in name]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own)


def test_options_of_the_balanced_pyramid_arrive():
    balance = built("baseline", "model.neck.balance={level: 0, num_levels: 2, out_proj: false, fused: false}")
    balance = balance.backbone.balance
    assert isinstance(balance, BalancedFeaturePyramid)
    assert isinstance(balance.refine, EmbeddedGaussian)
    assert (balance.level, balance.num_levels, balance.refine.out_proj, balance.refine.fused) == (0, 2, None, False)


@pytest.mark.parametrize(
    ("strides", "num_levels", "level"),
    [
        ((4, 8, 16, 32), None, 2),
        ((4, 8, 16, 32, 64), None, 2),
        ((4, 8, 16, 32, 64), 4, 2),
        ((8, 16, 32), None, 1),
        ((8, 16, 32, 64, 128), None, 1),
        ((4, 8, 16, 32), 2, None),
        ((8, 32), None, None),
    ],
)
def test_levels_are_integrated_at_stride_16(strides, num_levels, level):
    assert balance(Balance(num_levels=num_levels), channels=4, strides=strides).level == level
    assert balance(Balance(level=0, num_levels=num_levels), channels=4, strides=strides).level == 0


@pytest.mark.parametrize("override", ["model.neck.balance.num_levels=4", "model.neck.balance.level=3"])
def test_levels_the_backbone_does_not_have_are_refused(override):
    with pytest.raises(UsageError, match=r"gives 3; num_levels is at most 3"):
        built("baseline", override)


def test_a_change_of_the_pyramid_keeps_the_scale_and_the_balance():
    neck = load_recipe("libra-faster", ["scale=tiny", "model.neck=pafpn"]).model.neck
    assert (neck.type, neck.channels, neck.norm, neck.balance.refine) == ("pafpn", 64, "group", "non_local")
    assert load_recipe("libra-faster", ["model.neck.balance=null"]).model.neck.balance is None


@pytest.mark.parametrize(
    ("positives", "kind"),
    [
        ("random", IoUBalancedNegatives),
        ("per_object", InstanceBalancedPositives),
        ("per_class", ClassBalancedPositives),
    ],
)
def test_positives_and_negatives_combine(positives, kind):
    spec = sampler_specs.IoUBalanced(
        count=20, positives=positives, negatives_per_positive=5, num_bins=4, interval="max_iou",
        zero_iou="last_resort", fill="uniform", floor_iou=0.1, floor_fraction=0.2,
    )  # fmt: skip
    sampler = region_sampler(spec, negative_iou=0.4)
    assert type(sampler) is kind
    assert isinstance(sampler, RandomRegions)
    negatives = sampler if positives == "random" else sampler.negative_sampler
    found = {name: getattr(negatives, name) for name in spec.model_dump() if hasattr(negatives, name)} | {
        "positives": positives, "type": "iou_balanced"
    }  # fmt: skip
    assert found == spec.model_dump()
    assert (sampler.count, sampler.negatives_per_positive, negatives.negative_iou) == (20, 5, 0.4)


def test_a_floor_above_the_negatives_is_refused():
    with pytest.raises(UsageError, match=r"negative below 0\.3"):
        region_sampler(sampler_specs.IoUBalanced(floor_iou=0.3), negative_iou=0.3)


def test_buckets_follow_the_count_that_is_named():
    images = classification_loss(Bucketed(num_buckets=3), statistics())
    instances = classification_loss(Bucketed(num_buckets=3, count="instances"), statistics())
    assert isinstance(images, BucketedReweightingLoss)
    assert images.bucket.tolist() == [2, 1, 0]
    assert instances.bucket.tolist() == [2, 0, 0]


def test_the_recipes_are_the_published_settings():
    faster = load_recipe("libra-faster")
    assert (faster.scale, faster.model.type) == ("coco", "faster_rcnn")
    assert (faster.stages[0].schedule.epochs, faster.stages[0].optimiser.lr) == (12, 0.02)
    assert (faster.stages[0].region_sampler.count, faster.stages[0].region_sampler.num_bins) == (512, 3)
    rpn = faster.model.proposals.region_sampler
    assert (rpn.count, rpn.positive_fraction, rpn.negatives_per_positive) == (256, 0.5, 5)
    assert (faster.model.inference.score_threshold, faster.model.inference.detections_per_image) == (0.05, 100)
    lvis = load_recipe("libra-lvis")
    assert (lvis.scale, lvis.model.type, lvis.stages[0].schedule.epochs) == ("lvis_v1-1x", "mask_rcnn", 12)
    assert lvis.stages[0].sampler.threshold == 0.001
    assert (lvis.stages[0].region_sampler.positives, lvis.stages[0].region_sampler.num_bins) == ("per_class", 3)
    assert (lvis.stages[0].classification_loss.type, lvis.model.inference.score_threshold) == ("bcr", 0.001)
    model = built("libra-faster")
    assert isinstance(model.box.classification_loss, LGRCrossEntropy)
    assert isinstance(model.box.box_loss, LGRL1Loss)
