"""LOCE's memory against plain Python lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from longtail.losses import MeanScore
from longtail.replay import FeatureMemory, RegionRows, ReplayRows, jitter_boxes
from longtail.replay.feature_memory import draw_classes, first_rows

C = 3
NO_ROWS = RegionRows(
    features=torch.zeros(0, 4),
    labels=torch.zeros(0, dtype=torch.long),
    proposals=torch.zeros(0, 4),
    gt_boxes=torch.zeros(0, 4),
    gt_index=torch.zeros(0, dtype=torch.long),
    image_index=torch.zeros(0, dtype=torch.long),
)


def image(*labels: int, seed: int = 0, first: float = 10.0, **more: Any) -> dict[str, Any]:
    """Objects of 20 x 30 pixels, one beside the other."""
    left = first + 40 * torch.arange(len(labels))[:, None]
    boxes = torch.cat([left, left * 0 + 5, left + 20, left * 0 + 35], dim=1).float().reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.long), "draw_seed": seed, **more}


def pool(boxes: Sequence[Tensor]) -> Tensor:
    """A box's corners are its features, so that every row can be recognised."""
    return torch.cat(list(boxes))


def step(memory: FeatureMemory, *images: dict[str, Any]) -> ReplayRows | None:
    return memory.step(NO_ROWS, images, pool, True)


def held(memory: FeatureMemory, label: int) -> Tensor:
    """Features in a queue, oldest first."""
    fill = int(memory.bank.fill[label])
    wanted = torch.zeros(C, dtype=torch.long)
    wanted[label] = fill
    return memory.bank.read("features", memory.bank.newest(wanted, fill)[1], torch.device("cpu"))


def test_queues_hold_the_newest_rows() -> None:
    """Of every step the first 48 rows of a class, and of all those the last 48."""
    memory, lists = FeatureMemory(C, MeanScore(C), capacity=48, classes=4, count=10), {0: [], 1: []}
    for seed, labels in enumerate([(0, 1, 0), (0,), (0, 0, 0, 0), (), (1, 0)]):
        one = image(*labels, seed=seed)
        given = step(memory, one)
        assert given is not None
        noise = torch.rand(1, 4, 16, generator=torch.Generator().manual_seed(seed ^ 0x10CE))[0]
        rows = jitter_boxes(one["boxes"], noise).reshape(-1, 16, 4)
        for label, kept in lists.items():
            mine = [r for g, own in enumerate(labels) if own == label for r in rows[g].tolist()]
            kept += mine[:48]
            del kept[:-48]
            assert held(memory, label).tolist() == kept
            assert all(row in kept for row in given.features[given.labels == label].tolist())
            assert all(row in kept for row in given.proposals[given.labels == label].tolist())
    assert int(memory.bank.fill[2]) == 0


def test_rows_come_from_their_class_with_their_boxes() -> None:
    memory = FeatureMemory(C, MeanScore(C), classes=6, count=3)
    one, two = image(0, 1), image(1, first=100.0)
    found = step(memory, one, two)
    assert found is not None
    objects = {0: [10.0], 1: [50.0, 100.0]}
    assert set(found.labels.tolist()) <= {0, 1}  # class 2 was never seen
    assert len(found.labels) % 3 == 0
    for label, features, proposal, gt in zip(
        found.labels.tolist(), found.features, found.proposals, found.gt_boxes.tolist(), strict=True
    ):
        assert torch.equal(features, proposal)
        assert gt[0] in objects[label]
        assert abs(proposal[0] - gt[0]) <= 20 / 6
    assert found.joins_normaliser
    assert found.trains_box
    assert (found.weight == 1).all()
    assert (found.image_index == -1).all()


def test_classes_with_an_empty_queue_give_nothing() -> None:
    """The first class is drawn first, since draws are sorted, and has nothing to give."""
    memory = FeatureMemory(C, MeanScore(C), classes=30, count=2)
    found = step(memory, image(1, 2))
    assert found is not None
    assert set(found.labels.tolist()) == {1, 2}
    assert 20 <= len(found.labels) < 60  # the third of the draws that were for the empty queue is lost
    assert found.features.isfinite().all()
    assert all(left[0] == 10.0 + 40 * (label - 1) for label, left in zip(found.labels, found.gt_boxes, strict=True))


