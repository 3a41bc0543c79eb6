"""What holds for every image sampler."""

import numpy as np
import pytest

from longtail.sampling import ClassAwareSampler, ImageSampler, RepeatFactorSampler, UniformSampler


def columns(pictures: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    start = np.concatenate(([0], np.cumsum([len(labels) for labels in pictures]))).astype(np.int64)
    return start, np.array([label for labels in pictures for label in labels], dtype=np.int32)


@pytest.mark.parametrize("kind", ["uniform", "rfs", "class-aware"])
def test_an_epoch_is_a_pure_function_of_seed_and_epoch(kind: str) -> None:
    start, labels = columns([[0, 1], [1], [2, 2, 0], [0], []] * 4)

    def make(seed: int) -> ImageSampler:
        if kind == "uniform":
            return UniformSampler(20, seed=seed)
        if kind == "rfs":
            return RepeatFactorSampler(start, labels, 3, seed=seed, threshold=0.9)
        return ClassAwareSampler(start, labels, 3, seed=seed)

    one, other = make(1), make(1)
    later = one.epoch(5)
    assert np.array_equal(one.epoch(2), other.epoch(2))
    assert np.array_equal(later, other.epoch(5))
    assert not np.array_equal(one.epoch(2), one.epoch(3))
    assert not np.array_equal(one.epoch(2), make(2).epoch(2))
    assert not hasattr(one, "set_epoch")
    assert one.describe()


def test_uniform_is_a_permutation() -> None:
    assert sorted(UniformSampler(7, seed=1).epoch(3).tolist()) == list(range(7))


def test_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        UniformSampler(0, seed=0)
