from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import (
    ClassificationLoss,
    LogitAdjustedLoss,
    ObjectnessSoftmax,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
)
from longtail.models import (
    RCNN,
    CosineClassifier,
    LinearClassifier,
    adjust_logits,
    faster_rcnn,
    tau_normalise,
    tiny32,
)
from longtail.models.rcnn import ClassifierFactory
from longtail.schema import UsageError

COUNTS = torch.tensor([3, 200, 5000])


def detector(loss: ClassificationLoss | None = None, classifier: ClassifierFactory = LinearClassifier) -> RCNN:
    torch.manual_seed(0)
    model = faster_rcnn(
        tiny32(fpn_channels=8), num_classes=3, classification_loss=loss, classifier=classifier, embedding_size=16
    )
    return model.eval()


def scores(model: RCNN, features: torch.Tensor) -> torch.Tensor:
    """As the box stage makes them when detecting, from embedded features."""
    logits = model.box.classifier.detection_logits(features, 3)
    if model.box.adjustment is not None:
        logits = model.box.adjustment(logits)
    return model.box.classification_loss.scores(logits)


def softmax(values: list[float]) -> list[float]:
    total = math.fsum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.3, 1.0]), st.booleans(), st.booleans())
def test_tau_normalise(seed: int, tau: float, keep_bias: bool, keep_background: bool) -> None:
    model = detector()
    features = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
    before = scores(model, features)
    tau_normalise(model, tau=tau, keep_bias=keep_bias, keep_background=keep_background)
    after = scores(model, features)
    weight, bias = model.box.classifier.weight.tolist(), model.box.classifier.bias.tolist()
    for row, plain, found in zip(features.tolist(), before.tolist(), after.tolist(), strict=True):
        dots = [math.fsum(a * b for a, b in zip(row, w, strict=True)) for w in weight]
        norms = [math.sqrt(math.fsum(v * v for v in w)) for w in weight]
        z = [dots[c] / norms[c] ** tau + (bias[c] if keep_bias else 0.0) for c in range(3)] + [dots[3] + bias[3]]
        if keep_background:
            wanted = [(1 - plain[3]) * p for p in softmax(z[:3])] + [plain[3]]
        else:
            wanted = softmax(z)
        assert found == pytest.approx(wanted, rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_adjust_logits_divides_by_the_prior_and_keeps_the_background(seed: int, tau: float) -> None:
    for loss in (SoftmaxCrossEntropy(3), ObjectnessSoftmax(3), LogitAdjustedLoss(COUNTS)):
        model = detector(loss)
        features = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed)) * 3
        before = scores(model, features)
        adjust_logits(model, COUNTS, tau=tau)
        after = scores(model, features)
        for plain, found in zip(before.tolist(), after.tolist(), strict=True):
            share = [plain[c] / COUNTS[c].item() ** tau for c in range(3)]
            foreground = 1 - plain[3]
            assert found == pytest.approx([foreground * s / sum(share) for s in share] + [plain[3]], rel=1e-4, abs=1e-6)


def test_without_keeping_the_background_the_priors_have_geometric_mean_one() -> None:
    model = detector()
    features = torch.randn(4, 16)
    logits = model.box.classifier(features)
    adjust_logits(model, COUNTS, keep_background=False)
    assert model.box.adjustment is not None
    logs = COUNTS.double().log()
    moved = (logits - model.box.adjustment(logits))[0]
    torch.testing.assert_close(moved, torch.cat([logs - logs.mean(), torch.zeros(1)]).float())


def test_a_model_that_learnt_with_the_prior_equals_one_adjusted_afterwards() -> None:
    """Trained logits z + log pi of plain cross-entropy are z of the adjusted loss: the same foreground ranking."""
    logits = torch.randn(5, 4)
    adjusted = LogitAdjustedLoss(COUNTS)
    model = detector()
    adjust_logits(model, COUNTS, keep_background=False)
    assert model.box.adjustment is not None
    torch.testing.assert_close(model.box.adjustment(logits + adjusted.offset), logits)


def test_neither_changes_what_is_saved_or_trained() -> None:
    model = detector()
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    target = {"boxes": torch.tensor([[4.0, 4.0, 30.0, 40.0]]), "labels": torch.tensor([1]), "draw_seed": 1}
    picture = torch.rand(3, 64, 64)
    before = model.losses([picture], [target])
    plain = model.detect([picture])[0]["scores"]
    for change in (lambda: tau_normalise(model, tau=1.0), lambda: adjust_logits(model, COUNTS, tau=3.0)):
        change()
        assert model.state_dict().keys() == saved.keys()
        assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
        after = model.losses([picture], [target])
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not torch.equal(model.detect([picture])[0]["scores"], plain), "detections do change"


def test_refuses_what_has_no_meaning() -> None:
    with pytest.raises(UsageError, match="'linear', the model has 'cosine'"):
        tau_normalise(detector(classifier=CosineClassifier))
    with pytest.raises(UsageError, match="SigmoidCrossEntropy"):
        tau_normalise(detector(SigmoidCrossEntropy(3)))
    with pytest.raises(UsageError, match="SigmoidCrossEntropy"):
        adjust_logits(detector(SigmoidCrossEntropy(3)), COUNTS)
    with pytest.raises(UsageError, match="2 classes, the model has 3"):
        adjust_logits(detector(), COUNTS[:2])
    with pytest.raises(UsageError, match="tau must be >= 0"):
        adjust_logits(detector(), COUNTS, tau=-1.0)
