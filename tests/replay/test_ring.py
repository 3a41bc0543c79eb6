"""Ring queues against lists."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.replay.ring import RingQueues

quick = settings(max_examples=40, deadline=None)
QUEUES, CAPACITY = 3, 4
FIELDS = {"features": torch.float32, "box": torch.float64}
steps_of_rows = st.lists(st.lists(st.integers(0, QUEUES), max_size=12), max_size=6)


def rings(**options):
    return RingQueues(QUEUES, CAPACITY, FIELDS, **options)


def push(ring, queue, first):
    """Rows numbered from ``first`` on."""
    queue = torch.tensor(queue, dtype=torch.long)
    number = torch.arange(first, first + len(queue), dtype=torch.float32)
    values = {"features": number[:, None].repeat(1, 2).requires_grad_(), "box": number}
    ring.place(values)
    arrivals = ring.arrivals(queue)
    stored, opened = arrivals.numbers.tolist()
    ring.store(arrivals, values, stored=stored, opened=opened)


def content(ring, drawn=None):
    """Numbers of the rows in every queue, oldest first."""
    drawn = ring.fill if drawn is None else drawn
    total = int(drawn.sum())
    queue, slot = ring.newest(drawn, total)
    numbers = ring.read("box", slot, torch.device("cpu")) if total else torch.empty(0)
    return [numbers[queue == q].tolist() for q in range(QUEUES)]


@quick
@given(steps_of_rows, st.booleans())
def test_agrees_with_lists(steps, lazy):
    ring, lists, count = rings(lazy=lazy), [[] for _ in range(QUEUES)], 0
    for queue in steps:
        push(ring, queue, count)
        for row, q in enumerate(queue):
            if q < QUEUES:
                lists[q] = [*lists[q], count + row][-CAPACITY:]
        count += len(queue)
        assert content(ring) == lists
        assert ring.opened == sum(map(len, lists))


def test_newest_rows_in_order_of_arrival():
    ring = rings()
    push(ring, [0, 1, 0, 0, 3, 0, 0, 1], 10)
    assert content(ring, torch.tensor([2, 1, 0])) == [[15, 16], [17], []]


def test_all_fields_belong_together():
    ring = rings()
    push(ring, [0, 2, 0, 0, 0, 0, 2], 5)
    _, slot = ring.newest(ring.fill, 6)
    device = torch.device("cpu")
    assert torch.equal(ring.read("features", slot, device)[:, 1], ring.read("box", slot, device).float())
    assert ring.features.dtype == torch.float32
    assert ring.box.dtype == torch.float64


def test_random_rows_are_drawn_without_replacement():
    ring = rings()
    push(ring, [0] * 9 + [1, 1, 3], 0)
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        queue, slot = ring.random(torch.tensor([3, 2, 0]), 5)
        numbers = ring.read("box", slot, torch.device("cpu")).tolist()
        assert queue.tolist() == [0, 0, 0, 1, 1]
        assert len(set(numbers)) == 5
        assert set(numbers[:3]) <= {5, 6, 7, 8}
        assert set(numbers[3:]) == {9, 10}
        seen.add(frozenset(numbers[:3]))
    assert len(seen) == 4  # every choice of three among four


def test_memory_grows_with_the_rows_or_is_taken_at_once():
    lazy = RingQueues(100, 60, {"features": torch.float32})
    whole = RingQueues(100, 60, {"features": torch.float32}, lazy=False)
    values = {"features": torch.ones(10, 8)}
    for ring in (lazy, whole):
        assert ring.size == 0
        ring.place(values)
        arrivals = ring.arrivals(torch.arange(10))
        ring.store(arrivals, values, stored=10, opened=10)
    assert lazy.size == 64 * 8 * 4
    assert whole.size == 100 * 60 * 8 * 4
    assert lazy.state_dict()["features"].shape == whole.state_dict()["features"].shape == (10, 8)


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("way", ["state", "copy", "pickle", "strict=False"])
def test_a_restored_bank_continues_exactly(way, lazy):
    ring = rings(lazy=lazy)
    push(ring, [0, 1, 1, 0, 0, 3, 0, 0], 0)
    if way == "copy":
        twin = copy.deepcopy(ring)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(ring))
    else:
        twin = rings(lazy=lazy)
        push(twin, [2, 2, 2], 50)  # what it held before is gone
        twin.load_state_dict(ring.state_dict(), strict=way == "state")
    for one in (ring, twin):
        push(one, [2, 1, 1, 1, 0], 20)
    assert content(ring) == content(twin)
    assert ring.opened == twin.opened
    kept, other = ring.state_dict(), twin.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in kept.items())


def test_loading_other_weights_leaves_a_bank_alone():
    ring = rings()
    push(ring, [0, 1], 0)
    ring.load_state_dict({}, strict=False)
    assert content(ring) == [[0], [1], []]


def test_keeps_no_graph_and_declares_everything_per_rank():
    ring = rings()
    push(ring, [0, 1], 0)
    assert not any(buffer.requires_grad for buffer in ring.buffers())
    assert ring.per_rank == set(dict(ring.named_buffers())) == set(ring.state_dict())


@pytest.mark.parametrize(("queues", "capacity"), [(0, 3), (3, 0)])
def test_refuses_nonsense(queues, capacity):
    with pytest.raises(ValueError, match="at least 1"):
        RingQueues(queues, capacity, FIELDS)
