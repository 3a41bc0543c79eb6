"""Where banks live, and rows that reach the host one step late. Copies from a GPU are played by ordinary ones."""

import copy

import pytest
import torch

from longtail.replay import ObjectMemory, RegionRows, ring, storage

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("wanted", "size", "device", "found"),
    [
        ("auto", 100, GPU, GPU),
        ("auto", 101, GPU, CPU),
        ("device", 10**9, GPU, GPU),
        ("cpu", 1, GPU, CPU),
        ("auto", 10**12, CPU, CPU),
        ("device", 10**12, CPU, CPU),
    ],
)
def test_a_bank_takes_a_tenth_of_the_free_memory(wanted, size, device, found, monkeypatch):
    monkeypatch.setattr(storage, "free_memory", lambda device: 1000.0)
    assert storage.bank_device(wanted, size, device) == found


class LateCopy:
    """As HostCopy: the rows are not there before ``wait``."""

    def __init__(self, values):
        self._values = {name: value.clone() for name, value in values.items()}

    def wait(self):
        return self._values


@pytest.fixture
def apart(monkeypatch):
    """Makes a bank on the CPU act as one on the host beside a GPU."""
    monkeypatch.setattr(ring, "HostCopy", LateCopy)
    monkeypatch.setattr(ring, "empty_bank", lambda shape, dtype, device, *, pinned: torch.full(shape, torch.nan))

    def memory():
        part = ObjectMemory(3, torch.ones(3, dtype=torch.bool), count=2, capacity=3)
        part.bank._placed = part.bank.host = True
        return part

    return memory


def step(part, first, labels):
    number = torch.arange(first, first + len(labels), dtype=torch.float32)[:, None]
    nowhere = torch.zeros(len(labels), dtype=torch.long)
    boxes = number.repeat(1, 4)
    rows = RegionRows(number.repeat(1, 2), torch.tensor(labels), boxes, boxes, nowhere, nowhere)
    extra = part.step(rows, [], lambda boxes: None, True)
    return [] if extra is None else extra.features[:, 0].tolist()


def test_rows_on_their_way_arrive_before_the_next_draw(apart):
    part, plain = apart(), ObjectMemory(3, torch.ones(3, dtype=torch.bool), count=2, capacity=3)
    for first, labels in [(0, [0, 1, 0, 3]), (10, [0, 0, 0, 0]), (20, [1, 0]), (30, [3]), (40, [0, 1])]:
        assert step(part, first, labels) == step(plain, first, labels)
        assert part.bank._coming is not None or labels == [3]


@pytest.mark.parametrize("way", ["state", "copy"])
def test_rows_on_their_way_are_saved(apart, way):
    part = apart()
    step(part, 0, [0, 1, 0])
    if way == "copy":
        twin = copy.deepcopy(part)
    else:
        twin = apart()
        twin.load_state_dict(part.state_dict())
    assert step(twin, 10, [0, 1]) == step(part, 10, [0, 1]) == [0, 2, 1]


def test_a_bank_on_the_host_stays_there(apart):
    part = apart()
    step(part, 0, [0, 1, 0])
    part.to(torch.float64)
    assert part.bank.features.dtype == torch.float32
    assert part.targeted.dtype == torch.bool
