"""How scenes are planned and composed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.data.scenes import ScenePlan, assign, background, compose, geometric_profile, steepest_profile
from longtail.schema import UsageError


@given(
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    images=st.integers(20, 40),
    seed=st.integers(0, 3),
)
@settings(max_examples=50, deadline=None)
def test_assignment_hits_every_count(counts: list[int], images: int, seed: int) -> None:
    held = assign(np.array(counts), images, np.random.default_rng(seed))
    found = Counter(label for labels in held for label in labels)
    assert [found[c] for c in range(len(counts))] == counts
    assert all(len(set(labels)) == len(labels) for labels in held)
    loads = [len(labels) for labels in held]
    assert max(loads) - min(loads) <= max(1, len([c for c in counts if c == max(counts)]))


class Squares:
    """Paints full squares and remembers how large they were."""

    def __init__(self) -> None:
        self.areas: dict[int, int] = {}

    def names(self) -> list[str]:
        return ["square"]

    def paint(self, label: int, side: int, generator: np.random.Generator):
        self.areas[label] = side * side  # asked again, with a smaller side, when it does not fit
        return np.zeros((side, side, 3), np.uint8), np.ones((side, side), bool)


@given(seed=st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_objects_keep_enough_of_themselves_visible(seed: int) -> None:
    painter = Squares()
    canvas, masks = compose(range(9), 64, painter, np.random.default_rng(seed), (0.2, 0.5))
    assert len(masks) == 9
    assert all(mask.sum() >= 0.45 * painter.areas[label] for label, mask in enumerate(masks))
    assert (canvas[np.any(masks, axis=0)] == 0).all()


def test_too_many_objects_are_refused_instead_of_tried_for_ever() -> None:
    with pytest.raises(UsageError, match="500 objects have no room in a picture of 32 x 32 pixels"):
        compose(range(500), 32, Squares(), np.random.default_rng(0), (0.2, 0.4))


@given(classes=st.integers(1, 400), images=st.integers(20, 2000), per_image=st.floats(1, 9), least=st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_the_steepest_profile_that_fits(classes: int, images: int, per_image: float, least: int) -> None:
    most = steepest_profile(classes, images, least=least, per_image=per_image)
    assert least <= most <= images // 2
    if most > least:
        assert geometric_profile(classes, most, least).sum() <= images * per_image
    if most < images // 2:
        assert geometric_profile(classes, most + 1, least).sum() > images * per_image


def test_a_vocabulary_of_the_size_of_lvis_is_assigned_exactly() -> None:
    most = steepest_profile(1203, 4000, least=1, per_image=6.5)
    plan = ScenePlan(
        size=192, classes=1203, train_images=4000, val_images=1000, min_objects=4, max_objects=9, most=most, least=1,
        val_images_per_class=7, edges=(10, 100),
    )  # fmt: skip
    counts = plan.profile()
    held = assign(counts, plan.train_images, np.random.default_rng(0))
    assert np.array_equal(np.bincount([c for labels in held for c in labels], minlength=1203), counts)
    assert max(len(labels) for labels in held) <= 9


def test_a_background_is_coloured_noise() -> None:
    picture = background(48, np.random.default_rng(0))
    assert picture.shape == (48, 48, 3)
    assert picture.dtype == np.uint8
    assert picture.reshape(-1, 3).std(axis=0).min() > 10
