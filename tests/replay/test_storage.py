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


def restored(options, placement=-1):
    """A memory with rows of a checkpoint, in a module that then moves to another device."""
    before = ObjectMemory(3, torch.ones(3, dtype=torch.bool), count=2, capacity=3, **options)
    step(before, 0, [0, 1, 0])
    before.bank.placement.fill_(placement)
    part = ObjectMemory(3, torch.ones(3, dtype=torch.bool), count=2, capacity=3, **options)
    part.load_state_dict(before.state_dict())
    return part.to("meta")


@pytest.mark.parametrize("options", [{"storage": "cpu"}, {"storage": "auto"}, {"storage": "device"}])
def test_loaded_rows_wait_on_the_host_until_they_are_placed(options):
    part = restored(options)
    assert part.targeted.device.type == "meta"
    assert part.bank.features.device == part.bank.slots.device == CPU
    assert part.bank.features[:, 0].tolist() == [0, 1, 2]
    values = {"features": torch.zeros(1, 2, device="meta")}
    values |= {name: torch.zeros(1, 4, device="meta") for name in ("proposals", "gt_boxes")}
    where = part.bank.place(values)
    assert where.type == part.bank.features.device.type == ("cpu" if options["storage"] == "cpu" else "meta")
    assert part.bank.host == (options["storage"] == "cpu")


@pytest.mark.parametrize(("placement", "where"), [(0, "meta"), (1, "cpu")])
def test_auto_goes_by_what_it_decided_before(placement, where, monkeypatch):
    part = restored({"storage": "auto"}, placement)
    other = CPU if where == "meta" else torch.device("meta")
    monkeypatch.setattr(
        ring, "bank_device", lambda storage, size, device: {"cpu": CPU, "device": device}.get(storage, other)
    )
    values = {"features": torch.zeros(1, 2, device="meta")}
    values |= {name: torch.zeros(1, 4, device="meta") for name in ("proposals", "gt_boxes")}
    assert part.bank.place(values).type == where
    assert part.bank.host == (where == "cpu")


def test_auto_keeps_its_decision_and_a_cpu_decides_nothing(monkeypatch):
    monkeypatch.setattr(ring, "bank_device", lambda storage, size, device: CPU)
    fresh = ring.RingQueues(2, 3, {"features": torch.float32})
    fresh.place({"features": torch.zeros(1, 2)})
    assert fresh.placement == -1
    fresh = ring.RingQueues(2, 3, {"features": torch.float32})
    fresh.place({"features": torch.zeros(1, 2, device="meta")})
    assert fresh.host and fresh.placement == 1


def test_a_state_without_a_decision_is_taken():
    part = ObjectMemory(3, torch.ones(3, dtype=torch.bool), count=2, capacity=3)
    step(part, 0, [0, 1, 0])
    state = {name: value for name, value in part.state_dict().items() if name != "bank.placement"}
    twin = ObjectMemory(3, torch.ones(3, dtype=torch.bool), count=2, capacity=3)
    twin.load_state_dict(state)
    assert twin.bank.placement == -1 and step(twin, 10, [0]) == [0, 2]
