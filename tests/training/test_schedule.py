"""Learning rates and lengths."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.schema.stage import Schedule
from longtail.training.schedule import learning_rate_factor, total_images, total_steps


def test_lengths_in_images_and_epochs() -> None:
    assert total_images(Schedule(epochs=2.5), 100) == 250
    assert total_images(Schedule(images=77), 100) == 77
    assert total_steps(Schedule(images=77, batch_size=4), 100) == 20


def test_steps_and_warmup_by_hand() -> None:
    schedule = Schedule(
        images=1000,
        batch_size=10,
        warmup_images=100,
        warmup_factor=0.1,
        decay="steps",
        milestones=(0.5, 0.8),
        gamma=0.1,
    )
    factors = [learning_rate_factor(schedule, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[5] == pytest.approx(0.1 + 0.9 * 0.5)
    assert factors[10] == 1
    assert factors[49] == 1
    assert factors[50] == pytest.approx(0.1)
    assert factors[80] == pytest.approx(0.01)


def test_cosine_ends_at_its_floor() -> None:
    schedule = Schedule(images=1000, batch_size=10, decay="cosine", final_factor=0.02)
    assert learning_rate_factor(schedule, 0, 100) == 1
    assert learning_rate_factor(schedule, 50, 100) == pytest.approx(0.51)
    assert learning_rate_factor(schedule, 99, 100) == pytest.approx(0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * 0.99)))


@given(
    steps=st.integers(1, 500),
    warmup=st.integers(0, 400),
    decay=st.sampled_from(["constant", "steps", "cosine"]),
    at=st.floats(0, 0.999),
)
@settings(max_examples=60, deadline=None)
def test_the_factor_stays_between_zero_and_one(steps: int, warmup: int, decay: str, at: float) -> None:
    schedule = Schedule(images=steps, batch_size=1, warmup_images=warmup, decay=decay, milestones=(0.3, 0.6))
    assert 0 <= learning_rate_factor(schedule, int(at * steps), steps) <= 1
