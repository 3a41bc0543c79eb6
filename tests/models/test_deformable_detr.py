"""Deformable DETR: losses against loops, two stages, freezing, weights in transformers' own class, refusals."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from longtail.losses import EqualizedFocalLoss, FocalLoss, SigmoidCrossEntropy, SoftmaxCrossEntropy
from longtail.losses.auxiliary import Record
from longtail.models import DeformableDETR, Inference, deformable_detr, resnet_fpn, tiny32, transformers_state
from longtail.models.classifiers import CosineClassifier, LinearClassifier, NormedLinear
from longtail.models.learnable_weight_scaling import LearnableWeightScaling
from longtail.models.postprocess import select_queries
from longtail.models.query_losses import Objects, QueryCriterion, QueryOutputs
from longtail.models.remap import remap_classes
from longtail.models.weights import load_state
from longtail.schema import UsageError
from longtail.schema.stage import Trainable
from longtail.training.trainable import freeze

CLASSES = 3
SMALL = {"channels": 64, "heads": 4, "hidden": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 12}


def detector(**options: Any) -> DeformableDETR:
    torch.manual_seed(0)
    return deformable_detr(tiny32(width=8), num_classes=CLASSES, **(SMALL | {"dropout": 0.0} | options))


def batch() -> tuple[list[Tensor], list[dict[str, Any]]]:
    draw = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 64, generator=draw), torch.rand(3, 40, 56, generator=draw)]
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([0, 2]), "draw_seed": 1},
        {"boxes": torch.tensor([[5.0, 5.0, 25.0, 30.0]]), "labels": torch.tensor([1]), "draw_seed": 2},
    ]
    return images, targets


def random_outputs(queries: int = 5, places: int = 7, layers: int = 3) -> QueryOutputs:
    draw = torch.Generator().manual_seed(2)

    def boxes(count: int) -> Tensor:
        return 0.1 + 0.4 * torch.rand(2, count, 4, generator=draw, dtype=torch.float64)

    logits = [torch.randn(2, queries, CLASSES, generator=draw, dtype=torch.float64) for _ in range(layers)]
    score = torch.randn(2, places, generator=draw, dtype=torch.float64)
    return QueryOutputs(logits, [boxes(queries) for _ in range(layers)], score, boxes(places))


TARGETS = [
    {"boxes": torch.tensor([[8.0, 8.0, 32.0, 40.0], [20.0, 10.0, 60.0, 50.0]]).double(),
     "labels": torch.tensor([0, 2]), "input_size": (64, 64)},
    {"boxes": torch.zeros(0, 4).double(), "labels": torch.zeros(0, dtype=torch.int64), "input_size": (40, 56)},
]  # fmt: skip


def focal(logit: float, positive: bool) -> float:
    chance = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - chance) ** 2 * math.log(chance) if positive else -0.75 * chance**2 * math.log(1 - chance)


def loop_losses(outputs: QueryOutputs, criterion: QueryCriterion) -> dict[str, float]:
    """The losses pair by pair, in float64, with the criterion's own matches."""
    objects = Objects.of(TARGETS)
    found = criterion.match(outputs, objects)
    assert outputs.proposal_logits is not None and outputs.proposal_boxes is not None
    rows = [*(own.flatten(0, 1) for own in outputs.logits), outputs.proposal_logits.reshape(-1, 1)]
    boxes = [*(own.flatten(0, 1) for own in outputs.boxes), outputs.proposal_boxes.flatten(0, 1)]
    terms = []
    for layer, matches in enumerate(found):
        pairs = dict(zip(matches.rows.tolist(), matches.objects.tolist(), strict=True))
        classified = l1 = giou = 0.0
        for index, logits in enumerate(rows[layer].tolist()):
            label = None
            if index in pairs:
                label = 0 if layer == len(found) - 1 else int(objects.labels[pairs[index]])
                wanted, own = objects.boxes[pairs[index]].double(), boxes[layer][index]
                l1 += sum(abs(a - b) for a, b in zip(own.tolist(), wanted.tolist(), strict=True))
                corners = [box_convert(box[None], "cxcywh", "xyxy") for box in (own, wanted)]
                giou += 1 - float(generalized_box_iou(*corners))
            classified += sum(focal(logit, column == label) for column, logit in enumerate(logits))
        count = max(len(pairs), 1)
        terms.append([3 * classified / count, 5 * l1 / count, 2 * giou / count])
    last, before, proposal = terms[-2], terms[:-2], terms[-1]
    return {
        "loss_classifier": last[0],
        "loss_l1": last[1],
        "loss_giou": last[2],
        "loss_auxiliary": sum(sum(own) for own in before),
        "loss_proposal": sum(proposal),
    }


