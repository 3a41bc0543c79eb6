"""Batches are a function of position: any number of workers and processes, resumed anywhere."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Subset

from longtail.data import AnnotationTable
from longtail.data.dataset import DetectionDataset, Draw, draw_seed
from longtail.data.loader import PositionBatches, evaluation_loader, make_loader
from longtail.data.scenes import GeneratedSet
from longtail.data.transforms import train_transform
from longtail.sampling import RepeatFactorSampler, UniformSampler
from longtail.schema import DataError


def stream(batches: PositionBatches) -> list[Draw]:
    return [draw for batch in batches for draw in batch]


def test_batches_walk_through_the_epochs_and_resume_anywhere() -> None:
    sampler = RepeatFactorSampler(
        np.array([0, 1, 2, 3, 3, 4]), np.array([0, 0, 0, 1], np.int32), 2, seed=3, threshold=0.7
    )
    whole = stream(PositionBatches(sampler, seed=3, batch_size=4, num_batches=12))
    expected = []
    epoch = 0
    while len(expected) < 48:
        rows = sampler.epoch(epoch)
        expected += [Draw(int(row), draw_seed(3, epoch, place)) for place, row in enumerate(rows)]
        epoch += 1
    assert whole == expected[:48]
    for start in range(13):
        rest = stream(PositionBatches(sampler, seed=3, batch_size=4, num_batches=12, start_batch=start))
        assert rest == whole[4 * start :]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_same_global_batches(world: int) -> None:
    sampler = UniformSampler(7, seed=1)
    whole = stream(PositionBatches(sampler, seed=1, batch_size=2 * world, num_batches=5))
    parts = [
        list(PositionBatches(sampler, seed=1, batch_size=2, num_batches=5, rank=rank, world_size=world))
        for rank in range(world)
    ]
    for number in range(5):
        merged = [parts[place % world][number][place // world] for place in range(2 * world)]
        assert merged == whole[2 * world * number : 2 * world * (number + 1)]


def test_loaders_give_the_same_with_and_without_workers(smoke_set: GeneratedSet) -> None:
    table = AnnotationTable.from_coco(smoke_set.train)
    dataset = DetectionDataset(table, smoke_set.images, transform=train_transform([40, 50], 90, brightness=0.2))
    batches = PositionBatches(UniformSampler(120, seed=0), seed=0, batch_size=3, num_batches=6)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    plain = list(make_loader(dataset, batches, workers=0))
    assert torch.equal(state, torch.get_rng_state()), "loading leaves the global generator alone"
    forked = list(make_loader(dataset, batches, workers=2))
    for (images, targets), (other_images, other_targets) in zip(plain, forked, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, other_images, strict=True))
        assert [t["draw_seed"] for t in targets] == [t["draw_seed"] for t in other_targets]
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(targets, other_targets, strict=True))
    assert all(target["boxes"].dtype == torch.float32 for _, targets in plain for target in targets)


def test_evaluation_sees_every_picture_once_over_all_processes(smoke_set: GeneratedSet) -> None:
    dataset = DetectionDataset(AnnotationTable.from_coco(smoke_set.val), smoke_set.images)
    seen = []
    for rank in range(3):
        for _, targets in evaluation_loader(dataset, batch_size=5, workers=0, rank=rank, world_size=3):
            seen += [target["image_index"] for target in targets]
    assert sorted(seen) == list(range(40))


@pytest.mark.parametrize(("pictures", "world"), [(40, 3), (7, 2), (1, 2)])
def test_evaluation_batches_are_those_of_one_process(pictures: int, world: int, smoke_set: GeneratedSet) -> None:
    """So that a picture is padded and computed alike with any number of processes."""
    dataset = Subset(DetectionDataset(AnnotationTable.from_coco(smoke_set.val), smoke_set.images), range(pictures))

    def batches(rank: int, world_size: int) -> list[list[int]]:
        loader = evaluation_loader(dataset, batch_size=4, workers=0, rank=rank, world_size=world_size)
        return [[target["image_index"] for target in targets] for _, targets in loader]

    whole = batches(0, 1)
    assert [batch for rank in range(world) for batch in batches(rank, world)] == [
        batch for rank in range(world) for batch in whole[rank::world]
    ]


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="out of range"):
        PositionBatches(UniformSampler(3, seed=0), seed=0, batch_size=0, num_batches=1)
    for wrong in ({"start_batch": 3}, {"start_batch": -1}, {"rank": 1}, {"rank": 2, "world_size": 2}):
        with pytest.raises(ValueError, match="out of range"):
            PositionBatches(UniformSampler(3, seed=0), seed=0, batch_size=1, num_batches=2, **wrong)
    with pytest.raises(ValueError, match="sides"):
        train_transform([], 10)


def test_batches_without_end_walk_the_same_stream() -> None:
    sampler = UniformSampler(5, seed=2)
    bounded = list(PositionBatches(sampler, seed=2, batch_size=3, num_batches=9))
    endless = PositionBatches(sampler, seed=2, batch_size=3, start_batch=4)
    assert list(islice(endless, 5)) == bounded[4:]
    with pytest.raises(TypeError, match="without end"):
        len(endless)


class Counting:
    """A sampler of epochs of different lengths that notes what it was asked for."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.asked: list[int] = []

    def epoch(self, epoch: int) -> np.ndarray:
        self.asked.append(epoch)
        return np.arange(self.lengths[epoch % len(self.lengths)])

    def labels(self, epoch: int) -> None:
        return None


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    batch=st.integers(1, 4),
    world=st.integers(1, 3),
    start=st.integers(0, 6),
)
@settings(max_examples=60, deadline=None)
def test_any_cut_equals_the_loop(lengths: list[int], batch: int, world: int, start: int) -> None:
    stream_: list[Draw] = []
    epoch = 0
    while len(stream_) < 8 * batch * world:
        rows = range(lengths[epoch % len(lengths)])
        stream_ += [Draw(row, draw_seed(9, epoch, position)) for position, row in enumerate(rows)]
        epoch += 1
    for rank in range(world):
        sampler = Counting(lengths)
        found = list(
            PositionBatches(
                sampler, seed=9, batch_size=batch, num_batches=8, start_batch=start, rank=rank, world_size=world
            )
        )
        whole = batch * world
        assert found == [stream_[k * whole : (k + 1) * whole][rank::world] for k in range(start, 8)]
        assert sampler.asked == sorted(set(sampler.asked)), "every epoch is asked for once, in order"


def test_epochs_without_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="no picture in epoch 1"):
        list(PositionBatches(Counting([2, 0]), seed=0, batch_size=1, num_batches=5))


def test_errors_read_the_same_from_workers(tmp_path: Path) -> None:
    table = AnnotationTable.from_image_list(["gone.jpg"])
    for workers in (0, 1):
        with pytest.raises(
            DataError, match=r"^there is no picture .*gone\.jpg \(image 1 of a list of pictures\); [^\n]*$"
        ):
            list(evaluation_loader(DetectionDataset(table, tmp_path), batch_size=1, workers=workers))
