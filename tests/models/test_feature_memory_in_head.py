"""LOCE inside a detector: which layers its rows reach, and what they leave alone."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from longtail.losses import ClassificationLoss, EquilibriumLoss, MeanScore
from longtail.models import cascade_rcnn, mask_rcnn
from longtail.models.tiny import tiny32
from longtail.replay import FeatureMemory

C = 4


def detector(*replay: nn.Module, loss: ClassificationLoss | None = None, build: Any = mask_rcnn) -> Any:
    torch.manual_seed(0)
    more = {"mask_layers": (8, 8), "mask_hidden": 8} if build is mask_rcnn else {}
    model = build(
        tiny32(fpn_channels=16),
        num_classes=C,
        classification_loss=loss,
        replay=replay,
        embedding_size=32,
        **more,
    )
    for name, value in model.named_parameters():
        value.requires_grad_(not re.match(r"backbone\.|box\.(\d\.)?head\.", name))
    return model.train()


def batch() -> tuple[list[Tensor], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 64, generator=generator) for _ in range(2)]
    targets: list[dict[str, Any]] = []
    for number, label in enumerate((0, 2)):
        mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
        mask[:, 10:40, 12:44] = 1
        boxes = torch.tensor([[12.0, 10.0, 44.0, 40.0]])
        targets.append({"boxes": boxes, "labels": torch.tensor([label]), "masks": mask, "draw_seed": number})
    return images, targets


def gradients(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    images, targets = batch()
    losses = model.double()([image.double() for image in images], targets)
    torch.stack(list(losses.values())).sum().backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, found


def test_rows_reach_classifier_and_regressor_alone() -> None:
    scores = MeanScore(C)
    plain_losses, plain = gradients(detector())
    losses, ours = gradients(detector(FeatureMemory(C, scores), scores))
    changed = {name for name in plain if not torch.equal(ours[name], plain[name])}
    assert changed == {f"box.{layer}.{kind}" for layer in ("classifier", "regressor") for kind in ("weight", "bias")}
    assert any(name.startswith("rpn.") for name in plain)
    assert any(name.startswith("mask.") for name in plain)
    for name in ("loss_mask", "loss_objectness", "loss_rpn_box_reg"):
        assert torch.equal(losses[name], plain_losses[name])
    assert losses["loss_classifier"] != plain_losses["loss_classifier"]
    assert losses["loss_box_reg"] != plain_losses["loss_box_reg"]


def test_one_mean_over_regions_and_rows() -> None:
    """All logits equal: the loss is log(C + 1) for every row, whatever their number; the mean says so too."""
    scores = MeanScore(C)
    model = detector(FeatureMemory(C, scores), scores, loss=EquilibriumLoss(scores))
    nn.init.zeros_(model.box.classifier.weight)
    nn.init.zeros_(model.box.classifier.bias)
    scores.alpha = 1 - 1e-12  # keeps the scores equal
    losses, _ = gradients(model)
    torch.testing.assert_close(losses["loss_classifier"].exp(), torch.tensor(C + 1.0, dtype=torch.float64))


def test_scores_alone_change_nothing_and_the_loss_sees_them_in_the_same_step() -> None:
    scores = MeanScore(C)
    plain, ours = gradients(detector()), gradients(detector(scores))
    assert all(torch.equal(value, ours[0][name]) for name, value in plain[0].items())
    assert all(torch.equal(value, ours[1][name]) for name, value in plain[1].items())
    assert (scores.value.float() != 0.01).tolist() == [True, False, True, False, False]
    kept, guide = MeanScore(C), MeanScore(C)
    never_moved = gradients(detector(loss=EquilibriumLoss(kept)))[0]["loss_classifier"]
    moved = gradients(detector(guide, loss=EquilibriumLoss(guide)))[0]["loss_classifier"]
    assert torch.equal(never_moved, plain[0]["loss_classifier"])
    assert moved != never_moved


def test_nothing_of_it_when_detecting() -> None:
    scores = MeanScore(C)
    plain, ours = detector(), detector(FeatureMemory(C, scores), scores, loss=EquilibriumLoss(scores))
    ours(*batch())  # fills the memory
    scores.value[:C] = torch.tensor([0.9, 0.1, 0.5, 0.01])
    images, _ = batch()
    for model in (plain, ours):
        model.load_state_dict(plain.state_dict(), strict=False)
        model.eval()
    with torch.no_grad():
        first, second = plain(images), ours(images)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["scores"], other["scores"])
        assert torch.equal(one["boxes"], other["boxes"])


def test_every_stage_of_a_cascade_has_scores_of_its_own_shared_by_its_parts() -> None:
    scores = MeanScore(C)
    model = detector(FeatureMemory(C, scores), scores, loss=EquilibriumLoss(scores), build=cascade_rcnn)
    torch.stack(list(model(*batch()).values())).sum().backward()
    values = []
    for stage in model.box:
        memory, own = stage.replay
        assert memory.guide is own
        assert stage.classification_loss.guide is own
        assert int(memory.bank.fill.sum()) == 32
        values.append(own.value)
    assert not torch.equal(values[0], values[1])
    assert (scores.value == 0.01).all()  # what was handed over is only a pattern
