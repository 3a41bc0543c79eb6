"""Online hard examples against sorting by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.sampling import OnlineHardExamples

LABELS = torch.zeros(4, dtype=torch.int64)


def oracle(matched: list[int], losses: list[float], count: int, fraction: float) -> tuple[list[int], list[int]]:
    """Largest losses first, of equal ones the first candidates; positives, then negatives."""
    ranked = sorted(range(len(matched)), key=lambda i: (-losses[i], i))
    positive = [i for i in ranked if matched[i] >= 0][: int(count * fraction)]
    negative = [i for i in ranked if matched[i] == -1][: count - len(positive)]
    return sorted(positive), sorted(negative)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2, 3), st.integers(0, 5)), max_size=60),
    st.integers(1, 30),
    st.sampled_from([0.25, 0.5, 1.0]),
)
def test_takes_the_hardest_of_each_kind(candidates: list[tuple[int, int]], count: int, fraction: float) -> None:
    matched, losses = [m for m, _ in candidates], [float(v) for _, v in candidates]
    table = torch.tensor(losses)
    positive, negative = OnlineHardExamples(count, fraction)(
        torch.zeros(len(matched)), torch.tensor(matched, dtype=torch.int64), LABELS, None, lambda index: table[index]
    )
    assert (positive.tolist(), negative.tolist()) == oracle(matched, losses, count, fraction)


def test_asks_for_losses_only_where_it_must_choose() -> None:
    asked: list[int] = []

    def loss_of(index: torch.Tensor) -> torch.Tensor:
        asked.extend(index.tolist())
        return index.float()

    matched = torch.tensor([0, -1, -1, -1, -1, -2])
    positive, negative = OnlineHardExamples(3, 0.5)(torch.zeros(6), matched, LABELS, None, loss_of)
    assert positive.tolist() == [0]
    assert negative.tolist() == [3, 4]
    assert asked == [1, 2, 3, 4]


def test_says_that_it_needs_losses() -> None:
    assert OnlineHardExamples.needs_loss
    with pytest.raises(ValueError, match="loss_of"):
        OnlineHardExamples(3, 0.5)(torch.zeros(1), torch.tensor([0]), LABELS, None)
