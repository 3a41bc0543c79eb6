"""From recipes to detectors: every pairing builds, trains a step, or is refused with what would work."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from longtail.build.detector import classifier as classifier_factory
from longtail.build.losses import box_loss, classification_loss
from longtail.build.model import adjust, build_model
from longtail.build.replay import replay_parts
from longtail.build.samplers import image_sampler, region_sampler
from longtail.data import AnnotationTable, ClassStatistics
from longtail.data.scenes import GeneratedSet
from longtail.models import ResamplingNMS
from longtail.schema import UsageError, load_recipe
from longtail.schema import losses as specs
from longtail.schema.classifiers import ClassifierSpec
from longtail.schema.losses import BoxLossSpec, ClassificationLossSpec
from longtail.schema.replay import ReplaySpec
from longtail.schema.samplers import RegionSamplerSpec, SamplerSpec

SMALL = [
    "scale=tiny",
    "model.backbone=tiny32",
    "model.neck.channels=8",
    "model.regions.channels=16",
    "model.masks.channels=[8]",
    "images.test_short_side=64",
    "model.inference.detections_per_image=5",
]
LOSSES = ["softmax", "objectness_softmax", "sigmoid", "focal", "{type: focal, form: softmax}",
          "{type: sigmoid, background_logit: true}",
          "balanced_softmax", "{type: balanced_softmax, form: sigmoid}", "class_balanced",
          "{type: class_balanced, form: focal}", "group_softmax", "logit_adjusted",
          "acsl", "drop_loss", "eql", "{type: eql, form: softmax}", "eqlv2", "federated", "seesaw",
          "lgr_ce", "{type: bcr, num_buckets: 3, lgr: true}"]  # fmt: skip
CLASSIFIERS = ["linear", "cosine", "normed_linear", "lws"]
BOX_LOSSES = ["smooth_l1", "l1", "giou", "ghm_r", "lgr_l1", "{type: balanced_l1, beta: 0.5}"]
REGIONS = ["{type: random, count: 16}", "{type: iou_balanced, count: 16}", "{type: hard_examples, count: 16}"]
REPLAY = [
    "[]",
    "[{type: object_memory, count: 3, max_images: 30}, interpolated_features, transferred_features, "
    "{type: exchanged_moments, probability: 1}]",
]


def statistics() -> ClassStatistics:
    return ClassStatistics(
        names=["a", "b", "c"],
        image_counts=np.array([40, 12, 2]),
        instance_counts=np.array([90, 20, 2]),
        num_images=60,
        num_nonempty=50,
    )


def pairs() -> list[tuple[str, str, str, str, str, str]]:
    """Every pair of choices occurs: all of losses x classifiers, the rest dealt round so that pairs are covered."""
    chosen = []
    for number, (loss, classifier) in enumerate(itertools.product(LOSSES, CLASSIFIERS)):
        for turn in range(2):
            k = number + turn
            chosen.append(
                (loss, classifier, BOX_LOSSES[(number + turn) % len(BOX_LOSSES)],
                 REGIONS[(k // 3 + turn) % len(REGIONS)], REPLAY[(k + turn) % 2],
                 ("faster_rcnn", "mask_rcnn")[(k // 2) % 2])
            )  # fmt: skip
    return chosen


@pytest.mark.parametrize(("loss", "classifier", "box", "regions", "replay", "detector"), pairs())
def test_combinations_train_a_step_and_detect(
    loss: str, classifier: str, box: str, regions: str, replay: str, detector: str
) -> None:
    recipe = load_recipe(
        "baseline",
        [
            *SMALL,
            f"model={detector}",
            f"stages.*.classification_loss={loss}",
            f"model.classifier={classifier}",
            f"stages.*.box_loss={box}",
            f"stages.*.region_sampler={regions}",
            f"stages.*.replay={replay}",
        ],
    )
    torch.manual_seed(0)
    model = build_model(recipe, recipe.stages[0], statistics(), pretrained=False)
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[:, 12:38, 22:28] = 1
    target = {"boxes": boxes, "labels": torch.tensor([0, 2]), "masks": masks, "draw_seed": 5}
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64),
             "masks": torch.zeros(0, 64, 64, dtype=torch.uint8), "draw_seed": 6}  # fmt: skip
    model.train()
    losses = model.losses(images, [target, empty])
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    gradients = [p.grad for p in model.box.classifier.parameters() if p.requires_grad]
    assert gradients
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    model.eval()
    for found in model.detect(images):
        assert torch.isfinite(found["scores"]).all()
        assert len(found["boxes"]) <= 5
        assert ("masks" in found) == (detector == "mask_rcnn")


def members(annotation: object) -> set[type]:
    from longtail.schema.explain import models_in

    return set(models_in(annotation))


def test_every_part_of_the_schema_is_built(smoke_set: GeneratedSet) -> None:
    """A part that is in the schema but not in the tables would give None here."""
    table = AnnotationTable.from_coco(smoke_set.train)
    own = table.statistics()
    for spec in members(SamplerSpec):
        assert len(image_sampler(spec(), table, seed=0).epoch(0))
    for spec in members(RegionSamplerSpec):
        assert region_sampler(spec(), negative_iou=0.5).count == 512
    for spec in members(ClassificationLossSpec):
        assert classification_loss(spec(), own).num_classes == 12
    for spec in members(BoxLossSpec):
        assert box_loss(spec()).space in ("deltas", "boxes")
    for spec in members(ReplaySpec):
        assert len(replay_parts([spec()], own, feature_size=16)) == 1
    for spec in members(ClassifierSpec):
        assert classifier_factory(spec())(8, 5).num_logits == 5


def test_a_pair_that_does_not_work_names_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from longtail.losses import SoftmaxCrossEntropy

    monkeypatch.setattr(SoftmaxCrossEntropy, "classifiers", frozenset({"cosine"}))
    recipe = load_recipe("baseline", [*SMALL, "stages.*.classification_loss=softmax"])
    with pytest.raises(UsageError, match="it works with: cosine"):
        build_model(recipe, recipe.stages[0], statistics(), pretrained=False)


@pytest.mark.parametrize("loss", ["softmax", "objectness_softmax", "logit_adjusted", "class_balanced", "seesaw"])
def test_the_deconfounded_classifier_trains_with_softmax_losses_and_gathers_its_mean(loss: str) -> None:
    overrides = [*SMALL, f"stages.*.classification_loss={loss}", "model.classifier=deconfounded"]
    recipe = load_recipe("baseline", overrides)
    model = build_model(recipe, recipe.stages[0], statistics(), pretrained=False)
    target = {"boxes": torch.tensor([[4.0, 4.0, 30.0, 40.0]]), "labels": torch.tensor([2]), "draw_seed": 5}
    model.eval()
    model.losses([torch.rand(3, 64, 64)], [target])
    assert not model.box.classifier.mean.any(), "not in training, nothing gathered"
    model.losses([torch.rand(3, 64, 64)], [target], update_state=True)
    assert model.box.classifier.mean.any()
    assert model.detect([torch.rand(3, 64, 64)])[0]["scores"].isfinite().all()


@pytest.mark.parametrize("loss", ["sigmoid", "focal", "group_softmax", "{type: balanced_softmax, form: sigmoid}"])
def test_what_changes_class_logits_afterwards_wants_softmax_scores(loss: str) -> None:
    overrides = [*SMALL, f"stages.*.classification_loss={loss}"]
    for change in ("model.classifier=deconfounded", "model.inference.adjust=adjust_logits"):
        recipe = load_recipe("baseline", [*overrides, change])
        with pytest.raises(UsageError, match=r"works with: cosine, linear|softmax over the classes"):
            build_model(recipe, recipe.stages[0], statistics(), pretrained=False)


def test_adjusting_is_set_and_taken_back() -> None:
    recipe = load_recipe("baseline", [*SMALL, "model.inference.adjust=tau_normalise"])
    model = build_model(recipe, recipe.stages[0], statistics(), pretrained=False)
    assert model.box.adjustment is not None
    adjust(model, None, statistics())
    assert model.box.adjustment is None


def test_nms_resampling_takes_its_thresholds_from_the_groups() -> None:
    recipe = load_recipe("baseline", [*SMALL, "groups.edges=[2, 20]", "model.proposals.filter={type: resampling_nms}"])
    own = replace(statistics(), edges=(2, 20))
    found = build_model(recipe, recipe.stages[0], own, pretrained=False).rpn.proposal_filter
    assert isinstance(found, ResamplingNMS)
    assert found.thresholds[found.kind].tolist() == pytest.approx([0.7, 0.8, 0.9, 0.7]), "f, c, r, background"


def test_ldam_takes_cosines_as_they_are() -> None:
    overrides = [*SMALL, "stages.*.classification_loss=ldam"]
    for classifier in ("linear", "normed_linear", "cosine", "{type: cosine, scale: 1}"):
        recipe = load_recipe("baseline", [*overrides, f"model.classifier={classifier}"])
        with pytest.raises(UsageError, match="cosine"):
            build_model(recipe, recipe.stages[0], statistics(), pretrained=False)
    recipe = load_recipe("baseline", [*overrides, "model.classifier={type: cosine, scale: 1, learn_norm: false}"])
    model = build_model(recipe, recipe.stages[0], statistics(), pretrained=False)
    assert model.box.classifier(torch.randn(4, 16)).abs().max() <= 1 + 1e-5


def test_the_state_of_box_losses_changes_only_when_told() -> None:
    own = "{type: ghm_r, momentum: 0.7}"
    recipe = load_recipe("baseline", [*SMALL, f"stages.*.box_loss={own}", f"model.proposals.box_loss={own}"])
    model = build_model(recipe, recipe.stages[0], statistics(), pretrained=False).train()
    target = {"boxes": torch.tensor([[4.0, 4.0, 30.0, 40.0]]), "labels": torch.tensor([2]), "draw_seed": 5}
    counts = [model.box.box_loss.density.counts, model.rpn.box_loss.density.counts]
    model.losses([torch.rand(3, 64, 64)], [target], update_state=False)
    assert not any(count.any() for count in counts)
    model.losses([torch.rand(3, 64, 64)], [target])
    assert all(count.any() for count in counts)


def test_losses_get_the_counts_of_the_training_data() -> None:
    own = replace(statistics(), edges=(3, 20))  # images 40, 12, 2 of 50: frequent, common, rare
    found = {
        name: classification_loss(load_recipe("baseline", [f"stages.*.classification_loss={spec}"])
                                  .stages[0].classification_loss, own)
        for name, spec in {"eql": "{type: eql, threshold: 0.3}", "drop": "{type: drop_loss, threshold: 0.1}",
                           "acsl": "acsl", "federated": "federated"}.items()
    }  # fmt: skip
    assert found["eql"].tail.tolist() == [False, True, True]
    assert found["drop"].tail.tolist() == [False, False, True]
    assert found["acsl"].rare.tolist() == [False, False, True, False]
    assert found["acsl"].common.tolist() == [False, True, False, False]
    assert found["federated"].log_share.exp().square().tolist() == pytest.approx([40, 12, 2])
    by_objects = classification_loss(specs.ACSL(), replace(own, count="instances", edges=(15, 80)))  # 90, 20, 2
    assert by_objects.rare.tolist() == [False, False, True, False]
    by_images = classification_loss(specs.ACSL(), replace(own, edges=(15, 80)))
    assert by_images.rare.tolist() == [False, True, True, False]


def test_a_stage_can_have_a_classifier_of_its_own() -> None:
    recipe = load_recipe("baseline", [*SMALL, "stages.end-to-end.classifier=cosine"])
    model = build_model(recipe, recipe.stages[0], statistics(), pretrained=False)
    assert model.box.classifier.name == "cosine"


def test_missing_pretrained_weights_say_what_to_do(tmp_path) -> None:
    recipe = load_recipe("baseline", [*SMALL, "model.backbone=resnet18", f"model.backbone.weights={tmp_path}/no.pth",
                                      "model.proposals.anchor_sizes=[8, 16, 32, 64, 128]"])  # fmt: skip
    with pytest.raises(Exception, match=r"no\.pth"):
        build_model(recipe, recipe.stages[0], statistics(), pretrained=True)


def test_frozen_norms_without_weights_are_refused_in_training_but_not_when_weights_follow() -> None:
    recipe = load_recipe("baseline", [*SMALL, "model.backbone=resnet18", "model.backbone.weights=null",
                                      "model.proposals.anchor_sizes=[8, 16, 32, 64, 128]"])  # fmt: skip
    with pytest.raises(UsageError, match="norm=batch"):
        build_model(recipe, recipe.stages[0], statistics(), pretrained=True)
    assert build_model(recipe, recipe.stages[0], statistics(), pretrained=False)