@pytest.mark.parametrize("repeats", [1, 2])
def test_losses_of_all_layers_by_loops(repeats: int) -> None:
    weights = {"classification_weight": 3.0, "proposal_weight": 3.0}
    criterion = QueryCriterion(CLASSES, FocalLoss(CLASSES), repeats=repeats, **weights)
    losses, labels = criterion(random_outputs(), TARGETS)
    expected = loop_losses(random_outputs(), criterion)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert math.isclose(float(losses[name]), value, rel_tol=1e-5), name
    assert (labels < CLASSES).sum() == 2 * repeats and labels.shape == (10,)


def test_without_any_object_the_divisor_is_one() -> None:
    criterion = QueryCriterion(CLASSES, FocalLoss(CLASSES))
    outputs = random_outputs()
    losses, _ = criterion(outputs, [TARGETS[1], TARGETS[1]])
    cells = [focal(logit, False) for logit in outputs.logits[-1].flatten().tolist()]
    assert math.isclose(float(losses["loss_classifier"]), 2 * sum(cells), rel_tol=1e-6)
    assert losses["loss_l1"] == 0 and losses["loss_giou"] == 0


def test_only_the_last_layer_changes_the_state() -> None:
    loss = EqualizedFocalLoss(CLASSES)
    outputs = random_outputs()
    criterion = QueryCriterion(CLASSES, loss)
    before = copy.deepcopy(loss.state_dict())
    criterion(outputs, TARGETS, update_state=False)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    criterion(outputs, TARGETS, update_state=True)
    alone = EqualizedFocalLoss(CLASSES)
    last = QueryOutputs(outputs.logits[-1:], outputs.boxes[-1:])
    QueryCriterion(CLASSES, alone)(last, TARGETS, update_state=True)
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in loss.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_classes_a_picture_says_nothing_of_take_no_part() -> None:
    criterion = QueryCriterion(CLASSES, FocalLoss(CLASSES))
    known = torch.tensor([True, False, True])
    masked = [{**target, "class_mask": known} for target in TARGETS]
    outputs = random_outputs()
    outputs.logits[-1].requires_grad_()
    criterion(outputs, masked)[0]["loss_classifier"].backward()
    gradient = outputs.logits[-1].grad
    assert gradient is not None and (gradient[..., 1] == 0).all() and (gradient[..., [0, 2]] != 0).all()


@pytest.mark.parametrize("options", [{}, {"two_stage": False}, {"two_stage": False, "box_refine": False}], ids=str)
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    model = detector(**options)
    losses = model.losses(*batch())
    assert ("loss_proposal" in losses) == ("two_stage" not in options)
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert torch.isfinite(torch.stack(list(losses.values()))).all()


def test_bias_starts_at_the_prior_and_boxes_at_their_places() -> None:
    model = detector(classification_loss=SigmoidCrossEntropy(num_classes=CLASSES, prior=0.02, background_logit=False))
    biases = [head.bias for head in model.class_embed]
    assert all(torch.allclose(bias, torch.full_like(bias, math.log(0.02 / 0.98))) for bias in biases[:2])
    assert torch.allclose(biases[2], torch.full_like(biases[2], -math.log(99)))
    images, _ = batch()
    prepared, _ = model.preprocess(images, resize=False)
    outputs, _ = model.eval().outputs(prepared.tensors, prepared.image_sizes)
    assert torch.allclose(outputs.boxes[0], outputs.boxes[1], atol=1e-4), "no layer moves a box yet"


