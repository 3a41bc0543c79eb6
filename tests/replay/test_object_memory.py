"""RIO's replay of the current regions, against loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.replay import ObjectMemory, RegionRows, targeted_classes

quick = settings(max_examples=40, deadline=None)


def regions(labels, width=4):
    """Rows that can be told apart: row i has features i, proposal i + 100, ground truth i + 200."""
    count = len(labels)
    number = torch.arange(count, dtype=torch.float32).unsqueeze(1)
    return RegionRows(
        features=number.repeat(1, width).requires_grad_(),
        labels=torch.tensor(labels, dtype=torch.long),
        proposals=number.repeat(1, 4) + 100,
        gt_boxes=number.repeat(1, 4) + 200,
        gt_index=torch.zeros(count, dtype=torch.long),
        image_index=torch.arange(count) % 2,
    )


def pool(boxes):
    """Never needed: the features are already there."""
    raise AssertionError("ObjectMemory does not pool")


def step(part, rows, update_state=True):
    return part.step(rows, [], pool, update_state)


def repeating(*arguments, **options):
    """The form without a bank."""
    return ObjectMemory(*arguments, source="current", **options)


def oracle(labels, targeted, count):
    """Indices of the repeated rows: class by class, each cycling through its own rows."""
    indices = []
    for c, wanted in enumerate(targeted):
        own = [i for i, y in enumerate(labels) if y == c]
        if wanted and own:
            indices += [own[k % len(own)] for k in range(count)]
    return indices


@quick
@given(
    st.lists(st.integers(0, 6), max_size=30),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.integers(0, 25),
)
def test_agrees_with_loops(labels, targeted, count):
    part = repeating(6, torch.tensor(targeted), count=count)
    rows = regions(labels)
    extra = step(part, rows)
    indices = oracle(labels, targeted, count)
    if not indices:
        assert extra is None
        return
    at = torch.tensor(indices)
    assert torch.equal(extra.features, rows.features.detach()[at])
    assert torch.equal(extra.labels, rows.labels[at])
    assert torch.equal(extra.proposals, rows.proposals[at])
    assert torch.equal(extra.gt_boxes, rows.gt_boxes[at])
    assert torch.equal(extra.weight, torch.ones(len(at)))
    assert (extra.gt_index == -1).all()
    assert (extra.image_index == -1).all()


def test_every_present_class_gets_the_same_number_of_rows():
    """A class counts once, however many regions or images carry it."""
    part = repeating(4, torch.tensor([True, True, True, False]), count=20)
    extra = step(part, regions([0] * 30 + [1] + [3] * 5 + [4] * 40))
    assert extra.labels.bincount(minlength=5).tolist() == [20, 20, 0, 0, 0]


def test_cycles_through_the_rows_of_a_class():
    part = repeating(2, torch.tensor([False, True]), count=5)
    assert step(part, regions([1, 2, 1, 0, 1])).features[:, 0].tolist() == [0, 2, 4, 0, 2]


def test_joins_the_mean_and_trains_boxes():
    extra = step(repeating(1, torch.tensor([True])), regions([0]))
    assert extra.joins_normaliser
    assert extra.trains_box
    assert extra.replaces is None
    assert extra.second_labels is None
    assert extra.labels.shape == (20,)  # published count


@pytest.mark.parametrize("labels", [[], [5, 5], [0, 1], [3, 4, 5]])
def test_nothing_to_repeat(labels):
    targeted = torch.tensor([False, False, True, False, False])
    assert step(repeating(5, targeted), regions(labels)) is None


def test_count_zero_is_nothing():
    assert step(repeating(2, torch.tensor([True, True]), count=0), regions([0, 1, 2])) is None


def test_nothing_without_update_state():
    assert step(repeating(2, torch.tensor([True, True])), regions([0, 1]), update_state=False) is None


def test_repeated_rows_train_the_last_layer_only():
    torch.manual_seed(0)
    rows = regions([0, 2, 0])
    last = torch.nn.Linear(4, 3)
    extra = step(repeating(2, torch.tensor([True, False]), count=3), rows)
    torch.nn.functional.cross_entropy(last(extra.features), extra.labels).backward()
    assert rows.features.grad is None
    assert (last.weight.grad != 0).any()


def test_one_wait_for_the_device(monkeypatch):
    """The number of rows depends on the data, so one answer has to reach the host, but only one."""
    part, waits = repeating(6, torch.ones(6, dtype=torch.bool)), []
    nonzero = torch.Tensor.nonzero
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda self: waits.append(1) or nonzero(self))
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("waited for the device"))
    step(part, regions([0, 3, 3, 6, 1]))
    assert len(waits) == 1


def test_targeted_classes():
    counts = torch.tensor([1, 30, 31, 1000, 0])
    assert targeted_classes(counts).tolist() == [True, True, False, False, True]
    assert targeted_classes(counts, threshold=10).tolist() == [True, False, False, False, True]
    assert torch.equal(targeted_classes(counts.numpy()), targeted_classes(counts.tolist()))
    assert targeted_classes(counts).dtype == torch.bool


def test_does_not_share_its_argument():
    mine = torch.tensor([True, False])
    part = ObjectMemory(2, mine)
    mine[0] = False
    assert part.targeted.tolist() == [True, False]


def test_refuses_nonsense():
    everything = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="num_classes"):
        ObjectMemory(0, everything[:0])
    with pytest.raises(ValueError, match=r"bool tensor of shape \(4,\)"):
        ObjectMemory(4, everything)
    with pytest.raises(ValueError, match="bool tensor"):
        ObjectMemory(3, everything.long())
    with pytest.raises(ValueError, match="count"):
        ObjectMemory(3, everything, count=-1)
    with pytest.raises(ValueError, match="capacity"):
        ObjectMemory(3, everything, capacity=0)
    with pytest.raises(ValueError, match='source must be "bank" or "current"'):
        ObjectMemory(3, everything, source="disk")
    with pytest.raises(ValueError, match='draw must be "newest" or "random"'):
        ObjectMemory(3, everything, draw="oldest")
