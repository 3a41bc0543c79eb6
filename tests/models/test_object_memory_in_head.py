"""RIO's memory inside a detector: plain training without it, and nothing but the last layers with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longtail.losses import EqualizationLoss
from longtail.models import CosineClassifier, mask_rcnn
from longtail.models.tiny import tiny32
from longtail.replay import ObjectMemory

C = 4
EVERYTHING = torch.ones(C, dtype=torch.bool)


def detector(*replay: ObjectMemory, loss: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return mask_rcnn(
        tiny32(fpn_channels=16),
        num_classes=C,
        classifier=CosineClassifier,
        classification_loss=loss,
        replay=replay,
        embedding_size=32,
        mask_layers=(8, 8),
        mask_hidden=8,
    ).train()


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 64, generator=generator) for _ in range(2)]
    targets = []
    for label in (0, 2):
        mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
        mask[:, 10:40, 12:44] = 1
        boxes = torch.tensor([[12.0, 10.0, 44.0, 40.0]])
        targets.append({"boxes": boxes, "labels": torch.tensor([label]), "masks": mask})
    return images, targets


def two_steps(model: nn.Module) -> dict[str, Tensor]:
    """Losses of the second of two training steps."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    losses: dict[str, Tensor] = {}
    for seed in range(2):
        torch.manual_seed(seed)
        optimiser.zero_grad()
        losses = model(*batch())
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
    return losses


def test_no_rows_is_plain_training_bit_for_bit() -> None:
    plain, switched_off = detector(), detector(ObjectMemory(C, EVERYTHING, count=0))
    first, second = two_steps(plain), two_steps(switched_off)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = dict(switched_off.named_parameters())
    assert all(torch.equal(value, other[name]) for name, value in plain.named_parameters())


def gradients(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of a step on the pictures of the step before, so that the bank has their rows."""
    images, targets = batch()
    images = [image.double() for image in images]
    model.double()
    torch.manual_seed(0)
    model(images, targets)
    torch.manual_seed(0)
    losses = model(images, targets)
    torch.stack([losses["loss_classifier"], losses["loss_box_reg"]]).sum().backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, found


def test_rows_reach_the_last_two_layers_only() -> None:
    """M rows shrink the real ones' share of the gradient to R / (R + M); below the last layers nothing else happens."""
    memory = ObjectMemory(C, EVERYTHING)
    plain_losses, plain = gradients(detector())
    losses, ours = gradients(detector(memory))
    assert torch.equal(losses["loss_mask"], plain_losses["loss_mask"])
    assert torch.equal(losses["loss_objectness"], plain_losses["loss_objectness"])
    assert memory.bank is not None
    rows = sum(min(20, pushed // 2) for pushed in memory.bank.pushed.tolist())  # both steps stored the same regions
    assert rows > 0
    last = {name for name in plain if ".classifier." in name or ".regressor." in name}
    assert len(last) == 4
    below = {name: value for name, value in plain.items() if name not in last and value.norm() > 1e-12}
    scales = torch.stack([ours[name].norm() / value.norm() for name, value in below.items()])
    own = rows * scales[0] / (1 - scales[0])  # R, a whole number
    torch.testing.assert_close(own, own.round(), rtol=0, atol=1e-6)
    for name, value in below.items():
        torch.testing.assert_close(ours[name], value * scales[0], rtol=1e-7, atol=1e-12)
    for name in last:
        assert not torch.allclose(ours[name], plain[name] * scales[0], rtol=1e-2), name


def test_works_with_sigmoids() -> None:
    frequency = torch.tensor([0.5, 0.1, 0.001, 0.001])
    losses = two_steps(detector(ObjectMemory(C, EVERYTHING), loss=EqualizationLoss(frequency)))
    assert all(torch.isfinite(value) for value in losses.values())
