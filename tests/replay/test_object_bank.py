"""RIO's memory bank against queues, and what it does in a region head."""

import copy
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.replay import ObjectMemory, RegionRows

quick = settings(max_examples=30, deadline=None)
C = 5
TARGETED = torch.tensor([True, False, True, True, False])


def regions(labels, first=0, dtype=torch.float32):
    """Rows that can be told apart, numbered from ``first`` on."""
    number = torch.arange(first, first + len(labels), dtype=torch.float32).unsqueeze(1)
    return RegionRows(
        features=number.repeat(1, 3).to(dtype).requires_grad_(),
        labels=torch.tensor(labels, dtype=torch.long),
        proposals=number.repeat(1, 4) + 0.25,
        gt_boxes=number.repeat(1, 4) + 0.5,
        gt_index=torch.zeros(len(labels), dtype=torch.long),
        image_index=torch.arange(len(labels)) % 2,
    )


def pool(boxes):
    """Never needed: the features are already there."""
    raise AssertionError("ObjectMemory does not pool")


def step(part, rows, update_state=True):
    return part.step(rows, [], pool, update_state)


def numbers(extra):
    """(label, number) of the added rows."""
    if extra is None:
        return []
    assert torch.equal(extra.proposals, extra.features[:, :1] + 0.25 + torch.zeros(4))
    assert torch.equal(extra.gt_boxes, extra.features[:, :1] + 0.5 + torch.zeros(4))
    return list(zip(extra.labels.tolist(), extra.features[:, 0].tolist(), strict=True))


@quick
@given(
    st.lists(st.lists(st.integers(0, C), max_size=14), min_size=1, max_size=8),
    st.integers(1, 6),
    st.integers(1, 6),
    st.booleans(),
)
def test_agrees_with_queues(steps, count, capacity, lazy):
    """Sample before push, class by class, the newest rows, oldest of them first."""
    part = ObjectMemory(C, TARGETED, count=count, capacity=capacity, lazy=lazy)
    queues, first = {c: deque(maxlen=capacity) for c in (0, 2, 3)}, 0
    for labels in steps:
        wanted = [(c, row) for c, queue in queues.items() if c in labels for row in list(queue)[-count:]]
        extra = step(part, regions(labels, first))
        assert numbers(extra) == wanted
        assert extra is None or (torch.equal(extra.weight, torch.ones(len(wanted))) and (extra.gt_index == -1).all())
        for row, label in enumerate(labels):
            if label in queues:
                queues[label].append(first + row)
        first += len(labels)


def test_random_rows_are_of_the_bank_and_never_twice():
    filled = ObjectMemory(C, TARGETED, count=3, capacity=10, draw="random")
    step(filled, regions([0] * 6 + [2, 2]))
    seen = set()
    for seed in range(40):
        part = copy.deepcopy(filled)
        torch.manual_seed(seed)
        found = numbers(step(part, regions([2, 0, 1], 50)))
        assert [label for label, _ in found] == [0, 0, 0, 2, 2]
        assert len(set(found)) == 5
        assert {row for _, row in found[:3]} <= set(range(6))
        seen.add(frozenset(found[:3]))
    assert len(seen) > 10  # of the 20 choices


def test_the_first_visit_adds_nothing_and_no_row_of_this_step_comes_back():
    part = ObjectMemory(C, TARGETED)
    assert step(part, regions([0, 0, 2, 5])) is None
    assert numbers(step(part, regions([2, 0, 0, 5], first=10))) == [(0, 0.0), (0, 1.0), (2, 2.0)]
    assert part.bank.fill.tolist() == [4, 2, 0]


def test_published_values():
    part = ObjectMemory(C, TARGETED)
    assert (part.count, part.capacity, part.draw, part.source) == (20, 60, "newest", "bank")
    for first in range(0, 200, 100):
        step(part, regions([0] * 100, first))
    assert numbers(step(part, regions([0], 900))) == [(0, float(n)) for n in range(180, 200)]
    assert part.bank.fill.tolist() == [60, 0, 0]


@pytest.mark.parametrize("targeted", [TARGETED, torch.zeros(C, dtype=torch.bool)])
def test_switched_off_stores_nothing(targeted):
    part = ObjectMemory(C, targeted, count=0 if targeted.any() else 20)
    assert step(part, regions([0, 2])) is None
    assert step(part, regions([0, 2])) is None
    assert part.bank is None or not part.bank.pushed.any()


def test_without_update_state_nothing_is_drawn_stored_or_counted():
    part = ObjectMemory(C, TARGETED, draw="random")
    step(part, regions([0, 2]))
    kept, random_state = {k: v.clone() for k, v in part.state_dict().items()}, torch.get_rng_state()
    assert step(part, regions([0, 2]), update_state=False) is None
    assert all(torch.equal(value, part.state_dict()[name]) for name, value in kept.items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_bfloat16_features_survive_the_bank():
    part = ObjectMemory(C, TARGETED)
    rows = regions([0, 0], 3, dtype=torch.bfloat16)
    step(part, rows)
    extra = step(part, rows)
    assert extra.features.dtype == torch.bfloat16
    assert torch.equal(extra.features, rows.features.detach())


def test_one_wait_for_the_device(monkeypatch):
    """How many rows come back depends on the data, so one answer has to reach the host, but only one."""
    part = ObjectMemory(C, TARGETED)
    step(part, regions([0, 2, 5]))
    waits = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: waits.append(1) or tolist(self))
    for name in ("item", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("waited for the device"))
    assert step(part, regions([0, 3, 2, 5])) is not None
    assert len(waits) == 1


def test_the_checkpoint_holds_filled_slots_only():
    part = ObjectMemory(1000, torch.ones(1000, dtype=torch.bool), lazy=False)
    step(part, regions([3, 3, 7]))
    state = part.state_dict()
    assert state["bank.features"].shape == (3, 3)
    assert part.bank.size == 1000 * 60 * (3 + 8) * 4  # the formula of the page
    twin = ObjectMemory(1000, torch.ones(1000, dtype=torch.bool), lazy=False)
    twin.load_state_dict(state)
    assert numbers(step(twin, regions([7, 3], 50))) == numbers(step(part, regions([7, 3], 50)))
