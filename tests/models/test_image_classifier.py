"""Pictures classified with the parts of the detectors."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import longtail.losses
from longtail.losses import (
    BalancedSoftmaxLoss,
    ClassificationLoss,
    GroupSoftmaxLoss,
    ObjectnessSoftmax,
    SeesawLoss,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
)
from longtail.models import CosineClassifier, ImageClassifier, LinearClassifier
from longtail.models.image_classifier import PictureHead
from longtail.replay import ObjectMemory, VirtualFeatures
from longtail.schema import UsageError

CLASSES, SIZE = 4, 6
COUNTS = torch.tensor([400, 50, 8, 1])
ARGUMENTS = {
    "num_classes": CLASSES,
    "instance_counts": COUNTS,
    "image_counts": COUNTS,
    "class_counts": COUNTS,
    "image_frequency": COUNTS / 400,
    "guide": COUNTS,
}


class Flat(torch.nn.Module):
    """The picture's mean colour, twice."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        colour = images.mean(dim=(2, 3))
        return torch.cat([colour, colour.square()], dim=1)


def model(loss: ClassificationLoss | None = None, **options) -> ImageClassifier:
    torch.manual_seed(0)
    head = PictureHead(num_classes=CLASSES, feature_size=SIZE, classification_loss=loss, **options)
    return ImageClassifier(Flat(), head, size=(8, 8))


def batch(count: int = 5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (3, 8, 8), generator=generator, dtype=torch.uint8) for _ in range(count)]
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return images, [{"labels": labels[i : i + 1], "draw_seed": 7 + i} for i in range(count)], labels


def every_loss() -> list[ClassificationLoss]:
    found = []
    for name in longtail.losses.__all__:
        kind = getattr(longtail.losses, name)
        if inspect.isclass(kind) and issubclass(kind, ClassificationLoss) and not inspect.isabstract(kind):
            wanted = [p for p in inspect.signature(kind).parameters if p in ARGUMENTS]
            found.append(kind(**{p: ARGUMENTS[p] for p in wanted}))
    return found


@pytest.mark.parametrize("loss", every_loss(), ids=lambda loss: type(loss).__name__)
def test_every_loss_trains_or_says_what_works(loss: ClassificationLoss) -> None:
    if isinstance(loss, GroupSoftmaxLoss):
        with pytest.raises(UsageError, match=r"rows of background.*softmax"):
            model(loss)
        return
    own = model(loss, classifier=LinearClassifier if "linear" in loss.classifiers else CosineClassifier).train()
    optimiser = torch.optim.SGD(own.parameters(), lr=0.1)
    for step in range(2):
        images, targets, _ = batch(seed=step)
        before = [parameter.detach().clone() for parameter in own.parameters()]
        losses = own.losses(images, targets)
        total = sum(losses.values())
        assert math.isfinite(float(total))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        assert any(not torch.equal(a, b) for a, b in zip(before, own.parameters(), strict=True))
    scores = own.eval().classify(batch()[0])
    assert scores.shape == (5, CLASSES)
    assert ((scores >= 0) & (scores <= 1)).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999))
def test_without_background_the_losses_are_those_of_the_classes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (6,), generator=generator)

    def of(loss: ClassificationLoss) -> float:
        head = PictureHead(num_classes=CLASSES, feature_size=SIZE, classification_loss=loss)
        return float(loss(head.padded(logits), labels, update_state=False))

    plain = float(F.cross_entropy(logits, labels))
    assert of(SoftmaxCrossEntropy(CLASSES)) == pytest.approx(plain, rel=1e-12)
    assert of(ObjectnessSoftmax(CLASSES)) == pytest.approx(plain, rel=1e-12)
    assert of(SeesawLoss(CLASSES, p=0.0, q=0.0)) == pytest.approx(plain, rel=1e-12)
    target = F.one_hot(labels, CLASSES).double()
    binary = float(F.binary_cross_entropy_with_logits(logits, target, reduction="sum")) / 6
    assert of(SigmoidCrossEntropy(CLASSES)) == pytest.approx(binary, rel=1e-12)
    assert of(SigmoidCrossEntropy(CLASSES, background_logit=True)) == pytest.approx(binary, rel=1e-12)
    balanced = float(F.cross_entropy(logits + COUNTS.double().log(), labels))
    assert of(BalancedSoftmaxLoss(COUNTS, COUNTS / 400)) == pytest.approx(balanced, rel=1e-6)


def test_softmax_scores_are_those_of_the_classes() -> None:
    own = model().eval()
    images, _, _ = batch()
    features = own.backbone(own.batch(images))
    expected = own.head.classifier(features).softmax(dim=1)
    assert own.head.classifier.num_logits == CLASSES
    assert torch.allclose(own.classify(images), expected, atol=1e-6)


def test_pictures_of_another_size_are_resized_and_floats_are_taken_as_they_are() -> None:
    own = model()
    large = torch.rand(3, 16, 24)
    assert own.batch([large]).shape == (1, 3, 8, 8)
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    assert torch.allclose(own.batch([image]), own.batch([image.float() / 255]), atol=1e-6)


def test_replay_adds_rows_to_the_classifier() -> None:
    images, targets, labels = batch(8)
    plain = model().train().losses(images, targets)["loss_classifier"]
    repeated = model(replay=[ObjectMemory(CLASSES, torch.ones(CLASSES, dtype=torch.bool), count=3, source="current")])
    found = repeated.train().losses(images, targets)
    assert not torch.equal(found["loss_classifier"], plain)
    virtual = VirtualFeatures(CLASSES, SIZE, COUNTS, scale=1e9)
    drawn = model(replay=[virtual]).train().losses(images, targets)
    assert torch.equal(drawn["loss_classifier"], plain)
    assert drawn["loss_replay"] > 0
    assert set(virtual.moments.seen.nonzero().flatten().tolist()) == set(labels.tolist())
    silent = model(replay=[virtual]).train().losses(images, targets, update_state=False)
    assert set(silent) == {"loss_classifier"}


def test_refuses_what_does_not_go_with_pictures() -> None:
    images, targets, _ = batch()
    targets[2] = {"labels": torch.tensor([1, 2])}
    with pytest.raises(UsageError, match="exactly one label"):
        model().losses(images, targets)
    with pytest.raises(UsageError, match="it works with"):
        model(longtail.losses.LDAMLoss(COUNTS), classifier=LinearClassifier)
