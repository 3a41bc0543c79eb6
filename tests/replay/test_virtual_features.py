"""FASA: moments, draws and probabilities as the specification has them."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from longtail.replay import RegionRows, VirtualFeatures
from longtail.replay.base import number_parts
from longtail.replay.virtual_features import draw_source, initial_probabilities

COUNTS = torch.tensor([1, 4, 100, 0])


def rows(labels: list[int], size: int = 3, seed: int = 0) -> RegionRows:
    generator = torch.Generator().manual_seed(seed)
    count = len(labels)
    boxes = torch.rand(count, 4, generator=generator)
    index = torch.zeros(count, dtype=torch.long)
    features = torch.randn(count, size, generator=generator, requires_grad=True)
    return RegionRows(features, torch.tensor(labels, dtype=torch.long), boxes, boxes, index, index)


def part(**options) -> VirtualFeatures:
    return VirtualFeatures(4, 3, COUNTS, **{"scale": 1e9, "power": 1.0, **options})


def step(given: VirtualFeatures, labels: list[int], seed: int = 0, update: bool = True):
    return given.step(rows(labels, seed=seed), [{"draw_seed": 100 + seed}], lambda boxes: boxes, update)


def test_initial_probabilities_by_hand() -> None:
    total = 1 + 1 / 4 + 1 / 100
    found = initial_probabilities(COUNTS, scale=0.5, power=1.0)
    assert found.tolist() == pytest.approx([0.5 / total, 0.125 / total, 0.005 / total, 0.0])
    assert initial_probabilities(COUNTS, scale=1.0, power=0.5).tolist() == pytest.approx(
        [math.sqrt(share / total) for share in (1, 1 / 4, 1 / 100)] + [0.0]
    )
    assert initial_probabilities(COUNTS, scale=50.0, power=1.0).tolist()[:2] == [1.0, 1.0]
    assert initial_probabilities(torch.zeros(3), scale=1.0, power=1.0).tolist() == [0.0, 0.0, 0.0]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30), st.floats(0, 1))
def test_the_scale_is_the_number_expected(counts, scale) -> None:
    found = initial_probabilities(torch.tensor(counts), scale=scale, power=1.0)
    assert found.sum().item() == pytest.approx(scale if any(counts) else 0.0)
    assert ((found >= 0) & (found <= 1)).all()


def test_rows_are_drawn_from_the_moments() -> None:
    one = part()
    extra = step(one, [2, 0, 0, 4, 2])
    assert extra.labels.tolist() == [0, 2]  # classes 1 and 3 have not been seen; 4 is background
    generator = draw_source([{"draw_seed": 100}])
    torch.rand(4, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 3, generator=generator)
    for place, c in enumerate([0, 2]):
        expected = one.moments.mean[c] + one.moments.var[c].sqrt() * noise[place]
        assert torch.equal(extra.features[place], expected)
    assert not extra.joins_normaliser and not extra.trains_box and not extra.updates_loss_state
    assert extra.loss_weight == 0.1
    assert not extra.features.requires_grad


def test_a_class_seen_once_gives_its_mean() -> None:
    one = part()
    extra = step(one, [1])
    assert torch.equal(extra.features, one.moments.mean[[1]])
    assert torch.equal(extra.features[0], rows([1]).features[0].detach())


def test_draws_follow_the_probabilities() -> None:
    one = part(scale=1.0)
    one.prob.copy_(torch.tensor([0.5, 0.25, 1.0, 0.0]))
    found = torch.zeros(4)
    for seed in range(400):
        extra = step(one, [0, 1, 2, 3], seed=seed)
        found[extra.labels] += 1
    share = (found / 400).tolist()
    assert share[2:] == [1.0, 0.0]
    for value, wanted in zip(share, (0.5, 0.25), strict=False):
        assert abs(value - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / 400)


def test_warm_up_collects_moments_only() -> None:
    one = part(warmup_steps=2)
    assert step(one, [0, 1]) is None
    assert step(one, [0, 1]) is None
    assert one.moments.seen.tolist() == [True, True, False, False]
    assert step(one, [4]).labels.tolist() == [0, 1]
    assert int(one.steps) == 3


def test_draws_depend_on_the_step_alone() -> None:
    one, other = part(), part()
    step(one, [0, 0, 1, 1, 2, 2])
    step(other, [0, 0, 1, 1, 2, 2])
    torch.rand(17)  # nothing else that draws matters
    first, second = step(one, [4], seed=5), step(other, [4], seed=5)
    assert torch.equal(first.features, second.features)
    assert not torch.equal(step(one, [4], seed=6).features, second.features)


def test_parts_of_one_detector_draw_apart_and_the_first_as_if_alone() -> None:
    alone, parts = part(), [part(), nn.Identity(), part(), part()]
    number_parts(parts)
    stacked = [parts[0], parts[2], parts[3]]
    for each in (alone, *stacked):
        assert step(each, [0, 0, 1, 1, 2, 2]) is not None
    first = step(alone, [4], seed=5).features
    features = [step(each, [4], seed=5).features for each in stacked]
    assert torch.equal(features[0], first)
    assert not any(torch.equal(one, other) for one, other in combinations(features, 2))
    chances = [torch.rand(50, generator=draw_source([{"draw_seed": 5}], number)) for number in range(3)]
    assert len({tuple((own < 0.5).tolist()) for own in chances}) == 3


def test_a_pass_in_evaluation_mode_is_no_step() -> None:
    one = part()
    step(one, [0, 1, 2])
    before = {name: value.clone() for name, value in one.state_dict().items()}
    assert step(one.eval(), [0, 1, 2], seed=1) is None
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    assert step(one.train(), [0, 1, 2], seed=1) is not None
    assert int(one.steps) == 2


def update_loop(prob, previous, current, groups, *, alpha=1.1, beta=0.9, norm):
    """Group by group and class by class."""
    found = list(prob)
    for g in sorted(set(groups) - {-1}):
        own = [c for c in range(len(prob)) if groups[c] == g]
        if norm == "total":
            changes = [current[c] - previous[c] for c in own]
            delta = sum(changes)
        else:
            both = [c for c in own if current[c] is not None and previous[c] is not None]
            changes = [current[c] - previous[c] for c in both]
            delta = sum(changes) / len(both) if both else 0.0
        assume(abs(delta) > 1e-9 or not any(changes))  # where changes cancel, rounding decides
        factor = beta if delta > 0 else alpha if delta < 0 else 1.0
        for c in own:
            found[c] = min(max(found[c] * factor, 0.0), 1.0)
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), min_size=4, max_size=4),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), min_size=4, max_size=4),
    st.sampled_from(["class_mean", "total"]),
)
def test_adapt_is_the_loop(groups, before, after, norm) -> None:
    one = VirtualFeatures(4, 3, COUNTS, scale=1.0, grouping="frequency", groups=torch.tensor(groups), norm=norm)
    prob = one.prob.tolist()
    losses = []
    for given_round in (before, after):
        total = [float(value) if count else 0.0 for value, count in given_round] + [7.0]
        count = [float(count) for _, count in given_round] + [2.0]
        one.adapt(torch.tensor(total, dtype=torch.float64), torch.tensor(count, dtype=torch.float64))
        if norm == "total":
            losses.append([value / sum(count) for value in total[:4]])
        else:
            losses.append([value / n if n else None for value, n in zip(total[:4], count[:4], strict=True)])
        if len(losses) == 1:
            assert one.prob.tolist() == prob  # the first round only sets what is compared with
    assert one.prob.tolist() == pytest.approx(update_loop(prob, *losses, groups, norm=norm), rel=1e-12)


def test_probabilities_stay_in_bounds() -> None:
    one = part()
    one.prob.copy_(torch.tensor([0.95, 0.5, 1e-9, 0.0]))
    for losses in ([9, 9, 9, 9, 9], [8, 8, 8, 8, 9], [7, 7, 7, 7, 9]):
        one.adapt(torch.tensor(losses, dtype=torch.float64), torch.ones(5))
    assert one.prob.tolist() == pytest.approx([0.95, 0.5, 1e-9, 0.0])  # nothing seen: no groups
    step(one, [0, 0, 1, 1, 2, 2, 3, 3])
    for _ in range(3):
        one.adapt(torch.zeros(5, dtype=torch.float64), torch.ones(5))
    assert one.prob.tolist() == pytest.approx([1.0, 0.55, 1.1e-9, 0.0])  # once better, then equal


def test_static_sampling_never_changes() -> None:
    one = part(raise_factor=1.0, lower_factor=1.0)
    step(one, [0, 1, 2, 3])
    kept = one.prob.clone()
    for value in (5.0, 3.0, 4.0):
        one.adapt(torch.full((5,), value, dtype=torch.float64), torch.ones(5))
    assert torch.equal(one.prob, kept)


@pytest.mark.parametrize(
    "wrong",
    [{"scale": -1.0}, {"power": -1.0}, {"loss_weight": -0.1}, {"warmup_steps": -1}, {"raise_factor": 0.9},
     {"lower_factor": 0.0}, {"lower_factor": 1.1}, {"groups": torch.zeros(3)}],
)  # fmt: skip
def test_refuses(wrong) -> None:
    with pytest.raises(ValueError, match="must"):
        part(**wrong)


def test_rounds_before_the_warm_up_is_over_move_nothing() -> None:
    one = part(scale=0.5, warmup_steps=2, grouping="none")
    before = one.prob.clone()
    for loss, factor in ((4.0, 1.0), (3.0, 1.0), (2.0, 1.1)):
        one.adapt(torch.full((5,), loss, dtype=torch.float64), torch.ones(5))
        assert torch.allclose(one.prob[:1], before[:1] * factor)
        step(one, [0])
