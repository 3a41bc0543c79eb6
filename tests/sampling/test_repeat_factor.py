"""Repeat factor sampling against loops written from the formula."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.sampling import RepeatFactorSampler, repeat_factors

Pictures = list[list[int]]


def columns(pictures: Pictures) -> tuple[np.ndarray, np.ndarray]:
    start = np.concatenate(([0], np.cumsum([len(labels) for labels in pictures]))).astype(np.int64)
    return start, np.array([label for labels in pictures for label in labels], dtype=np.int32)


def oracle(pictures: Pictures, classes: int, t: float, exponent: float, count_empty: bool) -> tuple[list, list]:
    total = len(pictures) if count_empty else sum(1 for labels in pictures if labels)
    factors = []
    for c in range(classes):
        holding = sum(1 for labels in pictures if c in labels)
        factors.append(1.0 if holding == 0 else max(1.0, (t / (holding / total)) ** exponent))
    return factors, [max([1.0] + [factors[c] for c in labels]) for labels in pictures]


worlds = st.integers(1, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes), st.lists(st.lists(st.integers(0, classes - 1), max_size=6), min_size=1, max_size=15)
    )
)


@given(world=worlds, t=st.floats(1e-3, 2), exponent=st.sampled_from([0.5, 1.0, 0.3]), count_empty=st.booleans())
@settings(max_examples=80, deadline=None)
def test_factors_equal_the_loops(world: tuple[int, Pictures], t: float, exponent: float, count_empty: bool) -> None:
    classes, pictures = world
    start, labels = columns(pictures)
    found = repeat_factors(start, labels, classes, threshold=t, exponent=exponent, count_empty=count_empty)
    by_class, by_image = oracle(pictures, classes, t, exponent, count_empty)
    np.testing.assert_allclose(found.class_factors, by_class, rtol=1e-12)
    np.testing.assert_allclose(found.image_factors, by_image, rtol=1e-12)
    assert len(found.image_factors) == len(pictures)


def test_auto_is_the_two_thirds_quantile_of_the_present_classes() -> None:
    start, labels = columns([[0, 0, 1], [0], [0, 2], [0], []])
    found = repeat_factors(start, labels, 4, threshold="auto")
    # sorted 1/5, 1/5, 4/5 at places 0, 1, 2: the quantile is at place 4/3
    assert found.threshold == pytest.approx(1 / 5 + (4 / 5 - 1 / 5) / 3)
    np.testing.assert_allclose(found.class_factors, [1, 2**0.5, 2**0.5, 1])
    assert repeat_factors(start, labels, 4, threshold=0.8).class_factors.tolist() == [1, 2, 2, 1]


def test_stochastic_rounding_has_mean_r() -> None:
    pictures: Pictures = [[0]] * 8 + [[0, 1], [2], []]
    start, labels = columns(pictures)
    sampler = RepeatFactorSampler(start, labels, 3, seed=3, threshold=0.5)
    epochs = 4000
    counts = np.zeros(len(pictures))
    for epoch in range(epochs):
        counts += np.bincount(sampler.epoch(epoch), minlength=len(pictures))
    factors = sampler.factors.image_factors
    assert factors[8] == pytest.approx(math.sqrt(0.5 * 11))
    part = factors - np.floor(factors)
    error = np.sqrt(part * (1 - part) / epochs)
    assert (np.abs(counts / epochs - factors) <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize(("rounding", "expected"), [("ceil", 3), ("round", 2), ("floor", 2)])
def test_fixed_roundings(rounding: str, expected: int) -> None:
    start, labels = columns([[0]] * 9 + [[0, 1], []])
    sampler = RepeatFactorSampler(start, labels, 2, seed=0, threshold=0.5, rounding=rounding)
    assert sampler.factors.image_factors[9] == pytest.approx(math.sqrt(5.5))
    for epoch in range(3):
        counts = np.bincount(sampler.epoch(epoch), minlength=11)
        assert counts[9] == expected
        assert counts[10] == 1


def test_effect_counts_objects_and_warns_when_idle() -> None:
    start, labels = columns([[0]] * 9 + [[0, 1, 1], []])
    sampler = RepeatFactorSampler(start, labels, 2, seed=0, threshold=0.5)
    effect = sampler.effect(np.array(["f", "r"]), ["dog", "axolotl"])
    r = math.sqrt(5.5)
    np.testing.assert_allclose(effect.after, [9 + r, 2 * r])
    np.testing.assert_allclose(effect.before, [10, 2])
    assert effect.epoch_images == pytest.approx(10 + r)
    text = "\n".join(effect.lines())
    assert "axolotl" in text
    assert "rare: 1 classes, 2 objects -> 5 per epoch" in text
    idle = RepeatFactorSampler(start, labels, 2, seed=0, threshold=0.001).effect(np.array(["f", "r"]), ["a", "b"])
    assert not idle.has_effect
    assert "no effect" in idle.lines()[0]


def test_mistakes_are_refused() -> None:
    start, labels = columns([[0]])
    with pytest.raises(ValueError, match="threshold"):
        repeat_factors(start, labels, 1, threshold=0)
    with pytest.raises(ValueError, match="exponent"):
        repeat_factors(start, labels, 1, exponent=-1)
    with pytest.raises(ValueError, match="rounding"):
        RepeatFactorSampler(start, labels, 1, seed=0, rounding="up")  # type: ignore[arg-type]


def test_a_class_counts_once_per_picture_and_empty_pictures_at_either_end_keep_factor_one() -> None:
    start, labels = columns([[], [1, 1, 1, 0], [0], [], [0], []])
    found = repeat_factors(start, labels, 3, threshold=0.5)
    np.testing.assert_allclose(found.class_frequency, [3 / 6, 1 / 6, 0])
    np.testing.assert_allclose(found.class_factors, [1, math.sqrt(3), 1])
    np.testing.assert_allclose(found.image_factors, [1, math.sqrt(3), 1, 1, 1, 1])
    filled = repeat_factors(start, labels, 3, threshold=0.5, count_empty=False)
    np.testing.assert_allclose(filled.class_frequency, [1, 1 / 3, 0])
    nothing = repeat_factors(np.zeros(4, np.int64), labels[:0], 2, threshold="auto")
    assert nothing.class_factors.tolist() == [1, 1]
    assert nothing.image_factors.tolist() == [1, 1, 1]


def test_a_data_set_of_the_size_of_lvis_takes_no_loop() -> None:
    generator = np.random.default_rng(0)
    start = np.concatenate(([0], np.cumsum(generator.poisson(12.7, 100_000))))
    labels = generator.integers(0, 1203, start[-1]).astype(np.int32)
    began = time.process_time()
    found = repeat_factors(start, labels, 1203)
    assert time.process_time() - began < 2
    assert len(found.image_factors) == 100_000
