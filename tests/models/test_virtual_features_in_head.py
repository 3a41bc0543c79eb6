"""FASA's virtual features inside a detector: plain training without them, the classifier alone with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from longtail.losses import ClassificationLoss, EqualizationLossV2, GroupSoftmaxLoss, ObjectnessSoftmax, SeesawLoss
from longtail.models import cascade_rcnn, mask_rcnn
from longtail.models.tiny import tiny32
from longtail.replay import ObjectMemory, VirtualFeatures

C = 4
COUNTS = torch.tensor([1, 3, 5, 9])


def virtual(**options) -> VirtualFeatures:
    return VirtualFeatures(C, 32, COUNTS, **{"scale": 1e9, **options})


def detector(
    *replay: VirtualFeatures, loss: ClassificationLoss | None = None, make: Callable[..., nn.Module] = mask_rcnn
) -> nn.Module:
    torch.manual_seed(0)
    return make(
        tiny32(fpn_channels=16),
        num_classes=C,
        classification_loss=loss,
        replay=replay,
        embedding_size=32,
        mask_layers=(8, 8),
        mask_hidden=8,
    ).train()


def losses_of(model: nn.Module, update_state: bool | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 64, generator=generator) for _ in range(2)]
    targets = []
    for seed, label in ((5, 0), (6, 2)):
        mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
        mask[:, 10:40, 12:44] = 1
        boxes = torch.tensor([[12.0, 10.0, 44.0, 40.0]])
        targets.append({"boxes": boxes, "labels": torch.tensor([label]), "masks": mask, "draw_seed": seed})
    found: dict[str, Tensor] = model(images, targets, update_state=update_state)
    return found


@pytest.mark.parametrize("part", [{"scale": 0.0}, {"warmup_steps": 9}], ids=str)
def test_no_rows_is_plain_training_bit_for_bit(part: dict) -> None:
    plain, switched_off = detector(), detector(virtual(**part))
    found = []
    for model in (plain, switched_off):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            optimiser.zero_grad()
            losses = losses_of(model)
            torch.stack(list(losses.values())).sum().backward()
            optimiser.step()
        found.append(losses)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    other = dict(switched_off.named_parameters())
    assert all(torch.equal(value, other[name]) for name, value in plain.named_parameters())


def test_rows_change_nothing_but_the_gradient_of_the_classifier() -> None:
    plain, model = detector(), detector(virtual())
    before, losses = losses_of(plain), losses_of(model)
    assert losses.keys() - before.keys() == {"loss_replay"}
    assert all(torch.equal(value, losses[name]) for name, value in before.items())
    losses["loss_replay"].backward()
    moved = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert moved == {"box.classifier.weight", "box.classifier.bias"}


def test_the_loss_is_a_tenth_of_the_rows_mean() -> None:
    model = detector(virtual())
    rows = []
    original = model.box.replay[0].step
    model.box.replay[0].step = lambda *given: rows.append(original(*given)) or rows[0]
    found = losses_of(model)["loss_replay"]
    assert rows[0].labels.tolist() == [0, 2], "the classes that have been seen"
    logits = model.box.classifier(rows[0].features)
    torch.testing.assert_close(found, 0.1 * torch.nn.functional.cross_entropy(logits, rows[0].labels))


@pytest.mark.parametrize("kind", [SeesawLoss, EqualizationLossV2])
def test_rows_leave_the_state_of_the_loss_alone(kind: type[ClassificationLoss]) -> None:
    plain, model = detector(loss=kind(num_classes=C)), detector(virtual(), loss=kind(num_classes=C))
    assert "loss_replay" not in losses_of(plain)
    assert losses_of(model)["loss_replay"] > 0
    state = model.box.classification_loss.state_dict()
    assert state
    for name, value in plain.box.classification_loss.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_rows_are_objects_for_losses_in_two_parts() -> None:
    """Objectness: every logit has a gradient. Groups: the two of objects against background have one."""
    for loss in (ObjectnessSoftmax(num_classes=C), GroupSoftmaxLoss(COUNTS)):
        model = detector(virtual(), loss=loss)
        losses_of(model)["loss_replay"].backward()
        grad = model.box.classifier.bias.grad
        assert (grad != 0).all() if isinstance(loss, ObjectnessSoftmax) else (grad[-2:] != 0).all()


def test_without_updates_nothing_is_drawn_or_kept() -> None:
    model = detector(virtual())
    losses_of(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert "loss_replay" not in losses_of(model.eval(), update_state=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_stage_of_a_cascade_has_moments_of_its_own_and_its_weight() -> None:
    model = detector(virtual(), make=cascade_rcnn)
    losses = losses_of(model)
    assert {name for name in losses if name.startswith("loss_replay")} == {f"loss_replay_{n}" for n in range(3)}
    means = [stage.replay[0].moments.mean for stage in model.stages]
    assert not torch.equal(means[0], means[1])
    assert [stage.replay[0].number for stage in model.stages] == [0, 1, 2], "each draws for itself"
    assert [record.weight for record in model.head_records()] == [1.0, 0.5, 0.25]
    whole, part = losses["loss_replay_2"].detach().clone(), model.stages[2].replay[0]
    logits = model.stages[2].classifier(part.moments.mean[[0, 2]])
    assert 0 < whole < 0.25 * 0.1 * 3 * torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2]))


def test_parts_of_one_kind_are_numbered() -> None:
    model = detector(virtual(), ObjectMemory(C, COUNTS > 1), virtual())
    assert [part.number for part in model.box.replay] == [0, 0, 1]


def test_one_step_in_bf16() -> None:
    model = detector(virtual())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model)
        torch.stack(list(losses.values())).sum().backward()
    assert losses["loss_replay"].isfinite()
    assert model.box.replay[0].moments.mean.dtype == torch.float32
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())
