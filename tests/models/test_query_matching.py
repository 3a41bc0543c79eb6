"""Matching of queries and objects against brute force, hand-computed costs, and one copy to the host."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.models.query_matching import MatchCost, match, pairwise_giou


def cheapest(cost: torch.Tensor) -> float:
    """Cost of the best one-to-one matching, by trying all."""
    rows, columns = cost.shape
    if rows < columns:
        return cheapest(cost.T)
    return min(
        sum(float(cost[row, column]) for column, row in enumerate(chosen))
        for chosen in itertools.permutations(range(rows), columns)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(0, 1000))
def test_every_layer_and_picture_gets_the_cheapest_matching(queries: int, objects: list[int], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    costs = [[torch.rand(queries, count, generator=draw) for count in objects] for _ in range(2)]
    for layer, found in zip(costs, match(costs), strict=True):
        assert len(found.rows) == sum(min(queries, count) for count in objects)
        first_row = first_object = 0
        for own in layer:
            mine = (found.rows >= first_row) & (found.rows < first_row + queries)
            rows, columns = found.rows[mine] - first_row, found.objects[mine] - first_object
            assert ((columns >= 0) & (columns < own.shape[1])).all()
            assert len(set(rows.tolist())) == len(rows) and len(set(columns.tolist())) == len(columns)
            if own.shape[1]:
                assert math.isclose(float(own[rows, columns].sum()), cheapest(own), abs_tol=1e-5)
            first_row, first_object = first_row + queries, first_object + own.shape[1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.booleans(), max_size=4), min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 1000))
def test_objects_without_a_loss_are_matched_apart(marks: list[list[bool]], repeats: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    costs = [[torch.rand(6, len(own), generator=draw) for own in marks] for _ in range(2)]
    flat = [mark for own in marks for mark in own]
    apart = match(costs, repeats=repeats, chosen=torch.tensor(flat, dtype=torch.bool))
    for found, whole in zip(apart, match(costs, repeats=repeats), strict=True):
        pairs = list(zip(whole.rows.tolist(), whole.objects.tolist(), strict=True))
        kept = list(zip(found.rows.tolist(), found.objects.tolist(), strict=True))
        assert kept == [(row, number) for row, number in pairs if flat[number]]
        assert found.others.tolist() == [row for row, number in pairs if not flat[number]]
        assert not len(whole.others)


def test_repeats_give_every_object_several_queries_as_far_as_they_reach() -> None:
    cost = torch.tensor([[0.0, 9.0], [0.1, 9.0], [9.0, 0.0], [9.0, 0.2], [5.0, 5.0]])
    (found,) = match([[cost, torch.rand(5, 0)]], repeats=2)
    assert sorted(zip(found.rows.tolist(), found.objects.tolist(), strict=True)) == [(0, 0), (1, 0), (2, 1), (3, 1)]
    (found,) = match([[torch.rand(5, 2)]], repeats=9)
    assert torch.bincount(found.objects).tolist() == [2, 2]
    with pytest.raises(ValueError, match="at least 1"):
        match([[cost]], repeats=0)


def test_a_diverged_run_is_not_stopped_by_the_matching() -> None:
    (found,) = match([[torch.full((3, 2), float("nan"))]])
    assert len(found.rows) == 2


def test_cost_of_one_pair_by_hand() -> None:
    scores = torch.tensor([[[0.25, 0.5]]])
    predicted = torch.tensor([[[0.5, 0.5, 0.2, 0.4]]])
    wanted = torch.tensor([[0.6, 0.5, 0.2, 0.4]])
    # half of each box is common: IoU 1/3, and the enclosing box is 0.3 x 0.4
    giou = 1 / 3 - (0.12 - 0.12) / 0.12
    classified = 0.25 * 0.5**2 * math.log(2) - 0.75 * 0.5**2 * math.log(2)
    expected = 2 * classified + 5 * 0.1 + 2 * (1 - giou)
    assert math.isclose(float(MatchCost()(scores, predicted, torch.tensor([1]), wanted)), expected, abs_tol=1e-5)


def test_generalised_iou_of_boxes_apart() -> None:
    one, other = torch.tensor([[[0.0, 0.0, 0.2, 0.2]]]), torch.tensor([[0.2, 0.2, 0.4, 0.4]])
    assert math.isclose(float(pairwise_giou(one, other)), -(0.16 - 0.08) / 0.16, abs_tol=1e-5)


def test_all_costs_reach_the_host_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies, original = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(self.numel()) or original(self))
    match([[torch.rand(4, 2), torch.rand(4, 3)], [torch.rand(7, 2), torch.rand(7, 3)]])
    match([[torch.rand(4, 2), torch.rand(4, 1)]], chosen=torch.tensor([True, False, True]))
    assert copies == [4 * 5 + 7 * 5, 4 * 3 + 3]
