"""The mean score of every class against the specification's recursion, object by object."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtail.losses import MeanScore, ObjectnessSoftmax

C = 4


@dataclass(frozen=True)
class Rows:
    labels: Tensor
    gt_index: Tensor
    image_index: Tensor


def case(seed: int, count: int = 40) -> tuple[Rows, Tensor]:
    """Regions of three images with two objects each, and rows that came from elsewhere; a third is background."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(-1, 3, (count,), generator=generator)
    own = torch.randint(0, 2, (count,), generator=generator)
    label_of = torch.randint(0, C, (3, 2), generator=generator)
    labels = torch.where(image >= 0, label_of[image, own], torch.randint(0, C, (count,), generator=generator))
    background = (torch.rand(count, generator=generator) < 0.3) & (image >= 0)
    labels = torch.where(background, C, labels)
    own = torch.where(background | (image < 0), -1, own)
    logits = torch.randn(count, C + 1, generator=generator, dtype=torch.float64) * 2
    return Rows(labels, own, image), logits


def oracle(value: list[float], rows: Rows, logits: Tensor, alpha: float) -> list[float]:
    """The paper's recursion, one observation after the other; each class applies the mean of its own."""
    seen: dict[tuple[int, ...], list[float]] = {}
    for i, label in enumerate(rows.labels.tolist()):
        if label == C:
            continue
        image, own = int(rows.image_index[i]), int(rows.gt_index[i])
        key = (label, image, own) if image >= 0 else (label,)
        seen.setdefault(key, []).append(float(torch.softmax(logits[i], 0)[label]))
    found = list(value)
    for label in range(C):
        means = [sum(v) / len(v) for key, v in seen.items() if key[0] == label]
        for _ in means:
            found[label] = alpha * found[label] + (1 - alpha) * sum(means) / len(means)
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.8, 0.9])
def test_follows_the_recursion(alpha: float) -> None:
    score, expected = MeanScore(C, alpha=alpha), [0.01] * (C + 1)
    for seed in range(4):
        rows, logits = case(seed)
        score.after_logits(rows, logits, True)
        expected = oracle(expected, rows, logits, alpha)
        torch.testing.assert_close(score.value, torch.tensor(expected))
    assert score.value[-1] == torch.tensor(0.01)


def test_by_hand() -> None:
    """Two regions of one object are one observation, two replayed rows of a class too, another object a second one."""
    score = MeanScore(2, alpha=0.5, initial=0.2, background=0.3)
    p = torch.tensor([[0.5, 0.1, 0.4], [0.7, 0.1, 0.2], [0.1, 0.1, 0.8], [0.2, 0.4, 0.4], [0.2, 0.6, 0.2]])
    rows = Rows(torch.tensor([0, 0, 2, 1, 1]), torch.tensor([0, 0, -1, -1, -1]), torch.tensor([0, 0, 0, -1, -1]))
    score.after_logits(rows, p.log(), True)
    torch.testing.assert_close(score.value, torch.tensor([0.5 * 0.2 + 0.5 * 0.6, 0.5 * 0.2 + 0.5 * 0.5, 0.3]))
    rows = Rows(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0, 0]))
    score.after_logits(rows, p[:2].log(), True)
    torch.testing.assert_close(score.value[0], torch.tensor(0.25 * 0.4 + 0.75 * 0.6))


@given(st.integers(0, 1000), st.integers(0, 30))
@settings(max_examples=20, deadline=None)
def test_does_not_depend_on_the_order(seed: int, count: int) -> None:
    rows, logits = case(seed, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    mixed = replace(rows, **{field.name: getattr(rows, field.name)[order] for field in fields(rows)})
    first, second = MeanScore(C), MeanScore(C)
    first.after_logits(rows, logits, True)
    second.after_logits(mixed, logits[order], True)
    torch.testing.assert_close(first.value, second.value, rtol=1e-6, atol=0)
    assert torch.equal(first.rows, second.rows)
    assert torch.equal(first.hits, second.hits)


def test_classes_without_rows_and_the_background_stay() -> None:
    score = MeanScore(C)
    score.after_logits(Rows(torch.tensor([1]), torch.tensor([0]), torch.tensor([0])), torch.zeros(1, C + 1), True)
    assert (score.value != 0.01).tolist() == [False, True, False, False, False]
    kept = score.value.clone()
    rows, logits = case(0)
    score.after_logits(rows, logits, False)
    assert torch.equal(score.value, kept)


def test_counts_hits_of_this_steps_regions() -> None:
    rows, logits = case(1)
    score = MeanScore(C)
    score.after_logits(rows, logits, True)
    own, right = rows.image_index >= 0, logits.argmax(1) == rows.labels
    for label in range(C):
        assert score.rows[label] == (own & (rows.labels == label)).sum()
        assert score.hits[label] == (own & right & (rows.labels == label)).sum()
    kept = score.value.clone()
    score.restart()
    assert not score.rows.any()
    assert not score.hits.any()
    assert torch.equal(score.value, kept)


def test_scores_of_another_loss() -> None:
    loss = ObjectnessSoftmax(num_classes=C)
    score = MeanScore(C, alpha=0.0, scores=loss.scores)
    logits = torch.randn(1, loss.num_logits)
    score.after_logits(Rows(torch.tensor([2]), torch.tensor([0]), torch.tensor([0])), logits, True)
    torch.testing.assert_close(score.value[2], loss.scores(logits)[0, 2])


@pytest.mark.parametrize(
    "wrong", [{"num_classes": 0}, {"alpha": 1.0}, {"alpha": -0.1}, {"background": 0.0}, {"initial": 0.0}]
)
def test_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MeanScore(**({"num_classes": C} | wrong))