def test_queries_are_the_best_places_of_the_encoder() -> None:
    model = detector().eval()
    torch.nn.init.normal_(model.class_embed[2].weight)
    images, _ = batch()
    prepared, _ = model.preprocess(images, resize=False)
    outputs, _ = model.outputs(prepared.tensors, prepared.image_sizes)
    assert outputs.proposal_logits is not None and outputs.proposal_boxes is not None
    best = outputs.proposal_logits.topk(12, dim=1).indices
    chosen = outputs.proposal_boxes.gather(1, best[..., None].expand(-1, -1, 4))
    assert torch.allclose(outputs.boxes[0], chosen, atol=1e-4)
    few = [torch.rand(3, 32, 32)]
    assert len(detector(num_queries=300).eval().detect(few)) == 1, "a small picture has fewer places than queries"


def test_detections_do_not_depend_on_the_other_pictures() -> None:
    model = detector(inference=Inference(score_threshold=0.0, nms_threshold=1.0, detections_per_image=20)).eval()
    model.preprocess.short_side = model.preprocess.long_side = 64
    images, _ = batch()
    together, alone = model.detect(images)[0], model.detect(images[:1])[0]
    assert len(together["boxes"]) == 20
    assert torch.allclose(together["boxes"], alone["boxes"], atol=1e-3)
    assert (together["scores"].diff() <= 0).all()


def test_best_pairs_with_and_without_suppression() -> None:
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.1], [0.3, 0.7]])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.5], [5.0, 5.0, 5.0, 9.0]])
    free = Inference(score_threshold=0.15, nms_threshold=1.0, detections_per_image=10)
    found = select_queries(scores, boxes, free)
    assert torch.equal(found["scores"], torch.tensor([0.9, 0.8, 0.2])), "the third box has no width"
    assert found["labels"].tolist() == [0, 0, 1]
    suppressed = select_queries(scores, boxes, Inference(score_threshold=0.15, nms_threshold=0.6))
    assert torch.equal(suppressed["scores"], torch.tensor([0.9, 0.2]))


@pytest.mark.parametrize("classifier", [LinearClassifier, CosineClassifier, NormedLinear, LearnableWeightScaling])
def test_training_and_detection_use_the_same_classifier(classifier: Any) -> None:
    loss = FocalLoss(CLASSES)
    assert classifier.name in loss.classifiers
    model = detector(classification_loss=loss, classifier=classifier).eval()
    images, targets = batch()
    record = Record(["query_features", "query_logits"])
    model.observe(images, targets, record)
    for states, logits, head in zip(
        record["query_features"], record["query_logits"], model.class_embed[:2], strict=True
    ):
        rows = head.detection_logits(states.flatten(0, 1), CLASSES)
        assert torch.allclose(logits.flatten(0, 1), rows, atol=1e-6)
    shared = Record(["shared_query_logits"], given={"query_features": record["query_features"]})
    model.observe(images, targets, shared)
    assert torch.equal(shared["shared_query_logits"], record["query_logits"])


def test_record_and_steps_of_frozen_parts() -> None:
    model = detector()
    record = Record(["maps", "image_sizes", "query_features", "query_logits", "query_labels"])
    left = freeze(model, Trainable(only=("*input_proj*", "class_embed*")))
    assert all("input_proj" in name or name.startswith("class_embed.") for name in left)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimiser = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    model.eval()
    torch.stack(list(model.losses(*batch(), record=record).values())).sum().backward()
    optimiser.step()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == set(left)
    assert [tuple(own.shape) for own in record["maps"].values()] == [(2, 64, s, s) for s in (8, 4, 2, 1)]
    assert record["query_features"].shape == (2, 2, 12, 64) and record["query_logits"].shape == (2, 2, 12, CLASSES)
    assert record["query_labels"].shape == (2, 12) and record["image_sizes"] == [(64, 64), (40, 56)]


def test_frozen_norms_of_a_resnet_stay() -> None:
    model = deformable_detr(resnet_fpn("resnet18", weights=None), num_classes=CLASSES, **SMALL).train()
    before = {name: value.clone() for name, value in model.backbone.named_buffers()}
    assert any("running_mean" in name for name in before)
    model.losses(*batch())
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.named_buffers())
    trained = {name.split(".")[2] for name, value in model.named_parameters() if "body" in name and value.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}