@pytest.mark.parametrize("guided", ["score", "instances"])
def test_weak_classes_are_drawn_in_proportion_to_the_inverse(guided: str) -> None:
    values = torch.tensor([0.5, 0.25, 0.05])
    score = MeanScore(C)
    score.value[:C] = values
    memory = FeatureMemory(C, score if guided == "score" else (values * 100).long(), classes=500, count=1)
    found = step(memory, image(0, 1, 2))
    assert found is not None
    expected = (1 / values) / (1 / values).sum()
    torch.testing.assert_close(found.labels.bincount() / 500, expected, rtol=0, atol=0.04)


def test_draws_walk_the_cumulative_distribution() -> None:
    assert draw_classes(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 0.249, 0.251, 0.999])).tolist() == [
        0,
        0,
        2,
        2,
    ]


def test_draws_use_the_scores_before_the_step() -> None:
    """The memory is asked before anything is told to the scores; what was stored in the same step may come back."""
    score = MeanScore(C)
    memory = FeatureMemory(C, score, classes=50, count=1)
    assert step(memory, image(2)) is not None
    assert (score.value == 0.01).all()


def test_first_rows_of_every_class() -> None:
    assert first_rows(torch.tensor([0, 1, 0, 2, 0, 1]), 3, 2).tolist() == [0, 1, 0, 2, 3, 1]
    assert first_rows(torch.tensor([3, 3, 3, 1]), 3, 1).tolist() == [3, 3, 3, 1]


def test_random_arrivals_keep_whole_objects() -> None:
    found = set()
    for seed in range(8):
        memory = FeatureMemory(C, MeanScore(C), capacity=32, arrivals="random")
        step(memory, image(0, 0, 0, 0, 0, seed=seed))
        lefts = {round((float(x) - 10) / 40) for x in held(memory, 0)[:, 0]}
        assert len(lefts) == 2
        found.add(frozenset(lefts))
    assert len(found) > 1


def test_boxes_that_collapse_at_the_edge_are_left_out() -> None:
    memory = FeatureMemory(C, MeanScore(C))
    edge = {"boxes": torch.tensor([[99.5, 5.0, 100.0, 35.0]]), "labels": torch.tensor([1]), "image_size": (64, 100)}
    assert step(memory, edge) is None
    assert int(memory.bank.fill.sum()) == 0
    inside = image(1, image_size=(64, 100))
    step(memory, inside)
    assert int(memory.bank.fill[1]) == 16


def test_half_storage_keeps_eleven_bits() -> None:
    whole, half = FeatureMemory(C, MeanScore(C)), FeatureMemory(C, MeanScore(C), half=True)
    for memory in (whole, half):
        step(memory, image(0, 1, seed=3))
    assert half.bank.features.dtype == torch.float16
    a, b = held(whole, 0), held(half, 0)
    assert not torch.equal(a, b)
    torch.testing.assert_close(b.float(), a, rtol=2**-11, atol=0)
    assert torch.equal(whole.bank.proposals[:32], half.bank.proposals[:32])


@pytest.mark.parametrize("options", [{"classes": 0}, {"count": 0}])
def test_switched_off(options: dict[str, int]) -> None:
    memory = FeatureMemory(C, MeanScore(C), **options)
    random_state = torch.get_rng_state()
    assert step(memory, image(0, 1)) is None
    assert int(memory.bank.fill.sum()) == 0
    assert torch.equal(torch.get_rng_state(), random_state)


def test_memories_of_one_detector_draw_apart() -> None:
    memories = [FeatureMemory(C, torch.ones(C)) for _ in range(3)]
    memories[2].number = 1
    found = []
    for memory in memories:
        rows = step(memory, image(0, 1, seed=3))
        assert rows is not None
        found.append(rows.proposals)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_draws_depend_on_the_seed_of_the_pictures_alone() -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(found))
        rows = step(FeatureMemory(C, MeanScore(C)), image(0, 1, seed=seed))
        assert rows is not None
        found.append(rows.features)
    assert torch.equal(found[0], found[1])
    assert found[0].shape != found[2].shape or not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 4}, "the guide is for 3 classes"),
        ({"classes": -1}, "classes"),
        ({"capacity": 0}, "capacity"),
        ({"arrivals": "last"}, "arrivals"),
    ],
)
def test_refuses(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        FeatureMemory(**({"num_classes": C, "guide": MeanScore(C)} | options))