def test_a_copy_uses_its_own_heads() -> None:
    model = detector().eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.class_embed[2].weight.add_(torch.randn_like(other.class_embed[2].weight))
        other.bbox_embed[0].layers[2].weight.normal_()
    images, _ = batch()
    prepared, _ = model.preprocess(images, resize=False)
    one, two = (m.outputs(prepared.tensors, prepared.image_sizes)[0] for m in (model, other))
    assert one.proposal_logits is not None and two.proposal_logits is not None
    assert not torch.allclose(one.proposal_logits, two.proposal_logits)
    assert not torch.allclose(one.boxes[1], two.boxes[1])


def test_weights_in_transformers_own_class_give_the_same_outputs() -> None:
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, TimmBackboneConfig

    torch.manual_seed(0)
    backbone = resnet_fpn("resnet18", weights=None, norm="batch")
    model = deformable_detr(backbone, num_classes=CLASSES, **SMALL).eval()
    for head in model.bbox_embed:
        torch.nn.init.normal_(head.layers[2].weight, std=0.1)
    config = DeformableDetrConfig(
        backbone_config=TimmBackboneConfig(
            backbone="resnet18", out_indices=[2, 3, 4], use_pretrained_backbone=False, features_only=True
        ),
        d_model=64, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_layers=1, decoder_layers=2, num_queries=12, two_stage=True, two_stage_num_proposals=12,
        with_box_refine=True, num_labels=CLASSES,
    )  # fmt: skip
    theirs = DeformableDetrForObjectDetection(config).eval()
    report = theirs.load_state_dict(transformers_state(model), strict=False)
    assert not [name for name in report.missing_keys if "num_batches_tracked" not in name]
    assert all(name.endswith("num_batches_tracked") for name in report.unexpected_keys)
    images, _ = batch()
    prepared, _ = model.preprocess(images, resize=False)
    inside = torch.zeros(2, 64, 64, dtype=torch.long)
    inside[0] = 1
    inside[1, :40, :56] = 1
    with torch.no_grad():
        ours, _ = model.outputs(prepared.tensors, prepared.image_sizes)
        expected = theirs(prepared.tensors, pixel_mask=inside)
    assert torch.allclose(ours.logits[-1], expected.logits, atol=1e-5)
    assert torch.allclose(ours.boxes[-1], expected.pred_boxes, atol=1e-5)


@pytest.mark.parametrize("target", ["cab", "xa", "dabce"])
def test_objectness_stays_in_its_place_with_other_classes(target: str) -> None:
    old, new = detector(), deformable_detr(tiny32(width=8), num_classes=len(target), **(SMALL | {"dropout": 0.0}))
    fresh = {name: value.clone() for name, value in new.state_dict().items()}
    state = old.state_dict()
    remapped, report = remap_classes(new, state, source_classes="abc", target_classes=target)
    assert not load_state(new, remapped, source="there").mismatched
    assert not report.left_fresh
    both = min(3, len(target))
    for name in ("class_embed.2.weight", "class_embed.2.bias"):
        assert torch.equal(new.state_dict()[name][:both], state[name][:both])
        assert torch.equal(new.state_dict()[name][both:], fresh[name][both:])
    rows = [target.index(name) for name in target if name in "abc"]
    theirs = ["abc".index(name) for name in target if name in "abc"]
    assert torch.equal(new.state_dict()["class_embed.1.weight"][rows], state["class_embed.1.weight"][theirs])


def test_refusals_name_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"not for the query head.*use FocalLoss"):
        detector(classification_loss=SoftmaxCrossEntropy(num_classes=CLASSES))
    with pytest.raises(UsageError, match="multiple of 32"):
        detector(channels=40)
    with pytest.raises(UsageError, match="set both"):
        detector(box_refine=False)
    with pytest.raises(UsageError, match="at most 16"):
        detector(finest_stride=64)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"longtail\[detr\]"):
        detector()
